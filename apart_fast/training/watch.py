"""What is watched after each epoch: a cheap probe for collapse, validation, and the best weights so far."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn
from tqdm import tqdm

from apart_fast.evaluation.judge import Evaluator, Report
from apart_fast.loaders import Split
from apart_fast.models.modes import running
from apart_fast.parallel.world import World
from apart_fast.runs.config import TrainConfig
from apart_fast.training.execution import plain_model
from apart_fast.training.setup import Parts
from apart_fast.units import parse_eps

LOST_SHARE = 0.5  # a collapse: more than this share of the best probe accuracy is gone ...
LEAST_LOSS = 0.08  # ... and at least this much, which chance does not do on 256 images (3 standard errors at 0.2)


@dataclass
class CollapseWatch:
    """Early warning of a collapse ("robustness drop", catastrophic overfitting), from the accuracy of each probe.

    Attributes:
        best: highest probe accuracy so far.
        collapsed: whether the last probe lay under the threshold.
        epochs: the epochs (from 1) at which a collapse began.
    """

    best: float = 0.0
    collapsed: bool = False
    epochs: list[int] = field(default_factory=list)

    def update(self, epoch: int, accuracy: float) -> bool:
        """Take the probe of an epoch (from 1); True when a collapse begins with it."""
        self.best = max(self.best, accuracy)
        lost = self.best - accuracy
        before, self.collapsed = self.collapsed, lost > LOST_SHARE * self.best and lost >= LEAST_LOSS
        if self.collapsed and not before:
            self.epochs.append(epoch)
            return True
        return False


class Judge:
    """Accuracy of a run's weights (averaged, where there are any) as its settings want it.

    What the weights do not change is made once for all epochs (see `Evaluator`). Batches are those of the
    training's size, 128 at least: small ones would make the search slow.
    """

    def __init__(self, config: TrainConfig, parts: Parts, compiled: bool, us: World | None = None):
        self._config, self._parts, self._compiled, self._us = config, parts, compiled, us or World()
        self._evaluators: dict[nn.Module, Evaluator] = {}  # of weights and average
        self._amp: torch.dtype | None = None  # of the evaluators
        self.eps = parse_eps(config.eval_eps)

    @property
    def batch_size(self) -> int:
        """Images at a time in each process."""
        return max(-(-self._config.batch_size // self._us.size), 128)

    def __call__(
        self,
        split: Split,
        attacks: tuple[str, ...],
        amp: torch.dtype | None,
        progress: bool = False,
        model: nn.Module | None = None,
    ) -> Report:
        """Judge on `split`; `amp`: of the search for adversarial images; `progress`: with a bar; `model`: None: the
        averaged weights, where there are any.

        Several ranks each judge a part of the images, with the means of their running statistics.
        """
        model = self._parts.judged_model if model is None else model
        if amp != self._amp:
            self._evaluators, self._amp = {}, amp  # the memory of their graphs first
        if model not in self._evaluators:
            self._evaluators[model] = Evaluator(
                model,
                eps=self.eps,
                batch_size=self.batch_size,
                seed=self._config.seed,
                device=self._parts.device,
                amp=amp,
                calls=self._config.epochs,
            )
        progress = progress and self._config.progress
        with plain_model(self._compiled), self._mean_statistics(model):
            return self._evaluators[model](split.images, split.labels, attacks, progress=progress, us=self._us)

    @contextmanager
    def _mean_statistics(self, model: nn.Module) -> Iterator[None]:
        mine = running(model) if self._us.size > 1 else {}
        before = {name: buffer.clone() for name, buffer in mine.items()}
        for name, mean in self._us.means(before).items():
            mine[name].copy_(mean)
        try:
            yield
        finally:
            for name, buffer in before.items():
                mine[name].copy_(buffer)


class Best(Protocol):
    """Which weights are the best so far (see `Progress`)."""

    best_accuracy: float
    best_epoch: int
    best_by: str


class EpochWatch:
    """Probe, validation and the choice of the best weights after each epoch.

    Args:
        judge: what measures.
        best: where the choice is kept; read and written.
        save_best: called with the epoch (from 1) whose weights are the best so far, and the model that holds them.
        robust: whether the method makes a network robust at all: ordinary training has no robustness to lose.
    """

    def __init__(
        self,
        config: TrainConfig,
        parts: Parts,
        judge: Judge,
        collapse: CollapseWatch,
        best: Best,
        save_best: Callable[[int, nn.Module], None],
    ):
        self._config, self._splits = config, parts.splits
        self._robust = parts.apart.method.steps > 0
        self._judged = parts.judged_model
        self._rival = parts.model if config.best_of == "both" else None  # of the average
        self._judge, self._collapse, self._best, self._save_best = judge, collapse, best, save_best
        # evaluation offers no float16: without loss scaling its input gradients underflow
        self._amp = torch.bfloat16 if config.amp else None

    def __call__(self, epoch: int) -> dict:
        """Look at the weights after `epoch` (from 1); what was found, by its names in metrics.jsonl."""
        record: dict = {}
        if self._splits.probe is not None:
            record["probe_pgd10"] = accuracy = self._probe(self._splits.probe, epoch)
            if not self._best.best_by == "validation":
                self._keep_best(epoch, accuracy, "probe")
        if epoch % self._config.val_every == 0 or epoch == self._config.epochs:
            attacks = ("clean", "pgd-20") if self._rival is None else ("clean", "pgd-20", "pgd-10")
            record |= self._validated(self._judge(self._splits.val, attacks, self._amp))
            if self._best.best_by == "probe" and not self._collapse.collapsed:
                self._best.best_accuracy = -1.0  # a validated epoch outranks a probed one
            if self._rival is None:
                self._keep_best(epoch, record["val_pgd20"], "validation")
            else:
                rival = self._validated(
                    self._judge(self._splits.val, ("clean", "pgd-10"), self._amp, model=self._rival)
                )
                record |= {f"weights_{name}": accuracy for name, accuracy in rival.items()}
                for model, accuracy in ((self._judged, record["val_pgd10"]), (self._rival, rival["val_pgd10"])):
                    self._keep_best(epoch, accuracy, "validation", model)
        if self._splits.probe is not None:  # else nobody has looked
            record["collapsed"] = self._collapse.collapsed
        return record

    @staticmethod
    def _validated(report: Report) -> dict[str, float]:
        return {f"val_{attack.replace('-', '')}": result.accuracy for attack, result in report.attacks.items()}

    def _probe(self, split: Split, epoch: int) -> float:
        accuracy = self._judge(split, ("pgd-10",), self._amp).attacks["pgd-10"].accuracy
        if self._robust and self._collapse.update(epoch, accuracy):
            tqdm.write(
                f"warning: collapsed at epoch {epoch}: PGD-10 probe {accuracy:.1%} after {self._collapse.best:.1%}; "
                "the best checkpoint is from before"
            )
        return accuracy

    def _keep_best(self, epoch: int, accuracy: float, by: str, model: nn.Module | None = None) -> None:
        best = self._best
        if accuracy > best.best_accuracy:
            best.best_accuracy, best.best_epoch, best.best_by = accuracy, epoch, by
            self._save_best(epoch, self._judged if model is None else model)
