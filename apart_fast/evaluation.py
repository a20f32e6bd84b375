"""Accuracy of a model on clean and attacked images, with confidence intervals."""

import difflib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from apart_fast import attacks as _attacks
from apart_fast.errors import UserError
from apart_fast.units import parse_eps

_Z = 1.959963984540054  # two-sided 95 % of the normal distribution


def wilson(correct: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval (Wilson 1927) of the proportion correct / n, n >= 1."""
    p, shrink = correct / n, 1 + _Z**2 / n
    centre = (p + _Z**2 / (2 * n)) / shrink
    half = _Z / shrink * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    # rounding must not push the interval off the ends that it reaches exactly
    return (0.0 if correct == 0 else centre - half), (1.0 if correct == n else centre + half)


@dataclass(frozen=True)
class AttackResult:
    """Of `n` images `correct` were classified correctly under the attack; [low, high] is the 95 % Wilson interval."""

    accuracy: float
    correct: int
    n: int
    low: float
    high: float
    seconds: float


@dataclass(frozen=True)
class Report:
    """What `evaluate` found: settings, and for each attack's name a result. eps is a fraction of the pixel range."""

    n: int
    eps: float
    restarts: int
    seed: int
    batch_size: int
    amp: str | None
    device: str
    torch: str
    attacks: dict[str, AttackResult]

    def to_json(self) -> str:
        """The fields as a JSON object."""
        return json.dumps(asdict(self), indent=2)


def describe(report: dict) -> str:
    """One line for a report as a dictionary (`asdict`, or read from JSON): percentages, 95 % intervals in brackets."""
    return ", ".join(
        f"{name} {result['accuracy']:.1%} [{result['low']:.1%}, {result['high']:.1%}]"
        for name, result in report["attacks"].items()
    )


@dataclass(frozen=True)
class _Job:
    model: nn.Module
    images: Tensor
    labels: Tensor
    eps: float
    batch_size: int
    restarts: int
    seed: int
    device: torch.device
    amp: torch.dtype | None
    num_classes: int
    progress: bool

    def batches(self, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        """float32 NHWC images in [0, 1] and labels, on the device."""
        starts = range(0, len(self.images), self.batch_size)
        # None: only where somebody is watching a terminal
        for start in tqdm(starts, desc=name, unit="batch", leave=False, disable=None if self.progress else True):
            stop = start + self.batch_size
            images = self.images[start:stop].to(self.device, non_blocking=True)
            yield images.float().div(255), self.labels[start:stop].to(self.device, non_blocking=True)


def _count(job: _Job, name: str, attack: Callable[[Tensor, Tensor], Tensor]) -> int:
    correct = torch.zeros((), dtype=torch.int64, device=job.device)
    for images, labels in job.batches(name):
        with torch.autocast(job.device.type, job.amp) if job.amp else nullcontext():
            attacked = attack(images, labels)
        with torch.no_grad():  # judged in float32 whatever the attack ran in
            correct += _attacks.is_correct(_attacks.predict(job.model, attacked), labels).sum()
    return int(correct)


def _clean(job: _Job) -> int:
    return _count(job, "clean", lambda images, labels: images)


def _fgsm(job: _Job) -> int:
    def attack(images: Tensor, labels: Tensor) -> Tensor:
        return _attacks.pgd(job.model, images, labels, eps=job.eps, step=job.eps, steps=1, random_start=False)

    return _count(job, "fgsm", attack)


def _pgd(job: _Job, steps: int) -> int:
    generator = torch.Generator().manual_seed(job.seed)

    def attack(images: Tensor, labels: Tensor) -> Tensor:
        return _attacks.pgd(
            job.model,
            images,
            labels,
            eps=job.eps,
            step=job.eps / 4,
            steps=steps,
            restarts=job.restarts,
            generator=generator,
        )

    return _count(job, f"pgd-{steps}", attack)


def _autoattack(job: _Job) -> int:
    # all at once: it refills its batches with the images that are left; always in float32, as published numbers are
    robust = _attacks.autoattack(
        job.model,
        job.images.cpu().float().div(255),
        job.labels.cpu(),
        eps=job.eps,
        num_classes=job.num_classes,
        batch_size=job.batch_size,
        seed=job.seed,
        device=job.device,
    )
    return int(robust.sum())


# name -> (function, has a number of steps: "name-K")
ATTACKS: dict[str, tuple[Callable[..., int], bool]] = {
    "clean": (_clean, False),
    "fgsm": (_fgsm, False),
    "pgd": (_pgd, True),
    "autoattack": (_autoattack, False),
}


def parse_attack(name: str) -> Callable[[_Job], int]:
    """The attack that `name` means: "clean", "fgsm", "pgd-K" with K steps, or "autoattack".

    Raises:
        UserError: unknown name, or a number of steps that is missing, not positive, or not wanted.
    """
    base, dash, number = name.partition("-")
    if base not in ATTACKS:
        close = difflib.get_close_matches(base, ATTACKS, n=1)
        hint = f"did you mean {close[0]}?" if close else "known: clean, fgsm, pgd-K, autoattack"
        raise UserError(f"unknown attack {name!r}: {hint}")
    function, counted = ATTACKS[base]
    if not counted:
        if dash:
            raise UserError(f"attack {name!r}: {base} takes no number of steps")
        return function
    if not (number.isascii() and number.isdigit() and int(number) >= 1):
        raise UserError(f"attack {name!r}: write the number of steps like {base}-20")
    return lambda job: function(job, int(number))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """All modules in eval mode within; each one's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _reproducible() -> Iterator[None]:
    """Deterministic cuDNN in full float32 within (its default for convolutions is TF32)."""
    backends = torch.backends
    # conv and rnn together: torch refuses to read the common flag while they differ
    switches = [(backends.cudnn, "deterministic", True), (backends.cudnn, "benchmark", False)]
    switches += [(part, "fp32_precision", "ieee") for part in (backends.cudnn.conv, backends.cudnn.rnn)]
    before = [getattr(owner, name) for owner, name, _ in switches]
    matmul = torch.get_float32_matmul_precision()
    try:
        for owner, name, value in switches:
            setattr(owner, name, value)
        torch.set_float32_matmul_precision("highest")
        yield
    finally:
        for (owner, name, _), value in zip(switches, before, strict=True):
            setattr(owner, name, value)
        torch.set_float32_matmul_precision(matmul)


def _check(images: Tensor, labels: Tensor, batch_size: int, restarts: int, amp: torch.dtype | None) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[-1] not in (1, 3):
        raise UserError(
            f"evaluation needs uint8 images [N, H, W, 1 or 3], got {images.dtype} with shape {list(images.shape)}"
        )
    if len(images) == 0:
        raise UserError("there are no images to evaluate on")
    if labels.shape != (len(images),) or labels.is_floating_point():
        raise UserError(f"{len(images)} images need as many integer labels, got shape {list(labels.shape)}")
    if batch_size < 1 or restarts < 1:
        raise UserError(f"batch size and restarts must be at least 1, got {batch_size} and {restarts}")
    if amp not in (None, torch.bfloat16):
        raise UserError(f"amp {amp} is not possible here: use bfloat16 (input gradients underflow in float16) or none")


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: str | float = "8/255",
    attacks: Sequence[str] = ("clean", "pgd-20"),
    batch_size: int = 256,
    restarts: int = 1,
    seed: int = 0,
    device: torch.device | str | None = None,
    amp: torch.dtype | None = None,
    progress: bool = True,
) -> Report:
    """Accuracy of `model` under each of `attacks`, in the L-inf ball of radius eps.

    "pgd-K": K steps of eps / 4 (2/255 at 8/255) from `restarts` random starts; an image counts as fooled if any point
    on the way fools the model. "fgsm": one step of eps from the image. "autoattack": see `attacks.autoattack`.
    Repeated runs give identical numbers; the noise of an image does not depend on `batch_size`. The model is put in
    eval mode, and back as it was even after an exception.

    Args:
        model: takes NCHW float32 pixels in [0, 1] (normalisation inside) and gives logits.
        images: uint8 [N, H, W, C], C = 1 or 3, on any device; moved batch by batch.
        labels: integers [N].
        eps: "8/255", 0.031, "0.031".
        device: the model is moved there; None: where it is.
        amp: torch.bfloat16 makes fgsm and pgd in mixed precision; what is correct is still decided in float32, which is
            also what autoattack uses throughout.
        progress: a bar on stderr, if that is a terminal.

    Raises:
        UserError: an argument does not fit, an unknown attack, or pyautoattack is not installed.
    """
    radius = parse_eps(eps)
    jobs = {name: parse_attack(name) for name in attacks}
    _check(images, labels, batch_size, restarts, amp)
    parameter = next(model.parameters(), None)
    if device is None:
        device = torch.device("cpu") if parameter is None else parameter.device
    device = torch.device(device)
    model.to(device)
    labels = labels.long()
    results = {}
    with _evaluating(model), _reproducible():
        with torch.no_grad():
            num_classes = _attacks.predict(model, images[:1].to(device).float().div(255)).shape[1]
        low, high = labels.aminmax()
        if low < 0 or high >= num_classes:
            raise UserError(f"labels go from {int(low)} to {int(high)} but the model has {num_classes} classes")
        job = _Job(
            model, images, labels, radius, batch_size, restarts, seed, device, amp, num_classes, progress=progress
        )
        for name, run in jobs.items():
            start = time.perf_counter()
            correct = run(job)
            seconds = time.perf_counter() - start
            n = len(images)
            results[name] = AttackResult(correct / n, correct, n, *wilson(correct, n), seconds)
    return Report(
        n=len(images),
        eps=radius,
        restarts=restarts,
        seed=seed,
        batch_size=batch_size,
        amp=None if amp is None else str(amp).removeprefix("torch."),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        torch=torch.__version__,
        attacks=results,
    )
