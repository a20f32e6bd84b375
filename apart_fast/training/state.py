"""All that a run needs to go on as if nothing had happened: kept in last.pt, and restored from it."""

from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from apart_fast.errors import UserError
from apart_fast.runs import checkpoint
from apart_fast.runs.folder import RunFolder
from apart_fast.training.setup import Parts
from apart_fast.training.totals import Totals
from apart_fast.training.watch import CollapseWatch


@dataclass
class Progress:
    """Where a run stands: the next step to be done is `step` of `epoch` (both from 0)."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0  # of the epoch in hand, before a stop
    epoch_joules: float = 0.0
    peak_gpu_bytes: int = 0
    best_accuracy: float = -1.0
    best_epoch: int = 0
    best_by: str = ""

    def paused(self, seconds: float, joules: float | None) -> "Progress":
        """The same with what was done of the epoch in hand counted, as a checkpoint in its middle says it."""
        return replace(
            self,
            seconds=self.seconds + seconds,
            epoch_seconds=self.epoch_seconds + seconds,
            epoch_joules=self.epoch_joules + (joules or 0.0),
        )

    def next_epoch(self, seconds: float) -> None:
        """Count the (rest of the) epoch that has ended."""
        self.seconds += seconds
        self.epoch, self.step = self.epoch + 1, 0
        self.epoch_seconds = self.epoch_joules = 0.0

    def note_peak(self, device: torch.device) -> None:
        """Keep the most that torch had allocated on a GPU, also before a stop."""
        if device.type == "cuda":
            self.peak_gpu_bytes = max(self.peak_gpu_bytes, torch.cuda.max_memory_allocated(device))


class TrainingState:
    """The state of a run, spread over its parts.

    Args:
        folder: of the run.
        about: what each checkpoint says of its weights: description, classes, dataset, method.
    """

    def __init__(
        self,
        folder: RunFolder,
        about: dict,
        parts: Parts,
        progress: Progress,
        collapse: CollapseWatch,
        totals: Totals,
    ):
        self._folder, self._about, self._parts = folder, about, parts
        self._progress, self._collapse, self._totals = progress, collapse, totals

    def weights(self, model: nn.Module, epoch: int) -> dict:
        """A checkpoint of the weights alone, after `epoch` (from 1)."""
        return {"kind": "weights", "model": model.state_dict(), **self._about, "epoch": epoch}

    def contents(self, progress: Progress | None = None) -> dict:
        """The whole state as it is between two steps, for last.pt; its tensors are those that the next step changes.

        Args:
            progress: what it says of where the run stands; None: as it is.
        """
        parts, device = self._parts, self._parts.device
        progress = progress or self._progress
        progress.note_peak(device)
        return {
            **self.weights(parts.model, progress.epoch),
            "kind": "training",
            "average": None if parts.average is None else parts.average.model.state_dict(),
            "optimizer": parts.optimizer.velocities(),
            "apart": parts.apart.state_dict(),
            "scaler": None if parts.scaler is None else parts.scaler.state_dict(),
            "progress": asdict(progress),
            "watch": asdict(self._collapse),
            "totals": self._totals.values,
            "threads": torch.get_num_threads(),
            "data": parts.data_key,
            "rng": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            },
        }

    def save(self) -> None:
        """Write the whole state to last.pt now, whole or not at all (`Keeper` does so beside the steps).

        Raises:
            UserError: no space left, or no right to write.
        """
        checkpoint.save(self._folder.last, self.contents())

    def restore(self, state: dict) -> None:
        """Take over what `contents` gave.

        Raises:
            UserError: weights only, other training images, or another model or method.
        """
        parts, last = self._parts, self._folder.last
        if state.get("kind") != "training":
            raise UserError(f"{last} holds weights only: resume needs the last.pt of a run")
        if state["data"] != parts.data_key:
            raise UserError(
                f"the training images are not those of the run in {self._folder.path}: omega belongs to its images; "
                "bring them back, or start a new run"
            )
        checkpoint.load_model(parts.model, state["model"], last)
        if (parts.average is None) != (state["average"] is None):
            raise UserError(f"{last} does not fit: --ema was {'off' if parts.average else 'on'} in that run")
        if parts.average is not None:
            checkpoint.load_model(parts.average.model, state["average"], last)
        if state["progress"]["step"] >= len(parts.loader):
            raise UserError(f"{last} does not fit: its epoch has more steps than {len(parts.loader)}; start a new run")
        velocities = parts.optimizer.velocities()
        checkpoint.check_alike(_numbered(velocities), _numbered(state["optimizer"]), last)
        parts.optimizer.load_velocities(state["optimizer"])
        parts.apart.load_state_dict(state["apart"])
        if parts.scaler is not None and state["scaler"] is not None:
            parts.scaler.load_state_dict(state["scaler"])
        vars(self._progress).update(vars(Progress(**state["progress"])))
        vars(self._collapse).update(vars(CollapseWatch(**state["watch"])))
        self._totals.values.copy_(state["totals"])
        self._forget_abandoned_best()
        if parts.device.type == "cpu":
            torch.set_num_threads(state["threads"])  # sums, and so the bits of the weights, depend on it
        torch.set_rng_state(state["rng"]["cpu"].cpu())
        if parts.device.type == "cuda" and state["rng"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["rng"]["cuda"].cpu(), parts.device)

    def _forget_abandoned_best(self) -> None:
        """best.pt is written before last.pt: after a kill between them it holds weights of an epoch that is done again.

        Where that gives other bits (on a GPU) it may not be the best any more: then the next epoch judged is.
        """
        progress, best = self._progress, self._folder.best
        if progress.best_epoch and (
            not best.is_file() or checkpoint.load_best(self._folder)["epoch"] != progress.best_epoch
        ):
            progress.best_accuracy = -1.0


def _numbered(tensors: list[Tensor]) -> dict[str, Tensor]:
    return {f"optimizer.{i}": tensor for i, tensor in enumerate(tensors)}
