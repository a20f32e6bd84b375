"""Training steps to compare: the engine's methods, the released step, and the floor that no code can go under.

The floor is the five bare passes of an APART step (pass 1: forward and backward to the data with frozen weights;
pass 2: forward, backward to the data and to the weights) of the same network in the same precision on pixels that are
already there: no augmentation, perturbation, signs, memory, step sizes or loader.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import cycle
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from apart_fast import Apart, build_model, graphs
from apart_fast.kernels import Crops
from apart_fast.loaders import Batch
from apart_fast.measure.interleave import Timings, interleave
from apart_fast.models.modes import frozen
from apart_fast.models.patches import multiply_patches
from apart_fast.models.stem import keep_stem_precise
from apart_fast.precision import has_bfloat16
from apart_fast.step.optimizer import SGD
from apart_fast.training.execution import GraphedStep
from benchmarks.baselines import Released

H, W, C, PADDING, EPS, CLASSES = 32, 32, 3, 4, 0.031, 10

B = TypeVar("B")


@dataclass(frozen=True)
class Setting:
    """What is trained, and how often each step is timed (`measure_overhead`: twice as often).

    width: factor on the channels of PreActResNet-18; examples: size of the training set; amp: of all but `released`;
    calls: steps in a row for one measurement.
    """

    batch: int = 128
    width: float = 1.0
    device: str = "cpu"
    amp: torch.dtype | None = torch.bfloat16
    examples: int = 2048
    rounds: int = 5
    calls: int = 1

    def __str__(self) -> str:
        amp = "float32" if self.amp is None else str(self.amp).removeprefix("torch.")
        return f"width {round(64 * self.width)}, batch {self.batch}, {amp}, {self.device}"


# emulated bfloat16 would be slower than float32; there, with less time for rounds
CPU = (Setting() if has_bfloat16("cpu") else Setting(amp=None, rounds=3),)
# several in a row, so that the host prepares a step while the GPU is at the one before, as in training
GPU = tuple(Setting(batch=b, device="cuda", examples=50_000, rounds=20, calls=5) for b in (128, 512))


def settings() -> tuple[Setting, ...]:
    """The sizes and the precision for this machine."""
    return GPU if torch.cuda.is_available() else CPU


LOW_PRECISION = settings()[0].amp is not None  # whether bfloat16 is measured here


@dataclass(frozen=True)
class Problem:
    """Data and batches that all rivals share; weights are the same too, each has its own copy."""

    setting: Setting
    images: torch.Tensor
    labels: torch.Tensor
    batches: tuple[Batch, ...]

    def model(self) -> torch.nn.Module:
        """PreActResNet-18 in training mode, channels-last; always the same weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = build_model("preact_resnet18", CLASSES, width=self.setting.width)
        return model.to(self.setting.device)


