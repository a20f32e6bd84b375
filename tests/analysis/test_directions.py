"""The perturbations themselves: FGSM, PGD, noise, and the gradient that makes them."""

import torch
import torch.nn.functional as F
from torch import nn

from apart_fast.analysis.directions import fgsm_delta, input_gradient, noise_delta, pgd_delta

EPS = 8 / 255


class Linear(nn.Module):
    """Logits (0, w.x): the worst perturbation of class 0 is eps sign(w), wherever the image lies."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(3)))
        with torch.no_grad():
            self.w[0, 0, 0] = 0  # no gradient here

    def forward(self, x):
        return torch.stack([torch.zeros(len(x)), (x * self.w).sum((1, 2, 3))], 1)


def some_images(n=6):
    """[n, 4, 5, 3]; a third of the values near enough to 0 or 1 to be clipped."""
    return (torch.rand(n, 4, 5, 3, generator=torch.Generator().manual_seed(4)) * 1.4 - 0.2).clamp(0, 1)


def test_fgsm_and_pgd_reach_the_worst_corner_of_a_linear_model():
    model, x = Linear(), some_images()
    y = torch.arange(6) % 2
    side = torch.where(y == 0, 1.0, -1.0)[:, None, None, None]
    worst = (x + EPS * side * model.w.detach().permute(1, 2, 0).sign()).clamp(0, 1) - x
    for delta in (fgsm_delta(model, x, y, EPS), pgd_delta(model, x, y, EPS)):
        assert torch.allclose(delta, worst, atol=1e-6)
        assert (delta[:, 0, 0, 0] == 0).all()
    assert torch.allclose(pgd_delta(model, x, y, EPS, steps=1), worst.clamp(-EPS / 4, EPS / 4), atol=1e-6)


def test_the_gradient_of_an_image_depends_on_no_other_and_leaves_none_in_the_model():
    model, x, y = Linear(), some_images(), torch.zeros(6, dtype=torch.int64)
    together = input_gradient(model, x, y)
    assert torch.allclose(together[2:3], input_gradient(model, x[2:3], y[2:3]))
    leaf = x.clone().requires_grad_()
    F.cross_entropy(model(leaf.permute(0, 3, 1, 2)), y, reduction="sum").backward()
    assert torch.allclose(together, leaf.grad)
    fresh = Linear()
    input_gradient(fresh, x, y)
    assert fresh.w.grad is None and fresh.w.requires_grad and not x.requires_grad


def test_noise_is_eps_with_fair_signs_and_follows_its_generator():
    x = torch.full((20, 8, 8, 3), 0.5)
    draw, again = (noise_delta(x, EPS, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(draw, again) and not torch.equal(draw, noise_delta(x, EPS, torch.Generator().manual_seed(2)))
    assert torch.allclose(draw.abs(), torch.tensor(EPS), atol=1e-6) and abs(draw.sign().mean()) < 0.06
    parts = torch.Generator().manual_seed(1)
    assert torch.equal(draw, torch.cat([noise_delta(part, EPS, parts) for part in x.split(7)]))  # any batch size
    assert (noise_delta(torch.zeros(9, 8, 8, 3), EPS, torch.Generator()) >= 0).all()
