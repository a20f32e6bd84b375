"""Folded copies compute what the model computes, and leave the model alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from apart_fast.models import build_model, default_points
from apart_fast.models.folding import ChannelAffine, fold
from apart_fast.models.stem import keep_stem_precise
from apart_fast.step.points import BlockPoints


def lively(model):
    """Running statistics and affine parameters as after training, so that a wrong fold shows."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.uniform_(-0.5, 0.5, generator=generator)
            module.running_var.uniform_(0.3, 3, generator=generator)
            if module.affine:
                with torch.no_grad():
                    module.weight.uniform_(-1, 2, generator=generator)
                    module.bias.uniform_(-0.5, 0.5, generator=generator)
    return model


def pixels(n=6, dtype=torch.float64, size=16):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(7)).to(dtype)


def kinds(model):
    return [type(module) for module in model.modules()]


def built(name, **options):
    torch.manual_seed(0)
    return build_model(name, 10, image_size=(16, 16), **options)


# model, convolutions that take a BatchNorm, BatchNorms left as one multiply-add
MODELS = [
    ("preact_resnet18", {"width": 0.125}, 8, 9),
    ("preact_resnet50", {"width": 0.0625}, 33, 16),  # the first layer feeds only the first block's bn1
    ("wide_resnet28_10", {"width": 0.0125}, 13, 12),
    ("preact_resnet18", {"width": 0.125, "normalize": ((0.4,) * 3, (0.2,) * 3)}, 8, 9),
    ("torchvision/resnet18", {}, 20, 0),
]


@pytest.mark.parametrize(("name", "options", "folded_norms", "affine"), MODELS)
def test_folded_copy_gives_the_same_logits_and_input_gradients(name, options, folded_norms, affine):
    model = lively(built(name, **options)).double().eval()
    norms = kinds(model).count(nn.BatchNorm2d)
    folded = fold(model, pixels(2))
    assert kinds(folded).count(nn.BatchNorm2d) == 0
    assert kinds(folded).count(ChannelAffine) == affine
    assert norms - affine == folded_norms
    gradients = []
    for network in (model, folded):
        x = pixels().requires_grad_()
        logits = network(x)
        gradients.append((logits.detach(), torch.autograd.grad(logits.logsumexp(1).sum(), x)[0]))
    (logits, gradient), (mine, my_gradient) = gradients
    torch.testing.assert_close(mine, logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(my_gradient, gradient, rtol=1e-9, atol=1e-9)
    assert torch.equal(mine.argmax(1), logits.argmax(1))


def test_folding_under_autocast_is_the_same():
    model = lively(built("preact_resnet18", width=0.125)).eval()
    x = pixels(2, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = fold(model, x)
    outside = fold(model, x)
    assert kinds(inside) == kinds(outside)
    assert all(torch.equal(a, b) for a, b in zip(inside.buffers(), outside.buffers(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(inside.parameters(), outside.parameters(), strict=True))


def test_float32_predictions_stay():
    model = lively(built("preact_resnet18", width=0.25)).eval()
    x = pixels(64, torch.float32)
    with torch.no_grad():
        a, b = model(x), fold(model, x[:2])(x)
    torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)
    assert torch.equal(a.argmax(1), b.argmax(1))


def test_folding_leaves_the_model_alone_and_freezes_the_copy():
    model = lively(built("preact_resnet18", width=0.0625)).train()
    before = {name: v.clone() for name, v in model.state_dict().items()}
    folded = fold(model, pixels(2, torch.float32))
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())
    assert not any(module.training for module in folded.modules())
    assert not any(p.requires_grad for p in folded.parameters())
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in folded.parameters()}
    assert folded.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_block_points_are_silent_in_the_copy():
    model = lively(built("preact_resnet18", width=0.0625)).double().eval()
    points = BlockPoints(model, default_points(model))
    folded = fold(model, pixels(2))
    assert kinds(folded).count(nn.BatchNorm2d) == 0
    assert points._pass is None
    torch.testing.assert_close(folded(pixels()), model(pixels()), rtol=1e-9, atol=1e-9)


class Small(nn.Module):
    """conv - bn - relu - mean - linear; subclasses use the layers otherwise."""

    def __init__(self, **norm):
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4, **norm)
        self.linear = nn.Linear(4, 5)

    def middle(self, x):
        return self.bn(self.conv(x))

    def forward(self, x):
        return self.linear(F.relu(self.middle(x)).mean((2, 3)))


