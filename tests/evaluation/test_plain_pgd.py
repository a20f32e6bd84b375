"""`evaluate` against PGD as everybody writes it, on a network that is not ours."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from apart_fast import evaluate

N, CLASSES = 300, 4


def plain_pgd(model, x, labels, eps, steps=20):
    """Number of images right at the last iterate; x [N, C, H, W] in [0, 1]."""
    point = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
    for _ in range(steps):
        point.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(point), labels), point)
        point = point.detach() + eps / 4 * gradient.sign()
        point = torch.minimum(torch.maximum(point, x - eps), x + eps).clamp(0, 1)
    return int((model(point).argmax(1) == labels).sum())


@pytest.fixture(scope="module")
def judged():
    """A small network of torch's own layers trained on faint patterns under noise: (network, images, labels)."""
    torch.manual_seed(0)
    patterns = F.interpolate(torch.randn(CLASSES, 3, 4, 4), size=12, mode="bilinear")
    labels = torch.arange(512 + N) % CLASSES
    pixels = 0.5 + 0.025 * patterns[labels] + 0.1 * torch.randn(len(labels), 3, 12, 12)
    images = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(144, CLASSES)),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(8):
        for rows in torch.randperm(512).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows] / 255), labels[rows]).backward()
            optimizer.step()
    return model.eval(), images[512:], labels[512:]


@pytest.mark.parametrize("eps", [0.5 / 255, 1 / 255, 8 / 255])
def test_evaluate_agrees_with_the_last_iterate_of_plain_pgd(judged, eps):
    model, images, labels = judged
    torch.manual_seed(1)
    plain = plain_pgd(model, images / 255, labels, eps)
    report = evaluate(model, images.permute(0, 2, 3, 1), labels, eps=eps, attacks=["clean", "pgd-20"], progress=False)
    clean, found = (report.attacks[name].correct for name in ("clean", "pgd-20"))
    assert abs(found - plain) <= 2
    assert clean > 0.75 * N and found < clean - 10 and (found > 0.3 * N or eps > 1 / 255)  # it falls bit by bit
