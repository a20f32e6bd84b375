"""When all ranks stop, keep their state or give up: at the same step, though a signal, a clock or a look at the loss is
one rank's."""

import time
from collections import deque
from typing import NamedTuple

import torch

from apart_fast.parallel.exchange import Exchange
from apart_fast.parallel.world import TIMEOUT, World

FLAGS = 3
STOP, SAVE, BAD = range(FLAGS)
BEHIND = 4  # steps by which a GPU may be behind its host before that waits for it
LOOK = 1.0  # seconds between looks at the other ranks, while a GPU is waited for
PAUSE = 2e-4  # seconds between looks at the GPU


class Agreed(NamedTuple):
    """What some rank wants, and all do now."""

    stop: bool
    save: bool
    bad: bool


class Agreement:
    """Flags that travel with the gradients of the next step; what came of a step is read after it, on a GPU some steps
    later, when it has arrived: nobody waits, and all ranks read the same after the same step.

    Args:
        exchange: of the gradients, with `FLAGS` flags; None: this process is alone and agrees with itself at once.
        device: of the steps.
        us: this process among the others.
    """

    def __init__(self, exchange: Exchange | None, device: torch.device, us: World):
        self._exchange, self._us = exchange, us
        self._behind = BEHIND if device.type == "cuda" else 0
        self._arriving: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()
        self._deaf = 0  # steps in which a flag that was heard may still be on its way

    def after_step(self, *, stop: bool, save: bool, bad: bool) -> Agreed:
        """What to do now; called after each step on all ranks.

        Args:
            stop, save: whether this rank wants to stop, and to keep the state.
            bad: whether it has seen that the loss is no number.

        Raises:
            RankLost, SaidElsewhere: see `wait`.
        """
        if self._exchange is None:
            return Agreed(stop, save, bad)
        agreed = self._read()
        if self._deaf:
            self._deaf, agreed = self._deaf - 1, agreed._replace(save=False)
        if agreed.save:
            self._deaf, save = self._behind + 1, False
        self._exchange.raise_flag(STOP, stop)
        self._exchange.raise_flag(SAVE, save and not self._deaf)
        self._exchange.raise_flag(BAD, bad)
        return agreed

    def wait(self) -> None:
        """Until the GPU has done what it was told, as the host does before it reads from it; with other ranks it looks
        whether they are there, for a step that is replayed as a graph waits for them without end.

        Raises:
            RankLost, SaidElsewhere: another rank has ended, or the step takes longer than `TIMEOUT`.
        """
        if self._exchange is not None and self._behind:
            event = torch.cuda.Event()
            event.record()
            self._wait_for(event)

    def _wait_for(self, event: torch.cuda.Event) -> None:
        began = looked = time.monotonic()
        while not event.query():
            time.sleep(PAUSE)  # not `synchronize`: no signal would end it
            now = time.monotonic()
            if now - looked < LOOK:
                continue
            looked = now
            if self._us.others_end() or now - began > TIMEOUT.total_seconds():
                raise self._us.lost(TimeoutError(f"a step has not ended in {now - began:.0f} s"))

    def _read(self) -> Agreed:
        assert self._exchange is not None and self._exchange.agreed is not None
        agreed = self._exchange.agreed
        if agreed.is_cuda:
            copy = torch.empty(agreed.shape, dtype=agreed.dtype, pin_memory=True)
            copy.copy_(agreed, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._arriving.append((copy, event))
            if len(self._arriving) <= self._behind:
                return Agreed(False, False, False)
            agreed, arrived = self._arriving.popleft()
            self._wait_for(arrived)
        return Agreed(*(flag > 0 for flag in agreed.tolist()))
