"""The first layer in full float32 on a GPU, seen without one: which operator is called, and what it computes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from apart_fast.models.ieee_conv import ieee_conv2d
from apart_fast.models.stem import keep_stem_precise

SETTINGS = ([2, 1], [1, 0], [1, 2], 1)  # stride, padding, dilation, groups


class Calls(TorchDispatchMode):
    """The operators called within, by name, with the precision of convolutions at the time."""

    def __enter__(self):
        self.seen = []
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append((str(function), torch.backends.cudnn.conv.fp32_precision))
        return function(*args, **(kwargs or {}))


def tensors(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 3, 7, 8), (4, 3, 3, 2), (4,)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def first_layers():
    class Own(nn.Conv2d):  # computes its weights: what its forward does must stay
        def forward(self, x):
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    return {
        "convolution": (nn.Conv2d(3, 4, 3, padding=1, bias=False), "apart_fast.ieee_conv2d.default"),
        "padded by name": (nn.Conv2d(3, 4, 3, padding="same"), "aten.convolution.default"),
        "reflecting": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), "aten.convolution.default"),
        "own": (Own(3, 4, 3, padding=1), "aten.convolution.default"),
    }


@pytest.mark.parametrize("name", ["convolution", "padded by name", "reflecting", "own"])
def test_the_first_layer_alone_is_in_full_precision_on_a_gpu(name):
    before = torch.backends.cudnn.conv.fp32_precision
    assert before != "ieee"
    with FakeTensorMode(allow_non_fake_inputs=False), torch.device("cuda"), torch.no_grad():
        layer, operator = first_layers()[name]
        model, x = nn.Sequential(layer, nn.ReLU(), nn.Conv2d(4, 4, 3)), torch.rand(2, 3, 8, 8)
        keep_stem_precise(model, x)
        with Calls() as calls:
            assert model(x).device.type == "cuda"
    first, second = [call for call in calls.seen if "conv" in call[0]]
    # the operator sets the precision itself, where it computes
    assert first == (operator, before if operator.startswith("apart_fast") else "ieee")
    assert second == ("aten.convolution.default", before)
    assert torch.backends.cudnn.conv.fp32_precision == before


def test_within_the_operator_float32_is_full(monkeypatch):
    seen, convolve = [], F.conv2d
    monkeypatch.setattr(
        F, "conv2d", lambda *args: (seen.append(torch.backends.cudnn.conv.fp32_precision), convolve(*args))[1]
    )
    x, weight, bias = tensors()
    ieee_conv2d(x, weight, bias, *SETTINGS)
    assert seen == ["ieee"] and torch.backends.cudnn.conv.fp32_precision != "ieee"


@pytest.mark.parametrize("biased", [True, False])
def test_the_operator_is_a_convolution(biased):
    x, weight, bias = (t.requires_grad_() for t in tensors(torch.float64))
    args = (x, weight, bias if biased else None, *SETTINGS)
    assert torch.equal(ieee_conv2d(*args), F.conv2d(*args))
    assert torch.autograd.gradcheck(ieee_conv2d, args)
    torch.library.opcheck(ieee_conv2d, args)  # schema, fake, autograd and what compilers need
    frozen = [t.detach() if isinstance(t, torch.Tensor) else t for t in args[1:]]
    (gradient,) = torch.autograd.grad(ieee_conv2d(x, *frozen).sum(), x)  # as in pass 1
    (expected,) = torch.autograd.grad(F.conv2d(x, *frozen).sum(), x)
    assert torch.equal(gradient, expected)


def test_the_operator_breaks_no_graph():
    x, weight, bias = tensors()
    compiled = torch.compile(lambda *args: ieee_conv2d(*args, *SETTINGS).relu(), backend="eager", fullgraph=True)
    assert torch.equal(compiled(x, weight, bias), ieee_conv2d(x, weight, bias, *SETTINGS).relu())


def test_layout_is_that_of_a_convolution():
    x, weight, bias = (t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors())
    with FakeTensorMode() as mode:
        fake = ieee_conv2d(*(mode.from_tensor(t) for t in (x, weight, bias)), *SETTINGS)
    assert (
        fake.stride()
        == ieee_conv2d(x, weight, bias, *SETTINGS).stride()
        == F.conv2d(x, weight, bias, *SETTINGS).stride()
    )
