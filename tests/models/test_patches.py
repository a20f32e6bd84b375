"""Wide convolutions of small maps as matrix products: the convolution, its gradients, and which layers take it."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from apart_fast import Apart
from apart_fast.models import patches
from apart_fast.models.dressing import Dress
from apart_fast.models.folding import fold
from apart_fast.models.patches import multiply_patches, patch_conv2d


@pytest.fixture(autouse=True)
def amx(monkeypatch):
    """As on a CPU that has it: what is computed does not need it."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)


def computed(convolution, x, weight, gradient, *settings):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = convolution(x, weight, *settings)
    return out, *torch.autograd.grad(out, (x, weight), gradient(out))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [
        ((3, 3), (1, 1), (1, 1), (4, 4)),
        ((3, 3), (2, 2), (1, 1), (8, 7)),
        ((2, 3), (1, 2), (0, 1), (5, 4)),
        ((3, 1), (1, 1), (3, 0), (4, 4)),  # more padding than the kernel is long
        ((3, 3), (1, 1), (0, 0), (3, 3)),
        ((1, 1), (3, 3), (0, 0), (7, 1)),
    ],
)
def test_it_is_the_convolution_with_its_gradients(kernel, stride, padding, size, layout):
    torch.manual_seed(0)
    x = torch.randn(3, 5, *size, dtype=torch.float64).contiguous(memory_format=layout)
    weight = torch.randn(6, 5, *kernel, dtype=torch.float64).contiguous(memory_format=layout)
    found = computed(lambda x, w: patch_conv2d(x, w, None, stride, padding), x, weight, torch.sin)
    expected = computed(lambda x, w: F.conv2d(x, w, None, stride, padding), x, weight, torch.sin)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    assert found[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("batch", [2, 0])
def test_a_bias_is_added_and_has_its_gradient(batch):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(batch, 5, 4, 4), torch.randn(6, 5, 3, 3), torch.randn(6).requires_grad_()
    found = []
    for out in (patch_conv2d(x, weight, bias, (1, 1), (1, 1)), F.conv2d(x, weight, bias, padding=1)):
        found.append((out, *torch.autograd.grad(out.square().sum(), bias)))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_second_derivatives_are_there():
    torch.manual_seed(0)
    x, weight = torch.randn(1, 2, 3, 3, dtype=torch.float64), torch.randn(2, 2, 3, 3, dtype=torch.float64)
    bias = torch.randn(2, dtype=torch.float64)
    for stride in ((1, 1), (2, 2)):
        inputs = (x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), stride, (1, 1))
        assert torch.autograd.gradgradcheck(patch_conv2d, inputs)


def test_in_bfloat16_it_is_as_exact_as_rounding_lets_it_be():
    torch.manual_seed(0)
    x, weight = torch.randn(4, 256, 4, 4).bfloat16(), (torch.randn(256, 256, 3, 3) / 48).bfloat16()
    ones = torch.ones_like
    exact = computed(lambda x, w: F.conv2d(x, w, padding=1), x.float(), weight.float(), ones)
    for mine, theirs in zip(
        computed(lambda x, w: patch_conv2d(x, w, None, (1, 1), (1, 1)), x, weight, ones), exact, strict=True
    ):
        assert mine.dtype == torch.bfloat16
        torch.testing.assert_close(mine.float(), theirs, rtol=2**-8, atol=1e-4)


def wide(**settings):
    return nn.Conv2d(256, 256, **(dict(kernel_size=3, padding=1, bias=False) | settings))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(255, 256, 3, bias=False),
        nn.Conv2d(256, 128, 3, bias=False),
        wide(kernel_size=1, padding=0),
        wide(groups=2),
        wide(dilation=2),
        wide(padding="same"),
        wide(padding_mode="circular"),
        type("Own", (nn.Conv2d,), {})(256, 256, 3, bias=False),  # may compute something else
    ],
)
def test_other_layers_stay_as_they_are(layer):
    before = type(layer)
    assert multiply_patches(layer, torch.bfloat16) == [] and type(layer) is before


def test_only_bfloat16_on_a_cpu_with_amx(monkeypatch):
    for amp in (None, torch.float16):
        assert multiply_patches(wide(), amp) == []
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert multiply_patches(wide(), torch.bfloat16) == []


