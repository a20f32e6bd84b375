"""Narrow strided 1 x 1 convolutions on a CPU: the same numbers, without the gradient that oneDNN computes wrongly."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from apart_fast import Apart, build_model
from apart_fast.models.dressing import Dress, layer_class
from apart_fast.models.stem import keep_stem_precise
from apart_fast.models.thinning import thin_out

STEPS = """
import torch
from apart_fast import Apart, build_model
torch.manual_seed(0)
model = build_model("preact_resnet18", 10, image_size=(64, 64), width=0.125)
apart = Apart(model, 120, (64, 64, 3))
images = torch.randint(0, 256, (120, 64, 64, 3), dtype=torch.uint8)
for rows in torch.arange(120).split(60):
    print(float(apart.step(images[rows], rows % 10, rows).loss))
"""


def test_a_narrow_network_trains_with_onednn():
    """Without thinning: "double free or corruption", or a segmentation fault, within two steps."""
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 2 and "nan" not in done.stdout


@pytest.mark.parametrize("stride", [2, 3, (1, 2)])
@pytest.mark.parametrize(("groups", "bias"), [(1, False), (2, True)])
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1)])
def test_the_result_and_all_gradients_are_those_of_the_convolution(stride, groups, bias, size):
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 1, stride, groups=groups, bias=bias, dtype=torch.float64)
    thinned = copy.deepcopy(plain)
    assert len(thin_out(thinned)) == 1 and isinstance(thinned, nn.Conv2d)
    x = torch.randn(3, 4, *size, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    found = []
    for layer in (plain, thinned):
        leaf = x.clone().requires_grad_()
        out = layer(leaf)
        gradients = torch.autograd.grad(out.square().sum(), [leaf, *layer.parameters()])
        found.append([out, *gradients])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(16, 4, 1, 2),  # wide enough
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3, 2, padding=1),
        nn.Conv2d(4, 4, 1, 2, padding=1),
        nn.ConvTranspose2d(4, 4, 1, 2),
        type("Own", (nn.Conv2d,), {})(4, 4, 1, 2),  # may compute something else
    ],
)
def test_other_layers_stay_as_they_are(layer):
    before = type(layer)
    assert thin_out(layer) == [] and type(layer) is before


@pytest.mark.parametrize("channels", [4, 12])
def test_with_onednn_it_is_the_same_bits(channels):
    torch.manual_seed(0)
    plain = nn.Conv2d(channels, 24, 1, 2, bias=False)
    thinned = copy.deepcopy(plain)
    thin_out(thinned)
    x = torch.randn(4, channels, 17, 16).contiguous(memory_format=torch.channels_last)
    found = []
    torch.backends.mkldnn.set_flags(True)
    try:
        for layer in (plain, thinned):  # not the weight gradient, which damages the memory
            leaf = x.clone().requires_grad_()
            out = layer(leaf)
            found.append((out, *torch.autograd.grad(out.square().sum(), leaf)))
    finally:
        torch.backends.mkldnn.set_flags(False)  # as in tests/conftest.py
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def worn(model):
    return [type(module).__name__ for module in model.modules() if isinstance(module, Dress)]


def test_a_step_uses_it_and_the_layers_get_their_classes_back():
    model = build_model("preact_resnet18", 10, width=0.125)
    classes = [type(module) for module in model.modules()]
    first = Apart(model, 8, (32, 32, 3), method="fgsm")
    assert worn(model) == ["ThinnedConv2d"]  # the one shortcut whose input has 8 channels
    second = Apart(model, 8, (32, 32, 3), method="fgsm", amp=torch.bfloat16)
    first.remove()
    assert worn(model) == ["PreciseConv2d", "ThinnedConv2d"]  # as the second needs them
    second.remove()
    assert [type(module) for module in model.modules()] == classes


def test_a_first_layer_can_be_both_and_be_copied_and_pickled():
    model = nn.Sequential(nn.Conv2d(3, 4, 1, 2), nn.Flatten(), nn.LazyLinear(2))
    x = torch.rand(2, 3, 4, 4)
    expected = model(x)
    handles = [*thin_out(model), *keep_stem_precise(model, x)]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other[0]) is type(model[0]) and layer_class(other[0]) is nn.Conv2d
        torch.testing.assert_close(other(x), expected)
    assert type(model[0]).__name__ == "PreciseThinnedConv2d"
    for handle in handles:
        handle.remove()
        handle.remove()  # a second time it does nothing
    assert type(model[0]) is nn.Conv2d


def test_a_copied_handle_and_a_class_put_on_top():
    model = build_model("preact_resnet18", 10, width=0.125)
    apart = Apart(model, 8, (32, 32, 3), method="fgsm")
    copied = copy.deepcopy(apart)
    copied.remove()
    assert worn(copied.model) == [] and worn(model) == ["ThinnedConv2d"]
    apart.remove()
    layer = nn.Conv2d(4, 6, 1, 2)
    (handle,) = thin_out(layer)
    nn.utils.parametrizations.weight_norm(layer)
    handle.remove()  # the class that torch has put on top stays
    assert layer(torch.rand(2, 4, 5, 5)).shape == (2, 6, 3, 3)
