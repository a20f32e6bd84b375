"""All that a run needs to go on as if nothing had happened: kept in last.pt, and restored from it."""

from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from apart_fast.errors import UserError
from apart_fast.models.modes import running
from apart_fast.parallel.world import World
from apart_fast.runs import checkpoint, shards
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
        us: World | None = None,
    ):
        self._folder, self._about, self._parts, self._us = folder, about, parts, us or World()
        self.progress, self._collapse, self._totals = progress, collapse, totals

    def weights(self, model: nn.Module, epoch: int) -> dict:
        """A checkpoint of the weights alone, after `epoch` (from 1). With several ranks all of them ask for it."""
        average = self._parts.average
        averaged = average is not None and model is average.model
        state = {"kind": "weights", "model": self._of_all_ranks(model), **self._about, "epoch": epoch}
        return state | {"averaged": averaged}

    def _of_all_ranks(self, model: nn.Module) -> dict[str, Tensor]:
        """The state of a model whose weights all ranks have, and its buffers' means over the ranks."""
        return model.state_dict() | self._us.means(running(model))

    def of_rank(self) -> dict:
        """What this rank of several has for itself, beside `contents`."""
        parts, ranks = self._parts, self._parts.apart.ranks
        assert ranks is not None
        return {
            "kind": shards.KIND,
            "examples": ranks.examples,
            "memory": None if parts.apart.memory is None else parts.apart.memory.contents(),
            "buffers": running(parts.model),
            "average": None if parts.average is None else running(parts.average.model),
            "rng": self._random(),
        }

    def contents(self, progress: Progress | None = None) -> dict:
        """The whole state as it is between two steps, for last.pt; its tensors are those that the next step changes.
        With several ranks all of them ask for it, and what `of_rank` has is left out.

        Args:
            progress: what it says of where the run stands; None: as it is.
        """
        parts = self._parts
        progress = progress or self.progress
        progress.note_peak(parts.device)
        apart = parts.apart.state_dict()
        if self._us.size > 1:
            apart.pop("memory", None)
        return {
            **self.weights(parts.model, progress.epoch),
            "kind": "training",
            "average": None if parts.average is None else self._of_all_ranks(parts.average.model),
            "optimizer": parts.optimizer.velocities(),
            "apart": apart,
            "scaler": None if parts.scaler is None else parts.scaler.state_dict(),
            "progress": asdict(progress),
            "watch": asdict(self._collapse),
            "totals": self._totals.values,
            "threads": torch.get_num_threads(),
            "data": parts.data_key,
            "rng": self._random(),
        }

    def _random(self) -> dict:
        device = self._parts.device
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return {"cpu": torch.get_rng_state(), "cuda": cuda}

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
                "bring them back (--data-dir says where they are), or start a new run"
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
        parts.apart.load_state_dict(state["apart"] | self._rows(state))
        if parts.scaler is not None and state["scaler"] is not None:
            parts.scaler.load_state_dict(state["scaler"])
        vars(self.progress).update(vars(Progress(**state["progress"])))
        vars(self._collapse).update(vars(CollapseWatch(**state["watch"])))
        self._totals.values.copy_(state["totals"])
        self._forget_abandoned_best()
        if parts.device.type == "cpu":
            torch.set_num_threads(state["threads"])  # sums, and so the bits of the weights, depend on it
        record = state.get("ranks")
        if record is not None and record["size"] == self._us.size:
            mine = shards.read_rank(self._folder.path, record, self._us.rank)
            parts.model.load_state_dict(mine["buffers"], strict=False)
            if parts.average is not None:
                parts.average.model.load_state_dict(mine["average"], strict=False)
            self._set_random(mine["rng"])
        elif self._us.first:  # the others begin anew
            self._set_random(state["rng"])

    def _set_random(self, states: dict) -> None:
        torch.set_rng_state(states["cpu"].cpu())
        if self._parts.device.type == "cuda" and states["cuda"] is not None:
            torch.cuda.set_rng_state(states["cuda"].cpu(), self._parts.device)

    def _rows(self, state: dict) -> dict[str, Tensor]:
        """omega of this process's examples, where others had or have some of them."""
        ranks, record = self._parts.apart.ranks, state.get("ranks")
        if self._parts.apart.memory is None or (ranks is None and record is None):
            return {}
        examples = torch.arange(len(self._parts.splits.train)) if ranks is None else ranks.examples
        if record is not None:
            return {"memory": shards.read_rows(self._folder.path, record, examples)}
        return {"memory": state["apart"]["memory"][examples]} if "memory" in state["apart"] else {}

    def _forget_abandoned_best(self) -> None:
        """best.pt is written before last.pt: after a kill between them it holds weights of an epoch that is done again.

        Where that gives other bits (on a GPU) it may not be the best any more: then the next epoch judged is.
        """
        best = checkpoint.load_best(self._folder) if self.progress.best_epoch else None
        if best is None or best["epoch"] != self.progress.best_epoch:
            self.progress.best_accuracy = -1.0


def _numbered(tensors: list[Tensor]) -> dict[str, Tensor]:
    return {f"optimizer.{i}": tensor for i, tensor in enumerate(tensors)}