def test_a_layer_multiplies_patches_of_small_maps_in_bfloat16_only(monkeypatch):
    calls = []
    monkeypatch.setattr(patches, "patch_conv2d", lambda *given: calls.append(given) or patch_conv2d(*given))
    layer, strided = wide(bias=True), wide(stride=2)
    plain, plain_strided = copy.deepcopy(layer), copy.deepcopy(strided)
    for one in (layer, strided):
        multiply_patches(one, torch.bfloat16)
    layer, strided = pickle.loads(pickle.dumps((layer, strided)))

    def call(mine, theirs, size, amp=True):
        x, before = torch.randn(2, 256, *size), len(calls)
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            found, expected = mine(x), theirs(x)
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=2**-6, atol=1e-2)
        return len(calls) - before

    assert call(layer, plain, (4, 4)) == call(layer, plain, (2, 8)) == call(strided, plain_strided, (8, 7)) == 1
    assert call(layer, plain, (4, 5)) == call(strided, plain_strided, (9, 8)) == 0
    assert call(layer, plain, (4, 4), amp=False) == 0
    before = len(calls)
    half = copy.deepcopy(plain).bfloat16(), copy.deepcopy(layer).bfloat16()
    torch.testing.assert_close(*(one(torch.ones(2, 256, 4, 4).bfloat16()) for one in half), rtol=2**-6, atol=1e-2)
    assert len(calls) == before + 1
    for x in (torch.ones(2, 256, 4, 4).bfloat16(), torch.ones(2, 256, 4, 4).double()):  # as a Conv2d refuses them
        with pytest.raises(RuntimeError, match="same"):
            layer(x)
    assert layer(torch.ones(256, 4, 4)).shape == (256, 4, 4) and len(calls) == before + 1


def test_functions_of_torch_func_go_through_it():
    torch.manual_seed(0)
    x, weight = torch.randn(3, 2, 5, 4, 4), torch.randn(6, 5, 3, 3)

    def value(convolution):
        return lambda x, weight: convolution(x, weight).square().sum()

    mine = value(lambda x, w: patch_conv2d(x, w, None, (1, 1), (1, 1)))
    theirs = value(lambda x, w: F.conv2d(x, w, None, padding=1))
    found, expected = (torch.func.vmap(torch.func.grad(f, argnums=1), (0, None))(x, weight) for f in (mine, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("method", "expected"), [("apart", 5), ("pgd-3", 9)])
def test_pass_1_makes_no_weight_gradients(method, expected, monkeypatch):
    """Patches are made for the forward and for each gradient: two in pass 1, three in pass 2."""
    calls, patches_of = [], patches._patches
    monkeypatch.setattr(patches, "_patches", lambda *given: calls.append(given) or patches_of(*given))
    model = nn.Sequential(nn.Conv2d(3, 256, 1, 8), nn.BatchNorm2d(256), wide(), nn.Flatten(), nn.Linear(4096, 10))
    apart = Apart(model, 4, (32, 32, 3), amp=torch.bfloat16, points=["2"], method=method)
    images, rows = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8), torch.arange(4)
    apart.step(images, rows, rows)
    assert len(calls) == expected
    assert model[2].weight.grad.abs().sum() > 0


def test_a_folded_copy_of_a_network_computes_what_the_network_computes():
    """Its convolutions take a bias from the BatchNorm behind them; the copy is called in bfloat16."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 256, 1), nn.ReLU(), wide(), nn.BatchNorm2d(256), nn.Flatten(), nn.Linear(4096, 10)
    ).eval()
    norm: Any = model[3]
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.bias.normal_()
    x = torch.rand(4, 3, 4, 4)
    expected = model(x)
    handles = multiply_patches(model, torch.bfloat16)
    folded = fold(model, x, torch.bfloat16)
    assert len(handles) == 1 and folded.get_parameter("2.bias").abs().max() > 0.1
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(folded(x).float(), expected, rtol=0.05, atol=0.05)


def test_compiled_it_is_one_graph():
    layer = wide()
    multiply_patches(layer, torch.bfloat16)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 256, 4, 4)
    found = []
    for network in (layer, compiled):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = network(leaf)
        found.append((out, *torch.autograd.grad(out.float().square().sum(), [leaf, layer.weight])))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert [gradient.dtype for gradient in found[0][1:]] == [torch.float32, torch.float32]


def test_a_step_uses_it_and_the_layers_get_their_classes_back():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 256, 1, 8), nn.BatchNorm2d(256), nn.ReLU(), wide(), nn.Flatten(), nn.Linear(4096, 10)
    )
    plain, classes = copy.deepcopy(model), [type(module) for module in model.modules()]
    images, rows = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8), torch.arange(8)
    losses = []
    for network, amp in ((model, torch.bfloat16), (plain, None)):
        apart = Apart(network, 8, (32, 32, 3), amp=amp, points=["3"])
        worn = [type(module).__name__ for module in network.modules() if isinstance(module, Dress)]
        assert ("MultipliedConv2d" in worn) == (amp is not None)
        losses.append(float(apart.step(images, rows, rows).loss))
        apart.remove()
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert model[3].weight.grad.dtype == torch.float32
    torch.testing.assert_close(model[3].weight.grad, plain[3].weight.grad, rtol=0.1, atol=5e-3)
    assert [type(module) for module in model.modules()] == classes
