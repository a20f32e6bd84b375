"""One whole step of `Apart` against autograd of the plain formulas of arXiv 2010.08034, written with loops."""

import copy

import pytest
import torch
import torch.nn.functional as F

from apart_fast import Apart, build_model
from apart_fast.step.optimizer import SGD
from apart_fast.step.schedules import Triangle

N, H, W, C, PAD, EPS = 11, 12, 10, 3, 2, 0.031
BATCHES = ((0, 3, 5, 7), (1, 2, 4, 6), (8, 9, 10))  # the last one is partial


def plain_forward(model, x, noises=None):
    """Logits and the activations that enter each block's first convolution; `noises` are added on that way only."""
    activations, out = [], model.conv1(x)
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in layer:
            a = F.relu(block.bn1(out))
            activations.append(a)
            shortcut = block.shortcut(out) if block.conv1.stride != (1, 1) or block.conv1.in_channels != (
                block.conv2.out_channels
            ) else out  # fmt: skip
            b = block.conv1(a if noises is None else a + noises[len(activations) - 1])
            out = block.conv2(F.relu(block.bn2(b))) + shortcut
    out = F.relu(model.bn(out)).mean((2, 3))
    return model.linear(out), activations


def crop(padded, offset, flip):
    """[C, H, W] of a padded [C, H + 2p, W + 2p]: the random crop, then the flip."""
    top, left = offset
    out = padded[:, top : top + H, left : left + W]
    return out.flip(2) if flip else out


def uncrop(into, values, offset, flip):
    """Write a crop back to where it came from."""
    top, left = offset
    into[:, top : top + H, left : left + W] = values.flip(2) if flip else values


class PlainApart:
    """Steps 1 to 7, with autograd for every gradient and a loop over the images; `tie` is added to pass 2's loss."""

    def __init__(self, model, omega, step_sizes, decay, eta, lr, weight_decay, tie=lambda z1, z0: 0):
        self.tie = tie
        self.model, self.omega = model, omega
        self.sizes = [s.clone().requires_grad_() for s in step_sizes]
        self.velocity = [torch.zeros_like(s) for s in self.sizes]
        self.decay, self.eta, self.lr, self.weight_decay = decay, eta, lr, weight_decay
        self.weight_velocity = [torch.zeros_like(p) for p in model.parameters()]

    def step(self, images, labels, indices, offsets, flips, height, momentum):
        dtype = self.omega.dtype
        x = torch.stack(
            [
                crop(F.pad(im.permute(2, 0, 1).to(dtype) / 255, (PAD,) * 4, value=0.5), o, f)
                for im, o, f in zip(images, offsets, flips, strict=True)
            ]
        )
        omega = torch.stack([crop(self.omega[i], o, f) for i, o, f in zip(indices, offsets, flips, strict=True)])
        alpha, alpha_omega, *alpha_b = self.sizes

        d0 = (alpha_omega * omega).clamp(-EPS, EPS)
        x0 = (x + d0).clamp(0, 1).detach().requires_grad_()
        z0, activations = plain_forward(self.model, x0)
        start_loss = F.cross_entropy(z0, labels)
        g0, *h = torch.autograd.grad(start_loss, [x0, *activations])
        d1 = (d0 + alpha * g0.sign()).clamp(-EPS, EPS)
        x1 = (x + d1).clamp(0, 1)
        x1.retain_grad()
        noises = [a * s.sign() for a, s in zip(alpha_b, h, strict=True)]
        logits, _ = plain_forward(self.model, x1, noises)
        loss = F.cross_entropy(logits, labels)
        self.model.zero_grad()
        for s in self.sizes:
            s.grad = None
        (loss + self.tie(logits, z0.detach())).backward()

        with torch.no_grad():
            moved = (omega + alpha / (alpha_omega + 1e-7) * x1.grad.sign()).clamp(-1, 1)
            for i, o, f, values in zip(indices, offsets, flips, moved, strict=True):
                uncrop(self.omega[i], values, o, f)
            self.size_grads = torch.stack([s.grad for s in self.sizes])
            for s, v in zip(self.sizes, self.velocity, strict=True):
                v.copy_(momentum * v - s.grad + self.decay * s)
                s -= self.eta * height * v
            self.weight_grads = [p.grad.clone() for p in self.model.parameters()]
            for p, v in zip(self.model.parameters(), self.weight_velocity, strict=True):
                v.copy_(momentum * v + p.grad + self.weight_decay * p)
                p -= self.lr * height * v
        return loss.detach(), start_loss.detach()


def relative(a, b):
    return ((a - b).norm() / b.norm().clamp_min(1e-300)).item()


def js(z1, z0):
    p, q = z1.softmax(1), z0.softmax(1)
    m = (p + q) / 2
    return ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2 / len(p)


TIES = {  # of a first epoch of 100
    "apart": lambda z1, z0: 0,
    "apart+mse": lambda z1, z0: 10 * ((z1 - z0) ** 2).mean(),
    "apart+js": lambda z1, z0: js(z1, z0),
}


