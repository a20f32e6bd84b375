"""Attacks for evaluation: PGD, and AutoAttack through an optional package. Images are NHWC, pixels in [0, 1]."""

import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apart_fast.errors import UserError
from apart_fast.kernels import projected_step


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Logits [B, classes] (at least float32) of NHWC images [B, H, W, C]."""
    logits = model(images.permute(0, 3, 1, 2))
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def is_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """[B] bool: the largest of [B, classes] logits is the label's; a NaN among them counts as wrong."""
    top, index = logits.max(1)  # max hands on NaN
    return (index == labels) & ~top.isnan()


def _noise(seeds: Tensor, restart: int, shape: tuple[int, ...], eps: float) -> Tensor:
    """uniform(-eps, eps) float32 on the CPU, [len(seeds), *shape]; each image draws from its own seed."""
    generator = torch.Generator()
    noise = torch.empty(len(seeds), *shape)
    for row, seed in zip(noise, seeds.tolist(), strict=True):
        row.uniform_(-eps, eps, generator=generator.manual_seed(seed + restart))
    return noise


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    step: float,
    steps: int,
    restarts: int = 1,
    random_start: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Projected gradient descent in the L-inf ball (Madry et al., arXiv 1706.06083, section 2.1).

    Kept for each image: the clean image if the model already gets it wrong, else the first point visited (the start
    included) that fools the model, else the end of the last restart. Only images that are not yet fooled go into the
    next restart. Asks for input gradients only: nothing of the model changes.

    Args:
        model: takes NCHW, in eval mode, on the device of `images`.
        images: float [B, H, W, C] in [0, 1].
        labels: int64 [B].
        eps, step: radius of the ball and length of a step, fractions of the pixel range.
        steps: gradient steps in each restart, at least 1.
        restarts: independent starts, at least 1; without a random start they are all the same, so 1.
        random_start: start from uniform(-eps, eps), clipped to [0, 1], instead of from the image.
        generator: on the CPU; one number for each image is drawn from it, in order, so that an image's noise depends
            neither on the batch size nor on the other images.

    Returns:
        like `images`: within eps of them and in [0, 1].

    Raises:
        UserError: a module of the model is in training mode, or an argument does not fit.
    """
    if any(module.training for module in model.modules()):
        raise UserError("the model is in training mode: call model.eval() before an attack")
    if not images.is_floating_point() or images.dim() != 4:
        raise UserError(f"pgd needs float images [B, H, W, C], got {images.dtype} with shape {list(images.shape)}")
    if not (eps >= 0 and step >= 0):
        raise UserError(f"pgd needs eps and step >= 0, got {eps} and {step}")
    if steps < 1 or restarts < 1:
        raise UserError(f"pgd needs at least 1 step and 1 restart, got {steps} and {restarts}")
    if restarts > 1 and not random_start:
        raise UserError("restarts without a random start are all the same: use 1 restart")
    if len(images) == 0:
        return images.clone()
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):
        raise UserError(f"pixels must lie in [0, 1], got [{low:.3g}, {high:.3g}]: normalise inside the model")

    seeds = torch.randint(2**62, (len(images),), generator=generator)
    adversarial = images.detach().clone(memory_format=torch.contiguous_format)
    with torch.no_grad():
        active = is_correct(predict(model, adversarial), labels).nonzero().squeeze(1)
    for restart in range(restarts):
        if len(active) == 0:
            break
        x, y = images.detach()[active].contiguous(), labels[active]
        xk = x
        if random_start:
            noise = _noise(seeds[active.cpu()], restart, x.shape[1:], eps)
            xk = (x + noise.to(x)).clamp(0, 1)
        found, fooled = _run(model, x, xk, y, step, steps, eps)
        adversarial[active] = found
        active = active[~fooled]
    return adversarial


def _run(model: nn.Module, x: Tensor, xk: Tensor, y: Tensor, step: float, steps: int, eps: float):
    """One restart from `xk`: (first fooling point or else the last one, fooled [B]); no control flow on data."""
    found, fooled = xk, torch.zeros_like(y, dtype=torch.bool)
    for _ in range(steps):
        xk = xk.detach().requires_grad_()
        with torch.enable_grad():
            logits = predict(model, xk)
            # a sum: the gradient of an image does not shrink with the batch
            loss = F.cross_entropy(logits, y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, xk)
        fooled = fooled | ~is_correct(logits.detach(), y)
        moved = projected_step(x, xk.detach(), gradient.contiguous(), step, eps)
        found = torch.where(fooled[:, None, None, None], found, moved)
        xk = moved
    with torch.no_grad():
        fooled = fooled | ~is_correct(predict(model, xk), y)
    return found, fooled


def autoattack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    num_classes: int,
    batch_size: int,
    seed: int,
    device: torch.device,
) -> Tensor:
    """AutoAttack, version "standard" (Croce & Hein, arXiv 2003.01690), through the package pyautoattack.

    The targeted attacks have min(9, num_classes - 1) targets. The targeted DLR loss needs 4 classes and the DLR loss
    3, so with 3 classes `apgd-dlr` stands in for `apgd-t`, and with 2 classes there is neither.

    Args:
        model: takes NCHW, in eval mode.
        images: float32 [N, H, W, C] in [0, 1], on any device; batches are moved to `device`.
        labels: int64 [N], on the device of `images`.
        eps: radius of the L-inf ball, fraction of the pixel range.
        num_classes: number of logits.
        device: where the model is.

    Returns:
        bool [N]: still classified correctly after all attacks.

    Raises:
        UserError: pyautoattack is not installed, or the model is in training mode.
    """
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise UserError("AutoAttack needs the package pyautoattack: pip install 'apart_fast[autoattack]'") from error
    if any(module.training for module in model.modules()):
        raise UserError("the model is in training mode: call model.eval() before an attack")
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    tracer = sys.gettrace()
    try:
        for parameter in frozen:  # its FAB calls backward(), which would leave gradients in the parameters
            parameter.requires_grad_(False)
        # it seeds torch's global generators
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            attack = AutoAttack(model, eps=eps, device=device, seed=seed, version="standard")
            targeted = {2: [], 3: ["apgd-dlr"]}.get(num_classes, ["apgd-t"])
            attack.attacks_to_run = ["apgd-ce", *targeted, "fab-t", "square"]
            attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(9, num_classes - 1)
            # its view() calls need plain NCHW
            nchw = images.permute(0, 3, 1, 2).contiguous()
            _, predictions = attack.run_standard_evaluation(nchw, labels, batch_size=batch_size)
    finally:
        sys.settrace(tracer)  # its check for dynamic defences switches tracing off
        for parameter in frozen:
            parameter.requires_grad_(True)
    return predictions == labels
