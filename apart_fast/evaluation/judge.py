"""Accuracy of a model on clean and attacked images, with confidence intervals."""

import json
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from apart_fast.errors import UserError
from apart_fast.evaluation.attacks import ordinary
from apart_fast.evaluation.caution import cautions, mark
from apart_fast.evaluation.checks import (
    check_classes,
    check_counts,
    check_device,
    check_images,
    check_labels,
    check_model,
)
from apart_fast.evaluation.jobs import RUN, Attacked, Job, Outcome
from apart_fast.evaluation.names import parse_attacks
from apart_fast.models.channels_last import any_layout
from apart_fast.models.logits import count_classes
from apart_fast.models.modes import differentiable, evaluating
from apart_fast.parallel.world import World
from apart_fast.precision import float32_as
from apart_fast.units import check_seed, parse_eps

Z_95 = 1.959963984540054  # two-sided 95 % of the normal distribution


def wilson(correct: float, n: int) -> tuple[float, float]:
    """95 % Wilson score interval (Wilson 1927) of the proportion correct / n, n >= 1."""
    p, shrink = correct / n, 1 + Z_95**2 / n
    centre = (p + Z_95**2 / (2 * n)) / shrink
    half = Z_95 / shrink * math.sqrt(p * (1 - p) / n + Z_95**2 / (4 * n**2))
    # rounding must not push the interval off the ends that it reaches exactly
    return (0.0 if correct == 0 else centre - half), (1.0 if correct == n else centre + half)


@dataclass(frozen=True)
class AttackResult:
    """Of `n` images `correct` were classified correctly under the attack; [low, high] is the 95 % Wilson interval.

    Of the correct ones, fgsm and pgd had no gradient to follow at some step where it was not finite
    (`gradient_not_finite`), or else zero for every pixel (`gradient_zero`): how robust these are nobody knows.
    """

    accuracy: float
    correct: int
    n: int
    low: float
    high: float
    seconds: float
    gradient_not_finite: int = 0
    gradient_zero: int = 0

    @property
    def unsearched(self) -> int:
        """Images that stand although there was no gradient to follow."""
        return self.gradient_not_finite + self.gradient_zero


@dataclass(frozen=True)
class Report:
    """What `evaluate` found: settings, and for each attack's name a result. eps is a fraction of the pixel range.

    For `logits_nan` of the clean images the model gives NaN; they count as wrong.
    """

    n: int
    eps: float
    restarts: int
    seed: int
    batch_size: int
    amp: str | None
    device: str
    torch: str
    attacks: dict[str, AttackResult]
    logits_nan: int = 0

    @property
    def cautions(self) -> list[str]:
        """A line for each figure that is no measure of robustness, and one for NaN logits."""
        return cautions(asdict(self))

    def to_json(self) -> str:
        """The fields as a JSON object."""
        return json.dumps(asdict(self), indent=2)


