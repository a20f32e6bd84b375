"""When all ranks stop, and when they keep their state: at the same step, though a signal or a clock is one rank's."""

from collections import deque

import torch

from apart_fast.parallel.exchange import Exchange

FLAGS = 2
STOP, SAVE = range(FLAGS)
BEHIND = 4  # steps by which a GPU may be behind its host before that waits for it


class Agreement:
    """Flags that travel with the gradients of the next step; what came of a step is read after it, on a GPU some steps
    later, when it has arrived: nobody waits, and all ranks read the same after the same step.

    Args:
        exchange: of the gradients, with `FLAGS` flags; None: this process is alone and agrees with itself at once.
        device: of the steps.
    """

    def __init__(self, exchange: Exchange | None, device: torch.device):
        self._exchange = exchange
        self._behind = BEHIND if device.type == "cuda" else 0
        self._arriving: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()
        self._deaf = 0  # steps in which a flag that was heard may still be on its way

    def after_step(self, stop: bool, save: bool) -> tuple[bool, bool]:
        """Whether to stop, and whether to keep the state, now; called after each step on all ranks.

        Args:
            stop, save: whether this rank wants to.
        """
        if self._exchange is None:
            return stop, save
        agreed_stop, agreed_save = self._read()
        if self._deaf:
            self._deaf, agreed_save = self._deaf - 1, False
        if agreed_save:
            self._deaf, save = self._behind + 1, False
        self._exchange.raise_flag(STOP, stop)
        self._exchange.raise_flag(SAVE, save and not self._deaf)
        return agreed_stop, agreed_save

    def _read(self) -> tuple[bool, bool]:
        assert self._exchange is not None and self._exchange.agreed is not None
        agreed = self._exchange.agreed
        if agreed.is_cuda:
            copy = torch.empty(agreed.shape, dtype=agreed.dtype, pin_memory=True)
            copy.copy_(agreed, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._arriving.append((copy, event))
            if len(self._arriving) <= self._behind:
                return False, False
            agreed, arrived = self._arriving.popleft()
            arrived.synchronize()
        stop, save = agreed.tolist()
        return stop > 0, save > 0
