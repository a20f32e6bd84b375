"""What the checks train and load: a small network, and images drawn from a fixed seed."""

from pathlib import Path

import torch
from torch import Tensor, nn

from apart_fast.kernels import Crops
from apart_fast.loaders import Batch, Dataset, Split
from apart_fast.models import build_model
from apart_fast.step.apart import Apart

CLASSES, SIDE, PADDING = 10, 32, 4
EPS = 8 / 255
SHAPE = (SIDE, SIDE, 3)


def drawn_split(n: int, name: str = "drawn", cache: Path | None = None, seed: int = 0) -> Split:
    """`n` images of noise with labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, *SHAPE), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(n) % CLASSES, name, cache)


def drawn_data(n: int, cache: Path) -> Dataset:
    """A data set of `n` training and a tenth as many test images."""
    classes = [str(i) for i in range(CLASSES)]
    return Dataset("drawn", drawn_split(n, cache=cache), drawn_split(n // 10, cache=cache, seed=1), classes, True)


def drawn_batch(n: int, device: torch.device) -> Batch:
    """A batch of `n` with crops and flips."""
    split, generator = drawn_split(n), torch.Generator().manual_seed(2)
    offsets = torch.randint(0, 2 * PADDING + 1, (n, 2), generator=generator)
    flips = torch.rand(n, generator=generator) < 0.5
    rows = torch.arange(n)
    crops = Crops(*(t.to(device) for t in (rows, rows, offsets, flips)))
    return Batch(split.images.to(device), split.labels.to(device), crops)


def drawn_model(width: float, device: torch.device, dtype: torch.dtype = torch.float32) -> nn.Module:
    """PreActResNet-18 in training mode; always the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model("preact_resnet18", CLASSES, width=width)
    return model.to(device, dtype).to(memory_format=torch.channels_last)


def drawn_omega(n: int) -> Tensor:
    """float64 [n, H + 2p, W + 2p, C] in [-1, 1]."""
    generator = torch.Generator().manual_seed(3)
    side = SIDE + 2 * PADDING
    return torch.randn(n, side, side, 3, dtype=torch.float64, generator=generator).clamp_(-1, 1)


def drawn_apart(model: nn.Module, n: int, dtype: torch.dtype = torch.float32, amp: torch.dtype | None = None) -> Apart:
    """APART on `model` as after some training: omega and all step sizes differ from 0."""
    apart = Apart(model, n, SHAPE, padding=PADDING, eps=EPS, dtype=dtype, amp=amp, omega_dtype=dtype)
    assert apart.memory is not None
    apart.memory.contents().copy_(drawn_omega(n))
    apart.alpha, apart.alpha_omega = 1e-3, 1.2 * EPS
    apart.alpha_blocks = [1e-4] * len(apart.alpha_blocks)
    return apart
