"""A small trained network and its images, so that PGD-20 meets both images that hold and images that fall."""

from dataclasses import dataclass

import torch

from apart_fast import Apart, build_model
from apart_fast.step.optimizer import SGD
from benchmarks.steps import CLASSES, C, H, W


@dataclass(frozen=True)
class Judged:
    """model: in eval mode; images uint8 [N, H, W, C]; labels int64 [N]."""

    model: torch.nn.Module
    images: torch.Tensor
    labels: torch.Tensor


def draw(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of a pattern for each class, more or less strong, on noise: some hold against eps 8/255, some fall."""
    patterns = torch.randn(CLASSES, 4, 4, C, generator=torch.Generator().manual_seed(0)).sign()
    patterns = patterns.repeat_interleave(H // 4, 1).repeat_interleave(W // 4, 2)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    strength = 40 * torch.rand(n, 1, 1, 1, generator=generator)
    noise = 20 * torch.randn(n, H, W, C, generator=generator)
    return (128 + strength * patterns[labels] + noise).round().clamp(0, 255).to(torch.uint8), labels


def train_small(n: int, width: float, device: str, steps: int = 40) -> Judged:
    """PreActResNet-18 after some steps of FGSM-RS, and `n` images that it has not seen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model("preact_resnet18", CLASSES, width=width).to(device)
    apart = Apart(model, 128, (H, W, C), eps="8/255", method="fgsm-rs", padding=0, flip=False)
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(steps):
        images, labels = draw(128, seed=2 + step)
        optimizer.zero_grad()
        apart.step(images.to(device), labels.to(device))
        optimizer.step()
    return Judged(model.eval(), *draw(n, seed=1))
