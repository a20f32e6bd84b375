"""The gradients of one network on a set of images: their norms, how far they agree, and what they are worth."""

import copy
from collections.abc import Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apart_fast.analysis.directions import fgsm_delta, input_gradient, pgd_delta
from apart_fast.errors import UserError
from apart_fast.evaluation.attacks import predict
from apart_fast.evaluation.gradient import without_gradient
from apart_fast.models.channels_last import OwnPixels
from apart_fast.models.default_points import default_points
from apart_fast.models.modes import frozen
from apart_fast.step.points import BlockPoints, match_points

PGD_STEPS = 20


def block_points(model: nn.Module, patterns: Sequence[str] | None) -> list[tuple[str, str]]:
    """(submodule, input | output) of these patterns, or of those that APART would take; none where it knows no blocks.

    Raises:
        UserError: a pattern that fits nothing.
    """
    inner = _inside(model)
    if patterns is not None:
        return match_points(inner, patterns)
    try:
        return match_points(inner, default_points(inner))
    except UserError:
        return []


def _inside(model: nn.Module) -> nn.Module:
    """The network whose submodules have the names that it was built with."""
    return model.model if isinstance(model, OwnPixels) else model


def gradient_norms(
    model: nn.Module, images: Tensor, labels: Tensor, points: Sequence[tuple[str, str]]
) -> tuple[Tensor, Tensor]:
    """L2 norms of the gradients of the summed cross-entropy, as the model is (eval or training mode).

    Args:
        model: takes NCHW, pixels in [0, 1]; nothing of it changes but running statistics in training mode, where the
            gradient at an image also holds its part in the batch's statistics.
        images: float [B, H, W, C] in [0, 1].
        labels: int64 [B].
        points: (submodule, input | output), see `apart_fast.step.points.match_points`.

    Returns:
        [B] at the input, and [B, len(points)] at the points: of what goes into the submodule only, without the part of
        a shortcut, as APART's h_b.

    Raises:
        UserError: a point at which there is no gradient, or more than one.
    """
    leaf = images.detach().clone().requires_grad_()
    found: list[Tensor | None] = []
    with ExitStack() as stack:
        stack.enter_context(frozen(model))
        stack.enter_context(torch.enable_grad())
        if points:
            blocks = BlockPoints(_inside(model), [f"{name}:{side}" for name, side in points], keep=_norms)
            stack.callback(blocks.remove)
            found = stack.enter_context(blocks.capturing())
        loss = F.cross_entropy(predict(model, leaf), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
    at_input = _norms(gradient)
    norms = [norm for norm in found if norm is not None]
    return at_input, torch.stack(norms, dim=1) if norms else at_input.new_empty(len(images), 0)


def _norms(gradient: Tensor) -> Tensor:
    """L2 norms of the rows of [B, ...], float64 [B]."""
    return gradient.flatten(1).double().norm(dim=1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """float64 [B]: cosine of the flattened rows of [B, ...]; NaN where one of them is zero."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def _losses(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(predict(model, images), labels, reduction="none")


def alignment(model: nn.Module, images: Tensor, labels: Tensor, noise: Tensor, eps: float) -> dict[str, Tensor]:
    """How far one gradient tells what PGD-20 finds, for each image: dictionary of [B].

    `fgsm_pgd_cosine`: between the perturbations of FGSM and PGD-20 from the image, without a random start.
    `gradient_alignment`: between the gradients at x and at x + noise, the measure of GradAlign (Andriushchenko &
    Flammarion, arXiv 2007.02617, eq. 5, as a cosine, not one minus it).
    `fgsm_gain`, `pgd_gain`: cross-entropy at x + delta less that at x.
    `no_gradient`: 1 where the gradient at x is not finite or zero everywhere, else 0; such images have no cosine.

    Args:
        model: in eval mode.
        images, noise: float [B, H, W, C]; images in [0, 1], noise from uniform(-eps, eps), added without clipping.
        labels: int64 [B].
    """
    fgsm = fgsm_delta(model, images, labels, eps)
    pgd = pgd_delta(model, images, labels, eps, PGD_STEPS)
    here, beside = (input_gradient(model, x, labels) for x in (images, images + noise))
    clean = _losses(model, images, labels)
    return {
        "fgsm_pgd_cosine": cosine(fgsm, pgd),
        "gradient_alignment": cosine(here, beside),
        "fgsm_gain": _losses(model, images + fgsm, labels) - clean,
        "pgd_gain": _losses(model, images + pgd, labels) - clean,
        "no_gradient": without_gradient(here),
    }


def measure_network(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    points: Sequence[tuple[str, str]],
    *,
    eps: float,
    batch_size: int,
    seed: int,
) -> dict:
    """Means over the images of `alignment` (eval mode) and `gradient_norms` (BatchNorm on batch statistics).

    Args:
        model: in eval mode; it stays as it is.
        images: float [N, H, W, C] in [0, 1], on the model's device.
        batch_size: at most so many images at a time, in batches of nearly equal size.
        seed: of GradAlign's noise; an image's noise does not depend on the batch size.

    Returns:
        the keys of `alignment` and `input_gradient`: numbers, NaN where no image has one; `blocks`: a number for each
        point.
    """
    noise = torch.empty(images.shape).uniform_(-eps, eps, generator=torch.Generator().manual_seed(seed)).to(images)
    training = copy.deepcopy(model).train()
    found: dict[str, list[Tensor]] = {}
    # equal parts: a rest of one image has no batch statistics
    parts = (t.tensor_split(-(-len(images) // batch_size)) for t in (images, labels, noise))
    for x, y, eta in zip(*parts, strict=True):
        values = alignment(model, x, y, eta, eps)
        values["input_gradient"], values["blocks"] = gradient_norms(training, x, y, points)
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: torch.cat(values).double().nanmean(0).tolist() for name, values in found.items()}
