"""Block points on networks that work in place, and at submodules that take or give something else than a tensor."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from apart_fast import Apart, UserError
from apart_fast.models.modes import frozen
from apart_fast.step.points import BlockPoints

SHAPE = (12, 12, 3)


class Block(nn.Module):
    """A residual block as in torchvision's ResNet; `write`: sum and relu overwrite what they are given."""

    def __init__(self, write):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=write)
        self.write = write

    def forward(self, x):
        out = self.bn(self.conv(x))
        if self.write:
            out += x
        else:
            out = out + x
        return self.relu(out)


class PreActivation(nn.Module):
    """`x + conv(relu(x))` where the relu works in place: the sum reads relu(x)."""

    def __init__(self, write):
        super().__init__()
        self.entrance = nn.Identity()
        self.branch = nn.Sequential(nn.ReLU(inplace=write), nn.Conv2d(6, 6, 3, padding=1))
        self.write = write

    def forward(self, x):
        x = self.entrance(x * 1)
        out = self.branch(x)
        return (x if self.write else F.relu(x)) + out


class AddsIntoTheInputOfARelu(nn.Module):
    """`x += conv(relu(x))`: legal, since a relu keeps its output for the backward, not its input."""

    def __init__(self, write):
        super().__init__()
        self.relu, self.conv, self.write = nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), write

    def forward(self, x):
        x = x * 1
        out = self.conv(self.relu(x))
        return x.add_(out) if self.write else x + out


class Gate(nn.Module):
    """Overwrites a view of what it is given."""

    def __init__(self, write):
        super().__init__()
        self.conv, self.flatten, self.write = nn.Conv2d(6, 6, 3, padding=1), nn.Flatten(), write

    def forward(self, x):
        flat = self.flatten(self.conv(x))
        out = F.hardtanh_(flat, -0.5, 0.5) if self.write else F.hardtanh(flat, -0.5, 0.5)
        return out.view_as(x)