def describe(report: dict) -> str:
    """One line for a report as a dictionary (`asdict`, or read from JSON): percentages, 95 % intervals in brackets, and
    words beside figures that are no measure of robustness."""
    return ", ".join(
        f"{name} {result['accuracy']:.1%} [{result['low']:.1%}, {result['high']:.1%}]"
        + (f" ({words})" if (words := mark(result)) else "")
        for name, result in report["attacks"].items()
    )


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
    image further than the point that fools it; the model itself has the last word on every image. They climb the
    cross-entropy, where that is rounded away the logit margin. Where images stand because their gradient was not finite
    or all zero, a warning says so, and the result counts them.

    The caller's `torch.no_grad`, `torch.inference_mode` and `torch.autocast` change nothing.

    Args:
        model: takes NCHW float32 pixels in [0, 1] (normalisation inside) and gives logits [B, classes].
        images: uint8 [N, H, W, C], C = 1 or 3, on any device; moved in parts of at most 128 MiB in float32 (but
            of one batch at least).
        labels: integers [N].
        eps: "8/255", 0.031, "0.031".
        device: the model is moved there; None: where it is.
        amp: torch.bfloat16 makes fgsm and pgd in mixed precision; what is correct is still decided in float32, which is
            also what autoattack uses throughout.
        progress: a bar on stderr, if that is a terminal.

    Raises:
        UserError: an argument does not fit, an unknown attack, pyautoattack is not installed, or the model gives
            something else than logits, or NaN for every image.
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
        check_model(model)
        check_counts(batch_size=batch_size, restarts=restarts)
        if amp not in (None, torch.bfloat16):
            raise UserError(
                f"amp {amp} is not possible here: use torch.bfloat16 (input gradients underflow in float16) or None"
            )
        self._model, self._eps = model, parse_eps(eps)
        self._batch_size, self._restarts, self._seed, self._amp = batch_size, restarts, check_seed(seed), amp
        self._device, self._calls = device, calls
        self._place: list[int] = []  # where the weights lay when what is kept was made
        self._network, self._num_classes, self._attacked = model, 0, Attacked(calls)
        self._said: set[str] = set()  # figures of which the caller was warned

    def __call__(
        self, images: Tensor, labels: Tensor, attacks: Sequence[str], *, progress: bool = False, us: World | None = None
    ) -> Report:
        """See `evaluate`, which also says what is refused.

        Args:
            us: this process among several that call alike: each judges a part, and the counts are those of all images.
        """
        us, wanted = us or World(), parse_attacks(attacks, self._restarts)
        check_images(images)
        n = len(images)
        check_labels(labels, n)
        parameter = next(self._model.parameters(), None)
        device = self._device
        if device is None:
            device = torch.device("cpu") if parameter is None else parameter.device
        device = check_device(device)
        results = {}
        with (
            torch.inference_mode(False),
            torch.autocast(device.type, enabled=False),
            evaluating(self._model),
            reproducible(),
        ):
            self._model.to(device)
            labels = ordinary(labels).long()
            self._prepare(images, device)
            check_classes(labels, self._num_classes)
            if self._calls > 1:  # how many of them are right, and so attacked, changes from call to call
                self._attacked.steps.room = -(-n // us.size)
            mine = us.part(n)
            job = Job(
                model=self._network,
                images=images[mine],
                labels=labels[mine],
                first=mine.start,
                total=n,
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
            start = time.perf_counter()  # what all share counts as the first one's
            nan = job.logits_nan if len(job.images) else 0
            (nan,) = us.sum([nan])
            if nan == n:
                raise UserError(
                    "the logits of every image are NaN: the weights are damaged, or the training diverged; use an "
                    "earlier checkpoint"
                )
            for name, (attack, steps) in wanted.items():
                outcome = Outcome(0)
                if len(job.images):
                    outcome = RUN[attack](job) if steps is None else RUN[attack](job, steps)
                seconds, (correct, *doubts) = time.perf_counter() - start, us.sum(outcome)
                results[name] = AttackResult(correct / n, correct, n, *wilson(correct, n), seconds, *doubts)
                start = time.perf_counter()
        report = Report(
            n=n,
            eps=self._eps,
            restarts=self._restarts,
            seed=self._seed,
            batch_size=self._batch_size,
            amp=None if self._amp is None else str(self._amp).removeprefix("torch."),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            torch=torch.__version__,
            attacks=results,
            logits_nan=nan,
        )
        for line in report.cautions:
            figure = line.partition(":")[0]
            if us.first and figure not in self._said:  # once in a training
                self._said.add(figure)
                warnings.warn(line, stacklevel=3)
        return report

    def _prepare(self, images: Tensor, device: torch.device) -> None:
        """Look at the network, unless that was done for it as it lies there."""
        place = [t.data_ptr() for t in (*self._model.parameters(), *self._model.buffers())]
        model = differentiable(self._model)
        if self._num_classes and place == self._place and model is self._model:
            return
        sample = images[:2].to(device).float().div(255).permute(0, 3, 1, 2)
        self._network = any_layout(model, sample)
        self._num_classes = count_classes(self._network, sample)
        self._attacked = Attacked(self._calls)  # a graph of before would read memory given back
        # once more: a network that takes no channels-last pixels was laid out anew
        self._place = [t.data_ptr() for t in (*self._model.parameters(), *self._model.buffers())]
