"""Each kernel at a size at which its memory traffic counts, and the bytes that it has to move."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apart_fast.kernels.crop import Crops

H, W, C, P, EPS = 32, 32, 3, 4, 8 / 255
POINT = (64, 32, 32)  # activations of an image at a block point


@dataclass(frozen=True)
class Workload:
    """Arguments of a kernel, and the bytes it has to move (its docstring says how many an element)."""

    args: tuple
    bytes: int
    options: dict[str, Any]


class Maker:
    """Random tensors of one batch on a device.

    Args:
        batch: images; `point_batch`: images at a block point.
    """

    def __init__(self, device: torch.device | str, batch: int, point_batch: int):
        self.device, self.batch, self.point_batch = device, batch, point_batch
        self.pixels = batch * H * W * C
        self.point_values = point_batch * POINT[0] * POINT[1] * POINT[2]

    def generator(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(0)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, device=self.device, generator=self.generator()).to(dtype)

    def scalar(self, value: float) -> Tensor:
        return torch.tensor(value, device=self.device)

    def images(self) -> Tensor:
        return torch.rand(self.batch, H, W, C, device=self.device, generator=self.generator())

    def gradient(self) -> Tensor:
        return self.normal(self.batch, H, W, C)

    def crops(self) -> Crops:
        generator, n = self.generator(), self.batch
        offsets = torch.randint(0, 2 * P + 1, (n, 2), device=self.device, generator=generator)
        flips = torch.rand(n, device=self.device, generator=generator) < 0.5
        indices = torch.randperm(n, device=self.device, generator=generator)
        return Crops(indices, indices, offsets, flips)

    def store(self) -> Tensor:
        return self.normal(self.batch, H + 2 * P, W + 2 * P, C).clamp(-1, 1).half()

    def code(self) -> Tensor:
        shape = (self.batch, H, W, C)
        return torch.randint(-1, 6, shape, dtype=torch.int8, device=self.device, generator=self.generator())

    def activation(self, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return self.normal(self.point_batch, *POINT, dtype=dtype).to(memory_format=torch.channels_last)

    def signs(self) -> Tensor:
        return self.activation().sign().to(torch.int8)


def _start(m: Maker) -> Workload:
    images = (m.images() * 255).to(torch.uint8)
    memory = dict(store=m.store(), scale=m.scalar(0.01), eps=EPS)
    return Workload((images, m.crops(), P), m.pixels * (1 + 2 + 12), memory)


def _learned_step(m: Maker) -> Workload:
    return Workload((m.images(), 0.01 * m.gradient(), m.gradient(), m.scalar(0.01), EPS), m.pixels * 17, {})


def _update_omega(m: Maker) -> Workload:
    sizes = dict(padding=P, alpha=m.scalar(0.01), alpha_omega=m.scalar(0.01), eps=EPS)
    return Workload((m.gradient(), m.code(), m.store(), m.crops()), m.pixels * (4 + 1 + 2 * 2), sizes)


def _projected_step(m: Maker) -> Workload:
    x = m.images()
    return Workload((x, x.clone(), m.gradient(), 2 / 255, EPS), m.pixels * 16, {})


def _update(m: Maker) -> Workload:
    sizes = [m.point_values // 8 // 2**k for k in range(1, 9)]  # of unlike size, as those of a network are
    params, grads, velocities, averages = ([m.normal(n) for n in sizes] for _ in range(4))
    numbers = dict(lr=m.scalar(0.1), momentum=m.scalar(0.9), rate=m.scalar(0.001), weight_decay=2e-4)
    return Workload((params, grads, velocities, averages), sum(sizes) * 28, numbers)


WORKLOADS: dict[str, Callable[[Maker], Workload]] = {
    "start": _start,
    "learned_step": _learned_step,
    "update_omega": _update_omega,
    "capture_sign": lambda m: Workload((m.activation(),), m.point_values * 3, {}),
    "add_sign": lambda m: Workload((m.activation(), m.signs(), m.scalar(0.01)), m.point_values * 5, {}),
    "sign_dot": lambda m: Workload((m.activation(), m.signs()), m.point_values * 3, {}),
    "relu_capture_sign": lambda m: Workload((m.activation(), m.activation().flip(0)), m.point_values * 7, {}),
    "relu_add_sign": lambda m: Workload((m.activation(), m.signs(), m.scalar(0.01)), m.point_values * 5, {}),
    "relu_sign_dot": lambda m: Workload((m.activation(), m.activation().flip(0), m.signs()), m.point_values * 7, {}),
    "projected_step": _projected_step,
    "update": _update,
}