def make_problem(setting: Setting) -> Problem:
    """Random images: the time of a step does not depend on what they show."""
    generator = torch.Generator().manual_seed(0)
    n, device = setting.examples, setting.device
    images = torch.randint(0, 256, (n, H, W, C), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    batches = []
    for indices in torch.randperm(n, generator=generator).split(setting.batch)[: min(16, n // setting.batch)]:
        offsets = torch.randint(0, 2 * PADDING + 1, (len(indices), 2), generator=generator)
        flips = torch.rand(len(indices), generator=generator) < 0.5
        crops = Crops(*(part.to(device) for part in (torch.arange(len(indices)), indices, offsets, flips)))
        batches.append(Batch(images[indices].to(device), labels[indices].to(device), crops))
    return Problem(setting, images, labels, tuple(batches))


# ---- rivals: a problem -> something to call, one step a call


def engine_step(problem: Problem, method: str, train: bool = False) -> Callable[[], object]:
    """A step of the engine, on a GPU as a CUDA graph; `train`: with the update of the weights."""
    setting, model = problem.setting, problem.model()
    apart = Apart(model, setting.examples, (H, W, C), padding=PADDING, eps=EPS, method=method, amp=setting.amp)
    apart.start_epoch(0, epochs=1)  # noise is drawn as in training
    optimizer = SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=2e-4)

    def device_step(batch: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        apart.step_crops(batch.images, batch.labels, batch.crops)
        if train:
            optimizer.step()

    on_gpu = setting.device == "cuda"
    step = GraphedStep(device_step, setting.batch, [apart.generator]) if on_gpu else device_step
    return _over(step, problem.batches)


def released_step(problem: Problem, amp: torch.dtype | None = None, **options: Any) -> Callable[[], object]:
    """The released step in its own memory layout (NCHW); `options` go to `Released`."""
    model = problem.model().to(memory_format=torch.contiguous_format)
    released = Released(model, problem.images, problem.labels, padding=PADDING, eps=EPS, amp=amp, **options)
    # its crops are drawn on the host
    batches = [(b.indices, b.offsets.tolist(), b.flips.tolist()) for b in problem.batches]
    return _over(lambda batch: released.step(*batch), batches)


class Floor:
    """The bare passes on one batch of pixels [B, H, W, C] that are already there."""

    def __init__(self, problem: Problem):
        self.setting, self.model = problem.setting, problem.model()
        self.parameters = list(self.model.parameters())
        self.optimizer = SGD(self.parameters, lr=1e-3, momentum=0.9, weight_decay=2e-4)
        batch = problem.batches[0]
        self.pixels, self.labels = batch.images.float() / 255, batch.labels
        if self.setting.amp is not None:
            keep_stem_precise(self.model, self.pixels[:2].permute(0, 3, 1, 2))
        if self.setting.device == "cpu":
            multiply_patches(self.model, self.setting.amp)

    def pass1(self) -> torch.Tensor:
        """Forward, and backward to the data; returns the input gradient."""
        x = self.pixels.detach().requires_grad_()
        with frozen(self.model):
            (gradient,) = torch.autograd.grad(self._loss(x), x)
        return gradient

    def pass2(self, train: bool = False) -> None:
        """Forward, and backward to the data and to the weights; `train`: and the update of the weights."""
        self.optimizer.zero_grad(set_to_none=True)
        x = self.pixels.detach().requires_grad_()
        self._loss(x).backward()
        if train:
            self.optimizer.step()

    def update(self) -> None:
        """The update of the weights alone."""
        self.optimizer.step()

    def _loss(self, x: torch.Tensor) -> torch.Tensor:
        amp = self.setting.amp
        with torch.autocast(self.setting.device, dtype=amp, enabled=amp is not None):
            logits = self.model(x.permute(0, 3, 1, 2))
        return F.cross_entropy(logits.float(), self.labels)


def _over(step: Callable[[B], object], batches: Iterable[B]) -> Callable[[], object]:
    turn = cycle(batches)
    return lambda: step(next(turn))


def graphed(function: Callable[[], object]) -> Callable[[], None]:
    """`function`, which has no inputs, as a CUDA graph to replay."""
    replay, _ = graphs.capture(function)
    replay()  # capturing computed nothing, and what is captured next may need the gradients of this
    return replay


def prepared(runs: dict[str, Callable[[], object]], device: str) -> dict[str, Callable[[], object]]:
    """`runs` as they are timed: on a GPU as CUDA graphs."""
    return {name: graphed(run) if device == "cuda" else run for name, run in runs.items()}


def _warm_up(setting: Setting) -> int:
    """Rounds before the timed ones."""
    return 5 if setting.device == "cuda" else 1  # a graph needs a few eager steps and its capture first


def measure_overhead(setting: Setting) -> Timings:
    """Seconds of an APART step and of the bare passes.

    Names: `apart`, `apart + update` (with the update of the weights), `pass 1`, `pass 2`, `update` (bare), and made of
    the bare ones, round by round: `floor`, `floor + update`.
    """
    problem = make_problem(setting)
    floor = Floor(problem)
    runs = {"apart": engine_step(problem, "apart"), "apart + update": engine_step(problem, "apart", train=True)}
    runs |= prepared({"pass 1": floor.pass1, "pass 2": floor.pass2, "update": floor.update}, setting.device)
    timings = interleave(
        runs, rounds=2 * setting.rounds, warm_up=_warm_up(setting), calls=setting.calls, device=setting.device
    )
    passes = {"pass 1": 1, "pass 2": 1}
    return timings.with_sum("floor", passes).with_sum("floor + update", passes | {"update": 1})


def measure_rivals(setting: Setting) -> Timings:
    """Seconds a step of APART and of its rivals.

    Names: `apart`, `fgsm`, `standard`, `pgd-10` (engine), `released float32` and in low precision also `released
    bfloat16`, `pass 1`, `pass 2` (bare), and made of the bare ones, round by round: `5 bare passes`, `23 bare passes`.
    """
    problem = make_problem(setting)
    floor = Floor(problem)
    runs = {name: engine_step(problem, name) for name in ("apart", "fgsm", "standard", "pgd-10")}
    runs |= prepared({"pass 1": floor.pass1, "pass 2": floor.pass2}, setting.device)
    runs["released float32"] = released_step(problem)
    if setting.amp is not None:
        runs["released bfloat16"] = released_step(problem, setting.amp)
    timings = interleave(
        runs, rounds=setting.rounds, warm_up=_warm_up(setting), calls=setting.calls, device=setting.device
    )
    five, more = {"pass 1": 1, "pass 2": 1}, {"pass 1": 10, "pass 2": 1}
    return timings.with_sum("5 bare passes", five).with_sum("23 bare passes", more)