class Grouped(Small):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1)
        self.bn = nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4))


class ReadTwice(Small):
    def middle(self, x):
        z = self.conv(x)
        return self.bn(z) + z


class CalledTwice(Small):
    def middle(self, x):
        return self.bn(self.conv(x)) + self.bn(self.conv(x.flip(3)))


class ChangedBetween(Small):
    def middle(self, x):
        return self.bn(self.conv(x).mul_(2))


class ReadUnseen(Small):
    """A use that autograd does not see."""

    def middle(self, x):
        z = self.conv(x)
        return self.bn(z) + z.detach()


class ReadsItsNorm(Small):
    def middle(self, x):
        return self.bn(self.conv(x)) * self.bn.weight[:, None, None]


class NoAffine(Small):
    def __init__(self):
        super().__init__(affine=False)


class NoStatistics(Small):
    def __init__(self):
        super().__init__(track_running_stats=False)


# class, BatchNorms and ChannelAffines in the copy
CASES = [
    (Small, 0, 0),
    (Grouped, 0, 0),
    (NoAffine, 0, 0),
    (ReadTwice, 0, 1),
    (CalledTwice, 0, 1),
    (ChangedBetween, 0, 1),
    (ReadUnseen, 1, 0),
    (ReadsItsNorm, 1, 0),
    (NoStatistics, 1, 0),
]


@pytest.mark.parametrize(("kind", "norms", "affine"), CASES)
def test_odd_uses_are_not_folded_wrongly(kind, norms, affine):
    model = kind().double()
    lively(model)
    model.eval()
    folded = fold(model, pixels(2))
    assert kinds(folded).count(nn.BatchNorm2d) == norms
    assert kinds(folded).count(ChannelAffine) == affine
    torch.testing.assert_close(folded(pixels()), model(pixels()), rtol=1e-9, atol=1e-9)


def test_hooks_see_what_they_saw():
    model, seen = lively(Small()).eval(), []
    model.conv.register_forward_hook(lambda module, args, out: seen.append(out.detach()))
    folded = fold(model, pixels(2, torch.float32))
    assert not isinstance(folded.bn, nn.Identity)
    seen.clear()
    model(pixels(dtype=torch.float32))
    folded(pixels(dtype=torch.float32))
    torch.testing.assert_close(*seen)


def test_computed_weights_are_not_folded():
    model = lively(Small()).eval()
    nn.utils.parametrizations.weight_norm(model.conv)
    folded = fold(model, pixels(2, torch.float32))
    assert isinstance(folded.bn, ChannelAffine)
    torch.testing.assert_close(folded(pixels(dtype=torch.float32)), model(pixels(dtype=torch.float32)))


def test_a_model_that_cannot_be_copied_is_given_back():
    model = Small().eval()
    model.cache = model.linear.weight * 2  # no leaf: deepcopy refuses
    assert fold(model, pixels(2, torch.float32)) is model


def test_weights_are_cast_once_for_mixed_precision_but_not_the_stem():
    model = lively(built("preact_resnet18", width=0.25)).eval()
    x = pixels(32, torch.float32)
    folded = fold(model, x[:2], torch.bfloat16)
    assert folded.conv1.weight.dtype == torch.float32
    assert folded.layer1[0].conv2.weight.dtype == folded.linear.weight.dtype == torch.bfloat16
    keep_stem_precise(model, x[:2])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        a, b = model(x).float(), folded(x).float()
        # a change that bfloat16 cannot hold beside a pixel reaches the network
        moved = folded.conv1((x + 1e-4).clamp(0, 1)) != folded.conv1(x)
    torch.testing.assert_close(b, a, rtol=0.05, atol=0.05 * float(a.abs().max()))
    assert moved.any()