def setting(dtype, decay, seed=0, method="apart"):
    torch.manual_seed(seed)
    model = build_model("preact_resnet18", 5, image_size=(H, W), width=0.125).to(dtype)
    apart = Apart(
        model, N, (H, W, C), padding=PAD, eps=EPS, eta=2e-6, decay=decay, dtype=dtype, omega_dtype=dtype, seed=seed,
        method=method,
    )  # fmt: skip
    # sizes at which every clamp and mask is at work, and no tie among the bounds
    apart.alpha, apart.alpha_omega = 0.0123, 0.0347
    apart.alpha_blocks = torch.linspace(0.003, 0.02, len(apart.points), dtype=dtype)
    apart.memory.store.uniform_(-1, 1, generator=apart.generator)
    plain = PlainApart(
        copy.deepcopy(model),
        apart.memory.store.permute(0, 3, 1, 2).clone(),
        apart.step_sizes,
        decay,
        eta=2e-6,
        lr=0.05,
        weight_decay=2e-4,
        tie=TIES[method],
    )
    images = torch.randint(1, 255, (N, H, W, C), dtype=torch.uint8)
    return model, apart, plain, images, torch.randint(0, 5, (N,))


def draw(batch, generator):
    offsets = torch.randint(0, 2 * PAD + 1, (len(batch), 2), generator=generator)
    return torch.tensor(batch), offsets, torch.rand(len(batch), generator=generator) < 0.5


@pytest.mark.parametrize(
    ("method", "decay"), [("apart", 400.0), ("apart", 1200.0), *((m, 1200.0) for m in [*TIES][1:])]
)
def test_eight_steps_agree_with_autograd_in_float64(method, decay):
    model, apart, plain, images, labels = setting(torch.float64, decay, method=method)
    optimizer = SGD(model.parameters(), lr=0.05, weight_decay=2e-4)
    triangle, generator = Triangle(8), torch.Generator().manual_seed(1)
    for step in range(8):
        indices, offsets, flips = draw(BATCHES[step % 3], generator)
        height, momentum = triangle.at(step + 1)
        apart.set_rates(2e-6 * height, momentum)
        optimizer.set(0.05 * height, momentum)
        optimizer.zero_grad()
        result = apart.step(images[indices], labels[indices], indices, offsets=offsets, flips=flips)
        weight_grads = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
        loss, start_loss = plain.step(images[indices], labels[indices], indices, offsets, flips, height, momentum)

        assert relative(result.loss, loss) < 1e-9
        assert relative(result.start_loss, start_loss) < 1e-9
        for mine, theirs in zip(weight_grads, plain.weight_grads, strict=True):
            assert relative(mine, theirs) < 1e-9
        for i in range(len(apart.step_sizes)):
            assert relative(apart.step_sizes.grad[i], plain.size_grads[i]) < 1e-9, f"gradient of step size {i}"
            assert relative(apart.step_sizes[i], plain.sizes[i]) < 1e-9, f"step size {i}"
        assert relative(apart.memory.store.permute(0, 3, 1, 2), plain.omega) < 1e-9
    for mine, theirs in zip(model.state_dict().values(), plain.model.state_dict().values(), strict=True):
        assert relative(mine.double(), theirs.double()) < 1e-9  # weights, and both passes in the running statistics
    sizes, start = apart.step_sizes, torch.tensor([0.0123, 0.0347])
    assert (sizes[:2] - start).abs().min() > 1e-6  # they did move


def test_one_step_agrees_in_float32():
    model, apart, plain, images, labels = setting(torch.float32, 1200.0, seed=3)
    indices, offsets, flips = draw(BATCHES[0], torch.Generator().manual_seed(2))
    result = apart.step(images[indices], labels[indices], indices, offsets=offsets, flips=flips)
    loss, start_loss = plain.step(images[indices], labels[indices], indices, offsets, flips, 1.0, 0.9)
    assert relative(result.loss, loss) < 1e-5
    assert relative(result.start_loss, start_loss) < 1e-5
    for mine, theirs in zip(model.parameters(), plain.weight_grads, strict=True):
        assert relative(mine.grad, theirs) < 1e-5
    for i in range(len(apart.step_sizes)):
        assert relative(apart.step_sizes.grad[i], plain.size_grads[i]) < 1e-5
    assert relative(apart.memory.store.permute(0, 3, 1, 2), plain.omega) < 1e-5


def test_no_weight_gradients_in_pass_1_and_five_passes_in_all(monkeypatch):
    """The step costs 2 forwards, 2 data-backwards and 1 weight-backward: pass 1 runs with frozen weights."""
    model, apart, _, images, labels = setting(torch.float32, 1200.0)
    frozen = []
    model.conv1.register_forward_hook(lambda m, i, o: frozen.append(not m.weight.requires_grad))
    indices = torch.arange(4)
    apart.step(images[:4], labels[:4], indices)
    assert frozen == [True, False]
    assert all(p.grad is not None and p.requires_grad for p in model.parameters())


def test_gradients_accumulate_as_in_any_torch_loop():
    model, apart, _, images, labels = setting(torch.float64, 1200.0)
    model.linear.weight.grad = torch.ones_like(model.linear.weight)
    other = copy.deepcopy(model)
    where = dict(offsets=torch.zeros(4, 2, dtype=torch.int64), flips=torch.zeros(4, dtype=torch.bool))
    store, sizes = apart.memory.store.clone(), apart.step_sizes.clone()
    apart.step(images[:4], labels[:4], torch.arange(4), **where)
    again = Apart(other, N, (H, W, C), padding=PAD, eps=EPS, dtype=torch.float64)
    again.memory.store.copy_(store)
    again.step_sizes.copy_(sizes)
    other.zero_grad()
    again.step(images[:4], labels[:4], torch.arange(4), **where)
    assert relative(model.linear.weight.grad - 1, other.linear.weight.grad) < 1e-9
