"""Accuracy of a model on clean and attacked images, with confidence intervals."""

import difflib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from apart_fast.errors import UserError
from apart_fast.evaluation import attacks as _attacks
from apart_fast.evaluation.autoattack import autoattack
from apart_fast.models.channels_last import any_layout
from apart_fast.models.folding import Folded
from apart_fast.models.modes import evaluating
from apart_fast.precision import float32_as
from apart_fast.units import parse_eps

Z_95 = 1.959963984540054  # two-sided 95 % of the normal distribution
_CHUNK_VALUES = 2**25  # pixel values attacked together (128 MiB in float32): the test set of CIFAR in one go


def wilson(correct: float, n: int) -> tuple[float, float]:
    """95 % Wilson score interval (Wilson 1927) of the proportion correct / n, n >= 1."""
    p, shrink = correct / n, 1 + Z_95**2 / n
    centre = (p + Z_95**2 / (2 * n)) / shrink
    half = Z_95 / shrink * math.sqrt(p * (1 - p) / n + Z_95**2 / (4 * n**2))
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
    attacked: "_Attacked"

    def load(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """float32 NHWC images in [0, 1] and labels, on the device."""
        images = self.images[rows].to(self.device, non_blocking=True)
        return images.float().div(255), self.labels[rows].to(self.device, non_blocking=True)

    def bar(self, total: int, name: str, unit: str) -> tqdm:
        # None: only where somebody is watching a terminal
        disable = None if self.progress else True
        return tqdm(total=total, desc=name, unit=unit, unit_scale=True, leave=False, disable=disable)

    @cached_property
    def right(self) -> Tensor:
        """int64 on the CPU: rows of the images that the model gets right; the others need no attack."""
        parts = []
        with self.bar(len(self.images), "clean", "img") as bar:
            for start in range(0, len(self.images), self.batch_size):
                images, labels = self.load(slice(start, start + self.batch_size))
                parts.append(_attacks.correct(self.model, images, labels, self.batch_size))
                bar.update(len(labels))
        return torch.cat(parts).nonzero().squeeze(1).cpu()

    @cached_property
    def folded(self) -> nn.Module:
        """What the gradient attacks attack: the same function as the model within rounding, for less."""
        sample, _ = self.load(slice(0, 2))
        return self.attacked.folded_like(self.model, sample.permute(0, 3, 1, 2), self.amp)


class _Attacked:
    """What gradient attacks on one network need and the next evaluation can take again.

    Attributes:
        steps: captured steps against the folded copy.
        exact_steps: against the network itself, for the few images of which only its own precision can tell.
    """

    def __init__(self, calls: int):
        self.steps = _attacks.KeptSteps(calls)
        self.exact_steps = _attacks.KeptSteps(calls)
        self._folded: Folded | None = None

    def folded_like(self, network: nn.Module, sample: Tensor, amp: torch.dtype | None) -> nn.Module:
        """The folded copy, with the weights that the network has now."""
        if self._folded is None:
            self._folded = Folded(network, sample, amp)
        else:
            self._folded.refresh()
        return self._folded.network


def _clean(job: _Job) -> int:
    return len(job.right)


def _gradient_attack(job: _Job, name: str, *, steps: int, step: float, restarts: int, random_start: bool) -> int:
    """Number of images that stand; judged by the model itself in float32, whatever was attacked in what precision."""
    seeds = _attacks.draw_seeds(len(job.images), torch.Generator().manual_seed(job.seed)) if random_start else None
    settings: dict[str, Any] = dict(eps=job.eps, step=step, steps=steps, restarts=restarts, batch_size=job.batch_size)
    chunk = max(1, _CHUNK_VALUES // (job.images[0].numel() * job.batch_size)) * job.batch_size
    correct = 0
    with job.bar(len(job.right) * steps * restarts, name, "step") as bar:
        for rows in job.right.split(chunk):
            images, labels = job.load(rows)
            mine = None if seeds is None else seeds[rows]
            # without its cache: cast weights in it would be freed before a graph that reads them
            autocast = torch.autocast(job.device.type, job.amp, cache_enabled=False) if job.amp else nullcontext()
            with autocast:
                found, fooled = _attacks.search(
                    job.folded, images, labels, seeds=mine, progress=bar.update, kept=job.attacked.steps, **settings
                )
            stands = _attacks.correct(job.model, found, labels, job.batch_size)
            # the search stopped early where only its rounding was fooled: those are searched without it
            doubtful = (stands & fooled).nonzero().squeeze(1)
            if len(doubtful):
                images, labels = images[doubtful], labels[doubtful]
                mine = None if mine is None else mine[doubtful.cpu()]
                found, _ = _attacks.search(
                    job.model, images, labels, seeds=mine, kept=job.attacked.exact_steps, **settings
                )
                stands[doubtful] = _attacks.correct(job.model, found, labels, job.batch_size)
            correct += int(stands.sum())
    return correct


def _fgsm(job: _Job) -> int:
    return _gradient_attack(job, "fgsm", steps=1, step=job.eps, restarts=1, random_start=False)


def _pgd(job: _Job, steps: int) -> int:
    return _gradient_attack(
        job, f"pgd-{steps}", steps=steps, step=job.eps / 4, restarts=job.restarts, random_start=True
    )


def _autoattack(job: _Job) -> int:
    # all at once: it refills its batches with the images that are left; always in float32, as published numbers are
    robust = autoattack(
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
def reproducible() -> Iterator[None]:
    """Deterministic cuDNN in full float32 within (its default for convolutions is TF32)."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    try:
        cudnn.deterministic, cudnn.benchmark = True, False
        with float32_as("ieee"):
            yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


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
    on the way fools the model. "fgsm": one step of eps from the image. "autoattack": see `autoattack.autoattack`.
    Repeated runs give identical numbers; the noise of an image does not depend on `batch_size`. The model is put in
    eval mode, and back as it was even after an exception.

    fgsm and pgd attack a folded copy (see `apart_fast.models.folding`), only images that the model gets right, and no
    image further than the point that fools it; the model itself has the last word on every image.

    Args:
        model: takes NCHW float32 pixels in [0, 1] (normalisation inside) and gives logits.
        images: uint8 [N, H, W, C], C = 1 or 3, on any device; moved in parts of at most 128 MiB in float32.
        labels: integers [N].
        eps: "8/255", 0.031, "0.031".
        device: the model is moved there; None: where it is.
        amp: torch.bfloat16 makes fgsm and pgd in mixed precision; what is correct is still decided in float32, which is
            also what autoattack uses throughout.
        progress: a bar on stderr, if that is a terminal.

    Raises:
        UserError: an argument does not fit, an unknown attack, or pyautoattack is not installed.
    """
    evaluator = Evaluator(
        model, eps=eps, batch_size=batch_size, restarts=restarts, seed=seed, device=device, amp=amp, calls=1
    )
    return evaluator(images, labels, attacks, progress=progress)


class Evaluator:
    """`evaluate` for one model again and again, as a training does it: the same numbers, and what the model's weights
    do not change is made once. That is the folded copy, into which the weights of the moment are written at each call,
    and on a GPU the CUDA graphs of the attacks, with their memory (activations of one batch).

    Args:
        calls: about how many calls there will be: a graph is captured where it pays by then.

    The other arguments are those of `evaluate`. The model may change its weights between calls, not its layers.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        eps: str | float,
        batch_size: int,
        restarts: int = 1,
        seed: int = 0,
        device: torch.device | str | None = None,
        amp: torch.dtype | None = None,
        calls: int = 1,
    ):
        self._model, self._eps = model, parse_eps(eps)
        self._batch_size, self._restarts, self._seed, self._amp = batch_size, restarts, seed, amp
        self._device, self._calls = device, calls
        self._place: list[int] = []  # where the weights lay when what is kept was made
        self._network, self._num_classes, self._attacked = model, 0, _Attacked(calls)

    def __call__(self, images: Tensor, labels: Tensor, attacks: Sequence[str], *, progress: bool = False) -> Report:
        """See `evaluate`, which also says what is refused."""
        jobs = {name: parse_attack(name) for name in attacks}
        _check(images, labels, self._batch_size, self._restarts, self._amp)
        parameter = next(self._model.parameters(), None)
        device = self._device
        if device is None:
            device = torch.device("cpu") if parameter is None else parameter.device
        device = torch.device(device)
        self._model.to(device)
        labels = labels.long()
        results = {}
        with evaluating(self._model), reproducible():
            self._prepare(images, device)
            low, high = labels.aminmax()
            if low < 0 or high >= self._num_classes:
                raise UserError(
                    f"labels go from {int(low)} to {int(high)} but the model has {self._num_classes} classes"
                )
            if self._calls > 1:  # how many of them are right, and so attacked, changes from call to call
                self._attacked.steps.room = len(images)
            job = _Job(
                model=self._network,
                images=images,
                labels=labels,
                eps=self._eps,
                batch_size=self._batch_size,
                restarts=self._restarts,
                seed=self._seed,
                device=device,
                amp=self._amp,
                num_classes=self._num_classes,
                progress=progress,
                attacked=self._attacked,
            )
            for name, run in jobs.items():
                start = time.perf_counter()
                correct = run(job)
                seconds = time.perf_counter() - start
                n = len(images)
                results[name] = AttackResult(correct / n, correct, n, *wilson(correct, n), seconds)
        return Report(
            n=len(images),
            eps=self._eps,
            restarts=self._restarts,
            seed=self._seed,
            batch_size=self._batch_size,
            amp=None if self._amp is None else str(self._amp).removeprefix("torch."),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            torch=torch.__version__,
            attacks=results,
        )

    def _prepare(self, images: Tensor, device: torch.device) -> None:
        """Look at the network, unless that was done for it as it lies there."""
        place = [t.data_ptr() for t in (*self._model.parameters(), *self._model.buffers())]
        if self._num_classes and place == self._place:
            return
        sample = images[:2].to(device).float().div(255)
        self._network = any_layout(self._model, sample.permute(0, 3, 1, 2))
        with torch.no_grad():
            self._num_classes = _attacks.predict(self._network, sample).shape[1]
        self._attacked = _Attacked(self._calls)  # a graph of before would read memory given back
        # once more: a network that takes no channels-last pixels was laid out anew
        self._place = [t.data_ptr() for t in (*self._model.parameters(), *self._model.buffers())]