class Net(nn.Module):
    def __init__(self, block, write):
        super().__init__()
        self.stem, self.blocks, self.head = nn.Conv2d(3, 6, 3), nn.Sequential(*[block(write) for _ in range(2)]), None
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def passes(net, points):
    """Signs of pass 1 with its gradient; logits and gradients of pixels, step sizes and weights in pass 2."""
    x = torch.rand(4, *SHAPE[::-1], dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    alphas = torch.linspace(0.1, 0.3, len(points), dtype=torch.float64).requires_grad_()
    with frozen(net), points.capturing() as signs:
        (gradient,) = torch.autograd.grad(net(x).logsumexp(1).sum(), x)
    with points.perturbing(signs, alphas.unbind()):
        logits = net(x)
    net.zero_grad()
    logits.logsumexp(1).sum().backward()
    return [
        *(s.clone() for s in signs),
        gradient,
        logits.detach(),
        x.grad,
        alphas.grad,
        *(p.grad for p in net.parameters()),
    ]


def pair(block):
    """The same network, written in place and not."""
    torch.manual_seed(0)
    written = Net(block, write=True).double()
    plain = Net(block, write=False).double()
    plain.load_state_dict(written.state_dict())
    return written, plain


# block, points of the network that works in place and of the one that does not, also compiled
CASES = [
    (Block, ["blocks.*.bn:output"], None, True),
    (Block, ["blocks.*.relu:output"], None, False),
    (Block, ["blocks.*.conv:output", "blocks.?:output", "blocks.?"], None, False),
    (AddsIntoTheInputOfARelu, ["blocks.*.relu:output"], None, False),
    (AddsIntoTheInputOfARelu, ["blocks.*.relu"], None, False),
    (Gate, ["blocks.*.flatten:output"], None, False),
    # what a submodule overwrites, it overwrites for all who read it
    (PreActivation, ["blocks.*.branch"], ["blocks.*.entrance:output"], True),
]


@pytest.mark.parametrize(("block", "patterns", "others", "compiled"), CASES)
def test_a_network_that_works_in_place_gives_what_its_twin_gives_that_does_not(block, patterns, others, compiled):
    written, plain = pair(block)
    mine, theirs = BlockPoints(written, patterns), BlockPoints(plain, others or patterns)
    mine.keep_signs()
    for step in range(3 if compiled else 2):
        if step == 1 and compiled:
            torch._dynamo.reset()
            torch._dynamo.utils.counters.clear()
            written.compile(dynamic=False, backend="aot_eager")
        for found, expected in zip(passes(written, mine), passes(plain, theirs), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert not compiled or not torch._dynamo.utils.counters["graph_break"]


class Odd(nn.Module):
    """Submodules that take or give what no block step can be added to."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
        for name, work in {
            "listed": lambda maps: torch.stack(maps).sum(0),
            "keyed": lambda x: x,
            "paired": lambda x: (x, None),
            "named": lambda x: {"out": x},
            "counted": lambda x: x.argmax(1),
            "fixed": lambda x: x,
            "unread": lambda x: x,
            "again": lambda x: x,
        }.items():
            setattr(self, name, Does(work))

    def forward(self, x):
        x = self.listed([self.stem(x), self.stem(x)])
        x, _ = self.paired(self.keyed(x=x))
        x = self.named(x)["out"]
        self.counted(x), self.unread(x), self.fixed(x.detach())
        return self.head(self.again(self.again(x)).mean((2, 3)))


class Does(nn.Module):
    def __init__(self, work):
        super().__init__()
        self.forward = work


@pytest.mark.parametrize(
    ("point", "line"),
    [
        ("listed", "'listed' takes a list: name a submodule that takes one tensor"),
        ("keyed", "'keyed' takes keywords only"),
        ("paired:output", "'paired:output' gives a tuple: name a submodule that gives one tensor"),
        ("named:output", "'named:output' gives a dict"),
        ("counted:output", "'counted:output' gives int64 numbers, which have no gradient"),
        ("fixed", "'fixed' takes a tensor without gradient, which does not depend on the pixels"),
        ("again", "'again' was called 2 times"),
        ("stem:output", "'stem' was called 2 times"),
    ],
)
def test_a_point_that_cannot_work_is_refused_before_the_first_step(point, line):
    model = Odd()
    with pytest.raises(UserError, match=f"block point {line}"):
        Apart(model, 6, SHAPE, points=[point])
    with pytest.raises(UserError, match=f"block point {line}"):  # for who does without `Apart`
        passes(model.double(), BlockPoints(model, [point]))


def test_a_point_that_the_loss_does_not_depend_on_is_told():
    apart = Apart(Odd(), 6, SHAPE, points=["unread", "head"])
    with pytest.raises(UserError, match="block point 'unread' has no gradient: the loss does not depend on it"):
        apart.step(torch.zeros(6, *SHAPE, dtype=torch.uint8), torch.arange(6) % 4, torch.arange(6))


@pytest.mark.parametrize("points", [[], "blocks.*", [""]])
def test_points_that_are_none(points):
    with pytest.raises(UserError, match="points are|matches no submodule"):
        Apart(Net(Block, True), 6, SHAPE, points=points)


class OnlyInTraining(Net):
    """A submodule that an evaluation never calls, and one that nobody does."""

    def __init__(self):
        super().__init__(Block, write=True)
        self.noise, self.never = nn.Dropout(0.1), nn.Identity()

    def forward(self, x):
        x = self.blocks(self.stem(x))
        return self.head((self.noise(x) if self.training else x).mean((2, 3)))


def test_a_point_that_is_called_in_a_training_only_is_none_that_is_never_called():
    model = OnlyInTraining()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    apart = Apart(model, 6, SHAPE, points=["noise:output"])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and all(m.training for m in model.modules())
    apart.step(torch.zeros(6, *SHAPE, dtype=torch.uint8), torch.arange(6) % 4, torch.arange(6))
    with pytest.raises(UserError, match="'never' was called 0 times"):
        Apart(model, 6, SHAPE, points=["never"])


def test_trying_the_points_leaves_the_model_as_it_was():
    torch.manual_seed(0)
    model = Net(Block, write=True)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    Apart(model, 6, SHAPE, points=["blocks.*.bn:output"])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and all(m.training for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
