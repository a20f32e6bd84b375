"""One evaluation in work: the images, the networks, and each attack on them."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from apart_fast.evaluation import attacks
from apart_fast.evaluation.autoattack import autoattack
from apart_fast.evaluation.gradient import NOT_FINITE, ZERO, gradient_marks
from apart_fast.evaluation.pace import Pace
from apart_fast.models.folding import Folded
from apart_fast.models.modes import frozen

_CHUNK_VALUES = 2**25  # pixel values attacked together (128 MiB in float32): the test set of CIFAR in one go


class Outcome(NamedTuple):
    """Of an attack: images classified correctly, and of those, how many had a gradient that was not finite, or else
    zero everywhere, at some step (see `apart_fast.evaluation.attacks.Found`)."""

    correct: int
    gradient_not_finite: int = 0
    gradient_zero: int = 0


class Attacked:
    """What gradient attacks on one network need and the next evaluation can take again.

    Attributes:
        steps: captured steps against the folded copy.
        exact_steps: against the network itself, for the few images of which only its own precision can tell.
    """

    def __init__(self, calls: int):
        self.steps = attacks.KeptSteps(calls)
        self.exact_steps = attacks.KeptSteps(calls)
        self._folded: Folded | None = None

    def folded_like(self, network: nn.Module, sample: Tensor, amp: torch.dtype | None) -> nn.Module:
        """The folded copy, with the weights that the network has now."""
        if self._folded is None:
            self._folded = Folded(network, sample, amp)
        else:
            self._folded.refresh()
        return self._folded.network


@dataclass(frozen=True)
class Job:
    """The arguments of `apart_fast.evaluation.judge.evaluate`, looked at, and what its attacks share.

    first, total: the images are those from `first` on of `total` that are judged, here or in other processes.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    first: int
    total: int
    eps: float
    batch_size: int
    restarts: int
    seed: int
    device: torch.device
    amp: torch.dtype | None
    num_classes: int
    progress: bool
    attacked: Attacked

    def load(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """float32 NHWC images in [0, 1] and labels, on the device."""
        images = self.images[rows].to(self.device, non_blocking=True)
        return images.float().div(255), self.labels[rows].to(self.device, non_blocking=True)

    def bar(self, total: int, name: str, unit: str) -> tqdm:
        """A context manager."""
        # None: only where somebody is watching a terminal
        disable = None if self.progress else True
        return tqdm(total=total, desc=name, unit=unit, unit_scale=True, leave=False, disable=disable)

    @cached_property
    def _answers(self) -> tuple[Tensor, Tensor]:
        """bool [N] on the CPU: the clean image is right; a logit of it is NaN."""
        right, nan = [], []
        with self.bar(len(self.images), "clean", "img") as bar, torch.no_grad():
            for start in range(0, len(self.images), self.batch_size):
                images, labels = self.load(slice(start, start + self.batch_size))
                logits = attacks.predict(self.model, images)
                right.append(attacks.is_correct(logits, labels))
                nan.append(logits.isnan().any(1))
                bar.update(len(labels))
        both = torch.stack([torch.cat(right), torch.cat(nan)]).cpu()
        return both[0], both[1]

    @property
    def right(self) -> Tensor:
        """int64 on the CPU: rows of the images that the model gets right; the others need no attack."""
        return self._answers[0].nonzero().squeeze(1)

    def seeds(self) -> Tensor:
        """int64 [N] on the CPU: of the noise of each image, whoever judges it."""
        drawn = attacks.draw_seeds(self.total, torch.Generator().manual_seed(self.seed))
        return drawn[self.first : self.first + len(self.images)]

    @property
    def logits_nan(self) -> int:
        """Number of images for which the model gives NaN."""
        return int(self._answers[1].sum())

    @cached_property
    def folded(self) -> nn.Module:
        """What the gradient attacks attack: the same function as the model within rounding, for less."""
        sample, _ = self.load(slice(0, 2))
        return self.attacked.folded_like(self.model, sample.permute(0, 3, 1, 2), self.amp)


def clean(job: Job) -> Outcome:
    """No attack."""
    return Outcome(len(job.right))


def fgsm(job: Job) -> Outcome:
    """One step of eps from the image."""
    return _gradient_attack(job, "fgsm", steps=1, step=job.eps, restarts=1, random_start=False)


def pgd(job: Job, steps: int) -> Outcome:
    """So many steps of eps / 4 from each random start."""
    return _gradient_attack(
        job, f"pgd-{steps}", steps=steps, step=job.eps / 4, restarts=job.restarts, random_start=True
    )


def auto(job: Job) -> Outcome:
    """AutoAttack."""
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
    # of those that stand: only Square, its last part, gets on without a gradient
    marks = torch.zeros_like(robust, dtype=torch.uint8)
    with frozen(job.model):
        for rows in robust.nonzero().squeeze(1).split(job.batch_size) if robust.any() else ():
            images, labels = job.load(rows)
            marks[rows] = gradient_marks(attacks.differentiate(job.model, images, labels)[0]).cpu()
    return Outcome(int(robust.sum()), int((marks == NOT_FINITE).sum()), int((marks == ZERO).sum()))


# name in `apart_fast.evaluation.names.ATTACKS` -> function, which takes the number of steps where the name has one
RUN: dict[str, Callable[..., Outcome]] = {"clean": clean, "fgsm": fgsm, "pgd": pgd, "autoattack": auto}


def _gradient_attack(job: Job, name: str, *, steps: int, step: float, restarts: int, random_start: bool) -> Outcome:
    """Images that stand; judged by the model itself in float32, whatever was attacked in what precision."""
    seeds = job.seeds() if random_start else None
    settings: dict[str, Any] = dict(eps=job.eps, step=step, steps=steps, restarts=restarts, batch_size=job.batch_size)
    chunk = max(1, _CHUNK_VALUES // (job.images[0].numel() * job.batch_size)) * job.batch_size
    total, sums = len(job.right) * steps * restarts, [0, 0, 0]
    pace = Pace(name, total)
    with job.bar(total, name, "step") as bar:

        def progress(done: int) -> None:
            bar.update(done)
            pace(done)

        for rows in job.right.split(chunk):
            images, labels = job.load(rows)
            mine = None if seeds is None else seeds[rows]
            # without its cache: cast weights in it would be freed before a graph that reads them
            autocast = torch.autocast(job.device.type, job.amp, cache_enabled=False) if job.amp else nullcontext()
            with autocast:
                found = attacks.search(
                    job.folded, images, labels, seeds=mine, progress=progress, kept=job.attacked.steps, **settings
                )
            stands = attacks.correct(job.model, found.points, labels, job.batch_size)
            not_finite, zero = found.not_finite, found.zero
            # the search stopped early where only its rounding was fooled: those are searched without it
            doubtful = (stands & found.fooled).nonzero().squeeze(1)
            if len(doubtful):
                images, labels = images[doubtful], labels[doubtful]
                mine = None if mine is None else mine[doubtful.cpu()]
                again = attacks.search(job.model, images, labels, seeds=mine, kept=job.attacked.exact_steps, **settings)
                stands[doubtful] = attacks.correct(job.model, again.points, labels, job.batch_size)
                not_finite[doubtful], zero[doubtful] = again.not_finite, again.zero
            counts = torch.stack([stands.sum(), (stands & not_finite).sum(), (stands & zero).sum()]).tolist()
            sums = [a + b for a, b in zip(sums, counts, strict=True)]
    return Outcome(*sums)
