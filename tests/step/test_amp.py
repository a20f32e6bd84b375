"""Numerics under mixed precision: the perturbation reaches the first layer, and no sign is lost."""

import pytest
import torch

from apart_fast import Apart, build_model
from apart_fast.models.folding import fold
from apart_fast.models.stem import find_stem
from apart_fast.step.optimizer import SGD

EPS = 8 / 255
AMP = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def onednn():
    """Mixed precision as it is in real runs (see conftest.py)."""
    before = torch.backends.mkldnn.set_flags(True)
    yield
    torch.backends.mkldnn.set_flags(*before)


def make(amp, method="apart", confident=1.0):
    torch.manual_seed(0)
    model = build_model("preact_resnet18", 10, width=0.25)
    with torch.no_grad():
        model.linear.weight.mul_(confident)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16) if amp == torch.float16 else None
    apart = Apart(model, 16, (32, 32, 3), eps=EPS, method=method, amp=amp, scaler=scaler)
    apart.alpha, apart.alpha_omega = 0.01, 0.01
    if apart.memory is not None:
        apart.memory.store.uniform_(-1, 1, generator=apart.generator)
    images = torch.randint(0, 256, (16, 32, 32, 3), dtype=torch.uint8)
    return apart, images, torch.randint(0, 10, (16,))


def first_conv_inputs(apart, images, labels, monkeypatch, channels=3):
    """What the first layer's arithmetic is given, in the order of the calls."""
    seen, conv2d = [], torch.nn.functional.conv2d

    def record(x, *args, **kwargs):
        if x.shape[1] == channels:
            autocast = torch.is_autocast_enabled("cpu")
            seen.append((x.to(torch.get_autocast_dtype("cpu")) if autocast else x).detach().float())
        return conv2d(x, *args, **kwargs)

    moves = []
    step = apart._pass2
    monkeypatch.setattr(torch.nn.functional, "conv2d", record)
    monkeypatch.setattr(apart, "_pass2", lambda x, *rest: (moves.append(x.detach().clone()), step(x, *rest))[1])
    apart.step(images, labels, torch.arange(16))
    return seen, moves


@pytest.mark.parametrize("amp", AMP)
def test_what_enters_the_first_convolution(amp, monkeypatch):
    apart, images, labels = make(amp)
    seen, (x1,) = first_conv_inputs(apart, images, labels, monkeypatch)
    error = (seen[-1] - x1.permute(0, 3, 1, 2)).square().mean().sqrt()
    assert len(seen) == 2
    assert error <= 0.01 * EPS


def test_the_check_above_sees_a_plain_autocast(monkeypatch):
    """Without the precise stem bfloat16 swallows more than 1 % of eps, so the test above can fail."""
    apart, images, labels = make(torch.bfloat16)
    (stem,) = find_stem(apart.model, torch.zeros(2, 3, 32, 32))
    stem.__class__ = torch.nn.Conv2d
    seen, (x1,) = first_conv_inputs(apart, images, labels, monkeypatch)
    assert (seen[-1] - x1.permute(0, 3, 1, 2)).square().mean().sqrt() > 0.01 * EPS


class TwoFirst(torch.nn.Module):
    """As RepVGG and others: two layers take the pixels."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(3, 8, 1)
        self.conv, self.linear = torch.nn.Conv2d(8, 8, 3), torch.nn.Linear(8, 10)

    def forward(self, x):
        x = torch.relu(self.narrow(x) + self.wide(x))
        return self.linear(torch.relu(self.conv(x)).mean((2, 3)))


def test_all_layers_that_take_the_pixels_are_precise():
    model, x = TwoFirst(), torch.rand(2, 3, 32, 32)
    apart = Apart(model, 8, (32, 32, 3), method="fgsm", amp=torch.bfloat16)
    folded = fold(model.eval(), x, torch.bfloat16)
    for network in (model, folded):
        for layer in (network.wide, network.narrow):
            exact = torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=layer.padding)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(layer(x), exact.bfloat16())  # nothing but its result is rounded
    assert folded.conv.weight.dtype == torch.bfloat16
    apart.remove()
    assert {type(layer) for layer in (model.wide, model.narrow)} == {torch.nn.Conv2d}


def zero_signs(apart, images, labels):
    x = images / 255.0
    _, g, signs = apart._pass1(x, labels)
    return [(g == 0).float().mean().item()] + [(s == 0).float().mean().item() for s in signs]


@pytest.mark.parametrize("amp", AMP)
@pytest.mark.parametrize("confident", [1.0, 60.0])  # 60: most images are classified surely, gradients are tiny
def test_no_more_zero_signs_than_in_float32(amp, confident):
    exact = zero_signs(*make(None, confident=confident))
    mixed = zero_signs(*make(amp, confident=confident))
    assert mixed[0] <= exact[0]  # g0
    for a, b in zip(mixed[1:], exact[1:], strict=True):
        assert a <= b + 3e-4  # at the blocks float16 rounds some sums to exactly 0


def test_float16_without_scaling_would_lose_signs():
    """The reason for the scaling: the check above can fail."""
    apart, images, labels = make(torch.float16, confident=1.0)
    apart.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-8)
    exact = zero_signs(*make(None, confident=1.0))
    assert max(zero_signs(apart, images, labels)) > max(exact) + 1e-3


def test_float16_overflow_leaves_weights_and_step_sizes_alone():
    apart, images, labels = make(torch.float16)
    apart.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    optimizer = SGD(apart.model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    before = [p.clone() for p in apart.model.parameters()]
    sizes = apart.step_sizes.clone()
    apart.step(images, labels, torch.arange(16))
    apart.scaler.step(optimizer)
    apart.scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(before, apart.model.parameters(), strict=True))
    assert torch.equal(sizes, apart.step_sizes)
    assert apart.scaler.get_scale() < 2.0**60


@pytest.mark.parametrize("amp", AMP)
def test_step_size_gradients_are_near_those_of_float32(amp):
    grads = []
    for dtype in (None, amp):
        apart, images, labels = make(dtype)
        where = dict(offsets=torch.full((16, 2), 4), flips=torch.zeros(16, dtype=torch.bool))
        apart.step(images, labels, torch.arange(16), **where)
        scale = 1.0 if apart.scaler is None else apart.scaler.get_scale()
        grads.append(apart.step_sizes.grad / scale)
    assert ((grads[0] - grads[1]).norm() / grads[0].norm()).item() < 0.1


def test_a_scaler_that_was_just_loaded_can_begin_with_a_step_without_images():
    """A rank may have none in the first step after resuming: the gradients are those of the others."""
    apart, _, _ = make(torch.float16)
    apart.scaler = torch.amp.GradScaler("cpu")
    apart.scaler.load_state_dict(torch.amp.GradScaler("cpu", init_scale=8.0).state_dict())
    optimizer = SGD(apart.model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.0)
    before = [p.clone() for p in apart.model.parameters()]
    apart.step_without_images(together=3)
    for p in apart.model.parameters():
        p.grad = torch.ones_like(p)
    apart.scaler.step(optimizer)
    apart.scaler.update()
    assert apart.scaler.get_scale() == 8
    moved = [p - q for p, q in zip(apart.model.parameters(), before, strict=True)]
    assert all((step + 0.1 / 8).abs().max() < 1e-3 for step in moved)
