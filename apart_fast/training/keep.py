"""What a run keeps while it trains, and when: last.pt, best.pt and the weights of some epochs."""

import secrets
import time
from collections import deque
from pathlib import Path
from types import TracebackType

from torch import nn

from apart_fast.errors import RankLost
from apart_fast.parallel.world import World
from apart_fast.runs import checkpoint, shards
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.folder import RunFolder
from apart_fast.training.saver import Saver, Write
from apart_fast.training.setup import Parts
from apart_fast.training.state import Progress, TrainingState

SHARE = 0.02  # of the training, at most, is spent on last.pt
WITHIN = 120.0  # seconds of training from which on an epoch does not only end with a checkpoint
LAST, BEST, WEIGHTS, RANK = "last", "best", "weights", "rank"


class Keeper:
    """A context manager; afterwards nothing is on its way to the disk.

    With `--checkpoint-every` last.pt is written after so many epochs. Otherwise time decides: after an epoch when the
    last one has cost less than `SHARE` of the time since, and within an epoch when that time is two minutes besides.
    Nothing is due while the last one is still being written.

    Of several processes each keeps what is its own (`apart_fast.runs.shards`), and rank 0 the rest; all of them call
    everything but `due_within_epoch` at the same steps.
    """

    def __init__(
        self, config: TrainConfig, folder: RunFolder, parts: Parts, state: TrainingState, us: World | None = None
    ):
        self._config, self._folder, self._parts, self._state = config, folder, parts, state
        self._us = us or World()
        self._kept: deque[str] = deque(maxlen=2)  # names of what the ranks keep, for last.pt and the one before it
        self._run = self._us.of_first(lambda: secrets.token_hex(4))  # what a killed one has left has other names
        self._saver = Saver(parts.device)
        self._alone = False  # the other ranks cannot be talked to any more
        self._since = time.perf_counter()

    def __enter__(self) -> "Keeper":
        self._since = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._alone = isinstance(error, RuntimeError | RankLost)  # torch's or ours, when a rank was lost
        try:
            if error is None:
                self.wait()
        finally:
            self._saver.close()

    def wait(self) -> None:
        """Until everything is written.

        Raises:
            UserError: something could not be: no space left, or no right to write.
        """
        self._saver.wait()

    def best(self, epoch: int, model: nn.Module | None = None) -> None:
        """Keep the weights after `epoch` (from 1) as the best so far: those of `model`, of the network or its average;
        None: the average, where there is one."""
        self._weights(BEST, self._folder.best, epoch, model)

    def after_epoch(self, epoch: int, stopping: bool) -> None:
        """Keep what is due after `epoch` (from 1); all of it when the run is `stopping`.

        Raises:
            UserError: see `wait`; of an earlier file, too.
        """
        config = self._config
        if config.keep_weights and epoch % config.keep_weights == 0:
            self._weights(WEIGHTS, self._folder.weights(epoch), epoch)
        every = config.checkpoint_every
        due = self._us.of_first(lambda: self._due(0.0)) if every is None else epoch % every == 0
        if due or stopping or epoch == config.epochs:
            self._save()

    def due_within_epoch(self) -> bool:
        """Whether the state is to be kept before the epoch ends; asked after each step."""
        return self._config.checkpoint_every is None and self._due(WITHIN)

    def within_epoch(self, paused: Progress) -> None:
        """Keep the state in the middle of an epoch; `paused`: where the run stands, with what was done of the epoch.

        Raises:
            UserError: see `wait`; of an earlier file, too.
        """
        self._save(paused)

    def _due(self, least: float) -> bool:
        passed = time.perf_counter() - self._since
        return passed >= max(least, self._saver.cost(LAST) / SHARE) and not self._saver.busy(LAST)

    def _weights(self, kind: str, path: Path, epoch: int, model: nn.Module | None = None) -> None:
        model = self._parts.judged_model if model is None else model
        weights = self._state.weights(model, epoch)  # asks all ranks
        if self._us.first:
            self._saver.save(kind, path, lambda: weights)

    def _save(self, progress: Progress | None = None) -> None:
        folder, us = self._folder.path, self._us
        if us.size == 1:
            write = self._removing("") if self._kept else None  # what several have left, when they are gone on from
            self._saver.save(LAST, self._folder.last, lambda: self._state.contents(progress), write)
        else:
            state = self._state.contents(progress)  # asks all ranks
            at = progress or self._state.progress
            name = f"{at.epoch:04d}-{at.step:06d}-{self._run}"
            self._saver.save(RANK, shards.path_of(folder, name, us.rank), self._state.of_rank, shards.save)
            if us.first:
                state["ranks"] = {"name": name, "size": us.size, "total": len(self._parts.splits.train)}
                self._saver.save(LAST, self._folder.last, lambda: state, self._removing(name))
        self._since = time.perf_counter()

    def _removing(self, name: str) -> Write:
        """Writes a checkpoint when what it names is there, and removes what neither it nor the one before names."""
        folder, us = self._folder.path, self._us
        self._kept.append(name)
        # listed now: by when last.pt is written, another rank may have begun with the next
        left = shards.others(folder, set(self._kept))

        def write(path: Path, state: dict) -> None:
            if us.size > 1:
                try:
                    shards.wait_for(folder, name, us.size, lambda: self._alone or us.others_end())
                except shards.Unwritten as error:
                    raise us.lost(error) from error
            checkpoint.save(path, state)
            shards.remove(left)

        return write

    def went_on_from(self, record: dict) -> None:
        """Leave what the ranks have written for the checkpoint that says `record` until it is the last but one."""
        self._kept.append(record["name"])
