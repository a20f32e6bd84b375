"""The gates: nothing is timed before it has given the right numbers. Each raises AssertionError."""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from apart_fast import Apart, build_model
from benchmarks.baselines import Released, plain_pgd
from benchmarks.steps import Floor, Setting, make_problem

H, W, C, PADDING, EPS, N = 12, 10, 3, 2, 0.031, 9


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """|a - b| / |b|."""
    return ((a - b).norm() / b.norm().clamp_min(1e-300)).item()


@dataclass
class Pair:
    """The engine and the released step on the same weights, data, memory and step sizes, and a tolerance."""

    apart: Apart
    released: Released
    images: torch.Tensor
    labels: torch.Tensor
    tolerance: float

    def step(self, indices: torch.Tensor, offsets: torch.Tensor, flips: torch.Tensor) -> dict[str, float]:
        """One step of both; the relative differences of all that it computes."""
        self.apart.model.zero_grad()
        sizes = torch.stack([s.detach() for s in self.released.step_sizes])
        result = self.apart.step(self.images[indices], self.labels[indices], indices, offsets=offsets, flips=flips)
        self.released.step(indices, offsets.tolist(), flips.tolist())
        new_sizes = torch.stack([s.detach() for s in self.released.step_sizes])
        differences = {
            "loss": relative(result.loss, self.released.loss),
            "start loss": relative(result.start_loss, self.released.start_loss),
            "correct": abs(result.correct.item() - self.released.correct),
            "omega": relative(self.apart.memory.store.permute(0, 3, 1, 2), self.released.omega),
            "step sizes": relative(self.apart.step_sizes - sizes, new_sizes - sizes),
        }
        mine, theirs = self.apart.model, self.released.model
        for (name, p), q in zip(mine.named_parameters(), theirs.parameters(), strict=True):
            differences[f"gradient of {name}"] = relative(p.grad, q.grad)
        for i, s in enumerate(self.released.step_sizes):  # their signs are turned round for the ascent
            differences[f"gradient of step size {i}"] = relative(self.apart.step_sizes.grad[i], -s.grad)
        for (name, p), q in zip(mine.named_buffers(), theirs.buffers(), strict=True):
            differences[name] = relative(p.double(), q.double())
        return differences


def make_pair(dtype: torch.dtype) -> Pair:
    """A network of width 8 with step sizes at which every clamp and mask is at work."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model("preact_resnet18", 5, image_size=(H, W), width=0.125).to(dtype)
    images = torch.randint(1, 255, (N, H, W, C), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 5, (N,), generator=generator)
    shared = dict(padding=PADDING, eps=EPS, eta=2e-6, decay=400.0, dtype=dtype)
    released = Released(
        copy.deepcopy(model).to(memory_format=torch.contiguous_format), images, labels, momentum=0.9, **shared
    )
    apart = Apart(model, N, (H, W, C), omega_dtype=dtype, **shared)
    apart.memory.store.uniform_(-1, 1, generator=generator)
    apart.alpha, apart.alpha_omega = 0.0123, 0.0347
    apart.alpha_blocks = torch.linspace(0.003, 0.02, len(apart.points), dtype=dtype)
    released.omega.copy_(apart.memory.store.permute(0, 3, 1, 2))
    with torch.no_grad():
        for mine, theirs in zip(apart.step_sizes, released.step_sizes, strict=True):
            theirs.copy_(mine)
    return Pair(apart, released, images, labels, {torch.float64: 1e-9, torch.float32: 2e-5}[dtype])


def check_released(dtype: torch.dtype = torch.float64, steps: int = 3) -> None:
    """The engine's APART step and the released one give the same numbers for `steps` steps."""
    pair, generator = make_pair(dtype), torch.Generator().manual_seed(1)
    for step in range(steps):
        indices = torch.randperm(N, generator=generator)[:4]
        offsets = torch.randint(0, 2 * PADDING + 1, (4, 2), generator=generator)
        flips = torch.rand(4, generator=generator) < 0.5
        for what, difference in pair.step(indices, offsets, flips).items():
            assert difference <= pair.tolerance, f"{what} differs by {difference:.2g} in step {step}"


def check_pgd(steps: int = 3) -> None:
    """The engine's PGD step gives the loss and the weight gradients of a plain one from the same start."""
    problem = make_problem(Setting(batch=4, width=0.0625, examples=8, amp=None))
    batch, mine, plain = problem.batches[0], problem.model().double(), problem.model().double()
    apart = Apart(mine, 8, batch.images.shape[1:], padding=4, eps=EPS, method=f"pgd-{steps}", dtype=torch.float64)
    plain_start = torch.Generator().set_state(apart.generator.get_state())
    offsets, flips = torch.full((4, 2), 4), torch.zeros(4, dtype=torch.bool)  # the image itself
    loss = apart.step(batch.images, batch.labels, offsets=offsets, flips=flips).loss
    x = batch.images.double() / 255
    start = (x + torch.empty_like(x).uniform_(-EPS, EPS, generator=plain_start)).clamp(0, 1)
    x, start = x.permute(0, 3, 1, 2), start.permute(0, 3, 1, 2)
    end = plain_pgd(plain, x, batch.labels, start, eps=EPS, step=2.5 / steps * EPS, steps=steps)
    plain.zero_grad()
    expected = F.cross_entropy(plain(end), batch.labels)
    expected.backward()
    assert relative(loss, expected.detach()) < 1e-9
    for p, q in zip(mine.parameters(), plain.parameters(), strict=True):
        assert relative(p.grad, q.grad) < 1e-9


def check_floor() -> None:
    """The bare passes compute input and weight gradients of the network, nothing less."""
    problem = make_problem(Setting(batch=4, width=0.0625, examples=8, amp=None))
    floor, model = Floor(problem), problem.model()
    floor.pass2()
    x = floor.pixels.permute(0, 3, 1, 2).clone().requires_grad_()
    F.cross_entropy(model(x), floor.labels).backward()
    assert relative(floor.pass1(), x.grad.permute(0, 2, 3, 1)) < 1e-5
    for p, q in zip(floor.parameters, model.parameters(), strict=True):
        assert p.grad is not None and relative(p.grad, q.grad) < 1e-5
