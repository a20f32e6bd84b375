"""Block points under `torch.compile`: one graph a pass, the results of the eager step.

Inductor itself, which takes long, is met in tests/training/test_compile.py.
"""

import copy
import math
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from apart_fast import Apart, UserError, build_model, kernels
from apart_fast.step import traced
from apart_fast.step.points import BlockPoints

SIZE = (32, 32, 3)
N = 4
FIELDS = ("loss", "start_loss", "correct")


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


class Recorder:
    """A backend that keeps the graphs and runs them as they are."""

    def __init__(self):
        self.graphs, self.trainable = [], []  # of the inputs of each, the weights that have gradients

    def __call__(self, graph, inputs):
        self.graphs.append(graph)
        self.trainable.append(sum(isinstance(x, nn.Parameter) and x.requires_grad for x in inputs))
        return graph.forward

    def breaks(self):
        return sum(torch._dynamo.utils.counters["graph_break"].values())


def make(model, amp=None):
    apart = Apart(model, N, SIZE, amp=amp, eta=1e-4, dtype=next(model.parameters()).dtype)
    apart.alpha, apart.alpha_omega = 0.01, 0.01
    apart.alpha_blocks = [1e-3] * len(apart.points)
    return apart


def step(apart):
    """One step with an update; all that it computes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (N, *SIZE), dtype=torch.uint8, generator=generator)
    apart.model.zero_grad(set_to_none=True)
    offsets, flips = torch.full((N, 2), 3), torch.arange(N) % 2 == 0
    result = apart.step(images, torch.arange(N) % 4, torch.arange(N), offsets=offsets, flips=flips)
    with torch.no_grad():
        for p in apart.model.parameters():
            p -= 1e-3 * p.grad
    found = {name: getattr(result, name) for name in FIELDS}
    found |= {"step sizes": apart.step_sizes.clone(), "gradients of them": apart.step_sizes.grad.clone()}
    found |= {f"gradient of {name}": p.grad.clone() for name, p in apart.model.named_parameters()}
    return found | {"omega": apart.memory.read(torch.arange(N))}


def network(name):
    if name.startswith("timm/") and find_spec("timm") is None:
        pytest.skip("timm is not installed: pip install 'apart_fast[timm]'")
    torch.manual_seed(0)
    return build_model(name, 4, image_size=SIZE[:2], width=0.125 if "/" not in name else 1.0)


@pytest.mark.parametrize("name", ["preact_resnet18", "torchvision/resnet18", "timm/resnet18"])
def test_each_pass_is_one_graph_that_gives_the_eager_results(name):
    """In float64: a last bit of float32 may turn a sign."""
    model, recorder = network(name).double(), Recorder()
    mine, theirs = make(model), make(copy.deepcopy(model))
    mine.points.keep_signs()
    step(mine), step(theirs)
    model.compile(dynamic=False, backend=recorder)
    for _ in range(2):
        found, expected = step(mine), step(theirs)
        for what, value in found.items():
            torch.testing.assert_close(value, expected[what], rtol=1e-6, atol=1e-9, msg=what)
        assert len(recorder.graphs) == 2 and recorder.breaks() == 0


def test_each_pass_is_one_graph_under_autocast():
    model, recorder = network("preact_resnet18"), Recorder()
    mine, theirs = (make(m, torch.bfloat16) for m in (model, copy.deepcopy(model)))
    mine.points.keep_signs()
    step(mine), step(theirs)
    model.compile(dynamic=False, backend=recorder)
    for _ in range(2):
        found, expected = step(mine), step(theirs)
        for what in ("loss", "start_loss", "step sizes"):
            torch.testing.assert_close(found[what], expected[what], rtol=1e-2, atol=1e-5, msg=what)
        assert len(recorder.graphs) == 2 and recorder.breaks() == 0
    # a compiled backward computes all gradients that there are: in pass 1 none of weights
    assert recorder.trainable == [0, len(list(model.parameters()))]


def test_signs_are_those_of_the_eager_pass_and_stay_in_their_tensors():
    model = network("preact_resnet18").double()
    plain = copy.deepcopy(model)
    mine, theirs = (BlockPoints(m, m.perturbation_points) for m in (model, plain))
    mine.keep_signs()
    places = []
    for i in range(3):
        if i == 1:
            model.compile(dynamic=False, backend="aot_eager")
        x = torch.rand(2, 3, 12, 12, dtype=torch.float64)
        signs = []
        for net, points in ((model, mine), (plain, theirs)):
            leaf = x.clone().requires_grad_()
            with points.capturing() as left:
                torch.autograd.grad(net(leaf).logsumexp(1).sum(), leaf)
            signs.append(left)
        assert all(torch.equal(a, b) and a.dtype == torch.int8 for a, b in zip(*signs, strict=True))
        places.append([s.data_ptr() for s in signs[0]])
    assert places[0] == places[1] == places[2]


EDGES = torch.tensor([0.0, -0.0, 1.5, -2.0, math.inf, -math.inf, math.nan, 1e-30])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_formulas_are_those_of_the_kernels(dtype):
    grad, a = EDGES.repeat(8).to(dtype), EDGES.repeat_interleave(8).to(dtype).requires_grad_()
    s = (torch.arange(64) % 3 - 1).to(torch.int8)
    alpha = torch.tensor(0.25, dtype=torch.float64 if dtype == torch.float64 else torch.float32, requires_grad=True)
    kept, same = torch.full((64,), 7, dtype=torch.int8), dict(rtol=0, atol=0, equal_nan=True)
    out = traced.leave_sign(a, kept)
    torch.testing.assert_close(torch.autograd.grad(out, a, grad)[0], grad, **same)
    torch.testing.assert_close(out, a, **same)
    assert torch.equal(kept, kernels.capture_sign(grad))
    out = traced.add_sign(a, s, alpha)
    torch.testing.assert_close(out, kernels.add_sign(a, s, alpha), **same)
    grad = grad.nan_to_num(0, 8, -8)
    for_a, for_alpha = torch.autograd.grad(out, (a, alpha), grad)
    torch.testing.assert_close(for_a, grad, **same)
    torch.testing.assert_close(for_alpha, kernels.sign_dot(grad, s), **same)


class Net(nn.Module):
    """Stem, one relu that is called `times` times, head."""

    def __init__(self, times=1):
        super().__init__()
        self.stem, self.relu, self.head = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Linear(8, 4)
        self.times = times

    def forward(self, x):
        x = self.stem(x)
        return self.head(sum((self.relu(x + i) for i in range(self.times)), x).mean((2, 3)))


def passes(model, points, size):
    x = torch.linspace(0, 1, 2 * 3 * size * size, dtype=torch.float64).view(2, 3, size, size).requires_grad_()
    alpha = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    with points.capturing() as signs:
        torch.autograd.grad(model(x).logsumexp(1).sum(), x)
    with points.perturbing(signs, [alpha]):
        model(x).logsumexp(1).sum().backward()
    return [signs[0].clone(), x.grad, alpha.grad]


@pytest.mark.parametrize("keep", [False, True])
def test_what_was_not_kept_is_left_out_of_the_graph(keep):
    """A loop that compiles the model without a word, and signs of another size: right results in more pieces."""
    torch.manual_seed(0)
    model = Net().double()
    plain = copy.deepcopy(model)
    mine, theirs = (BlockPoints(m, ["relu:output"]) for m in (model, plain))
    if keep:
        mine.keep_signs()
        passes(model, mine, size=8)
    recorder = Recorder()
    model.compile(dynamic=False, backend=recorder)
    for _ in range(2):
        for found, expected in zip(passes(model, mine, 12), passes(plain, theirs, 12), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert recorder.breaks() > 0


@pytest.mark.parametrize("times", [0, 2])
def test_calls_are_counted_when_traced(times):
    model = Net(1).double()
    points = BlockPoints(model, ["relu:output"])
    points.keep_signs()
    passes(model, points, 12)
    model.times = times
    model.compile(dynamic=False, backend="aot_eager")
    with pytest.raises(UserError, match=f"'relu' was called {times} times"):
        passes(model, points, 12)


def test_silent_points_are_traced_as_nothing():
    model, recorder = Net().double().eval(), Recorder()
    BlockPoints(model, ["relu:output"])
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    expected = model(x)
    model.compile(dynamic=False, backend=recorder)
    assert torch.equal(model(x), expected) and len(recorder.graphs) == 1 and recorder.breaks() == 0
