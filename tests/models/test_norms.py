"""The counters of BatchNorm layers are moved at once and end as torch's own."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from apart_fast import Apart
from apart_fast.models.norms import BatchCounters


class Own(nn.BatchNorm2d):
    """As those of timm that fuse an activation: a forward of its own."""

    def forward(self, x):
        return super().forward(x).relu()


def network():
    kept = nn.BatchNorm2d(4).eval()
    shared = nn.BatchNorm2d(4)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), shared, nn.BatchNorm2d(4, momentum=None), shared, Own(4),
        nn.BatchNorm2d(4, track_running_stats=False), nn.InstanceNorm2d(4), kept,
    )  # fmt: skip


def test_counters_end_as_torchs_own():
    theirs = network()
    mine = copy.deepcopy(theirs)
    theirs[-1].eval(), mine[-1].eval()
    counters, x = BatchCounters(mine), torch.randn(2, 3, 8, 8)
    for _ in range(2):
        theirs(x)
        with counters.together():
            mine(x)
    assert mine[1].num_batches_tracked == 4 and mine[-1].num_batches_tracked == 0
    for (name, a), b in zip(mine.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


class LooksAtItsBuffers(nn.Sequential):
    def forward(self, x):
        assert all(isinstance(b, torch.Tensor) for b in self.buffers()) and self.state_dict()
        return super().forward(x)


@pytest.fixture
def one_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("wrap", [lambda model: model, DistributedDataParallel, nn.DataParallel])
def test_the_buffers_stay_tensors_within_a_step(wrap, one_rank):
    """DDP sends them before each forward."""
    model = LooksAtItsBuffers(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    apart = Apart(wrap(model), 4, (8, 8, 3), padding=0, method="pgd-2")
    images = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    apart.step(images, torch.tensor([0, 1, 2, 0]))
    assert model[1].num_batches_tracked == 3 and "num_batches_tracked" not in vars(model[1])
    assert all(p.grad is not None for p in model.parameters())


def test_after_an_error_the_counters_are_back():
    model = network()
    with pytest.raises(RuntimeError), BatchCounters(model).together():
        model(torch.zeros(2, 5, 8, 8))
    assert all(isinstance(b, torch.Tensor) for b in model.buffers())
    names = set(model.state_dict())
    with pytest.raises(RuntimeError), BatchCounters(model).together():
        nn.Sequential(*model, nn.Linear(3, 3))(torch.zeros(2, 3, 8, 8))
    assert model[1].num_batches_tracked == 2 and set(model.state_dict()) == names


def test_a_step_casts_each_weight_once_and_moves_the_counters_at_once():
    """Of mixed precision; both passes count."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten())
    model.append(nn.Linear(4 * 4 * 4, 3))
    apart = Apart(model, 4, (8, 8, 3), padding=0, amp=torch.bfloat16, points=["3"])
    casts, adds = [], []

    class Watching(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._to_copy.default and any(args[0] is p for p in model.parameters()):
                casts.append(args[0])
            if function is torch.ops.aten.add_.Tensor and args[0].dtype == torch.int64:
                adds.append(args[0])
            return function(*args, **(kwargs or {}))

    images = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    with Watching():
        apart.step(images, torch.tensor([0, 1, 2, 0]), torch.arange(4))
    assert len(casts) == 4, "weight and bias of the convolution and of the linear layer"
    assert not adds and model[1].num_batches_tracked == 2
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())
