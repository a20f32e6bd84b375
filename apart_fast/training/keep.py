"""What a run keeps while it trains, and when: last.pt, best.pt and the weights of some epochs."""

import time
from types import TracebackType

from apart_fast.runs.config import TrainConfig
from apart_fast.runs.folder import RunFolder
from apart_fast.training.saver import Saver
from apart_fast.training.setup import Parts
from apart_fast.training.state import Progress, TrainingState

SHARE = 0.02  # of the training, at most, is spent on last.pt
WITHIN = 120.0  # seconds of training from which on an epoch does not only end with a checkpoint
LAST, BEST, WEIGHTS = "last", "best", "weights"


class Keeper:
    """A context manager; afterwards nothing is on its way to the disk.

    With `--checkpoint-every` last.pt is written after so many epochs. Otherwise time decides: after an epoch when the
    last one has cost less than `SHARE` of the time since, and within an epoch when that time is two minutes besides.
    Nothing is due while the last one is still being written.
    """

    def __init__(self, config: TrainConfig, folder: RunFolder, parts: Parts, state: TrainingState):
        self._config, self._folder, self._parts, self._state = config, folder, parts, state
        self._saver = Saver()
        self._since = time.perf_counter()

    def __enter__(self) -> "Keeper":
        self._since = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
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

    def best(self, epoch: int) -> None:
        """Keep the weights after `epoch` (from 1) as the best so far."""
        self._saver.save(BEST, self._folder.best, lambda: self._state.weights(self._parts.judged_model, epoch))

    def after_epoch(self, epoch: int, stopping: bool) -> None:
        """Keep what is due after `epoch` (from 1); all of it when the run is `stopping`.

        Raises:
            UserError: see `wait`; of an earlier file, too.
        """
        config = self._config
        if config.keep_weights and epoch % config.keep_weights == 0:
            path = self._folder.weights(epoch)
            self._saver.save(WEIGHTS, path, lambda: self._state.weights(self._parts.judged_model, epoch))
        every = config.checkpoint_every
        due = self._due(0.0) if every is None else epoch % every == 0
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

    def _save(self, progress: Progress | None = None) -> None:
        self._saver.save(LAST, self._folder.last, lambda: self._state.contents(progress))
        self._since = time.perf_counter()
