"""`--compile`: with inductor in a small network, and from the command line."""

import copy
import json

import pytest
import torch
from torch import nn

from apart_fast import Apart
from apart_fast.cli import main
from apart_fast.kernels import Crops
from apart_fast.loaders import Batch
from apart_fast.step.optimizer import SGD
from apart_fast.training.execution import CompiledStep, compiler_fault

N, B, SIZE = 32, 8, (8, 8, 3)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


class Net(nn.Module):
    """A point of either kind: at the output of a relu, and at the input of a convolution."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.conv2, self.bn2, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.relu1(self.bn1(self.conv1(x)))
        return self.head(torch.relu(self.bn2(self.conv2(x))).mean((2, 3)))


def batches():
    generator = torch.Generator().manual_seed(0)
    for size in (B, B - 1, B, B, B - 1, B):  # odd ones go between the others
        images = torch.randint(0, 256, (size, *SIZE), dtype=torch.uint8, generator=generator)
        indices = torch.randperm(N, generator=generator)[:size]
        crops = Crops(torch.arange(size), indices, torch.full((size, 2), 4), torch.arange(size) % 2 == 0)
        yield Batch(images, images.sum((1, 2, 3)) % 4, crops)


def train(net, amp, compiled, method="apart"):
    """Losses, step sizes and weights of a few steps."""
    apart = Apart(net, N, SIZE, amp=amp, points=["relu1:output", "conv2"], eta=1e-5, method=method)
    apart.alpha, apart.alpha_omega = 0.01, 0.01
    optimizer, losses = SGD(net.parameters(), lr=0.01, momentum=0.9), []

    def advance(batch):
        optimizer.zero_grad(set_to_none=True)
        result = apart.step_crops(batch.images, batch.labels, batch.crops)
        optimizer.step()
        losses.extend([result.start_loss, result.loss])

    step = CompiledStep(advance, apart, B) if compiled else advance
    assert not compiled or step.fault is None
    torch._dynamo.utils.counters.clear()  # of what the compiler was tried with
    for batch in batches():
        step(batch)
    return torch.stack(losses), apart.step_sizes, torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.skipif(compiler_fault(torch.device("cpu")) is not None, reason="inductor cannot compile here")
@pytest.mark.parametrize("amp", [None, torch.bfloat16], ids=["float32", "bfloat16"])
def test_inductor_gives_the_eager_steps_in_two_graphs(amp, capsys):
    torch.manual_seed(0)
    net = Net()
    plain = copy.deepcopy(net)
    expected, found = train(plain, amp, compiled=False), train(net, amp, compiled=True)
    tolerance = dict(rtol=2e-2, atol=2e-3) if amp else dict(rtol=1e-3, atol=1e-4)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]
    assert "compiled in" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["apart+mse", "fgsm-pgi", "liet", "trades-2", "awp-pgd-2"])
def test_graphs_that_are_kept_and_weights_that_move_can_be_compiled(method, graphs_without_compiler):
    torch.manual_seed(0)
    net = Net()
    with torch._functorch.config.patch(donated_buffer=True):  # as it is by default
        found = train(copy.deepcopy(net), None, True, method)
    for mine, theirs in zip(found, train(net, None, False, method), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-3)


def test_a_run_from_the_command_line_compiles_once(settings, tmp_path, graphs_without_compiler, capsys):
    """With a backend that needs no compiler: `train` and `train --compile` end alike, and every step is compiled."""
    losses = []
    for flags in ([], ["--compile"]):
        out = tmp_path / f"run{len(flags)}"
        with pytest.raises(SystemExit) as end:
            main(["train", *settings, "--epochs", "1", "--cycle", "1", "--out", str(out), *flags])
        assert not end.value.code
        losses.append(json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]
    assert capsys.readouterr().out.count("compiled in") == 1
