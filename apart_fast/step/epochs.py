"""Which epoch of a training the steps belong to, and what depends on that: losses, gates and random starts."""

import warnings

import numpy as np
import torch
from torch import Tensor

from apart_fast.step.methods import Method
from apart_fast.step.noise import ExampleNoise
from apart_fast.step.objective import PUBLISHED_EPOCHS, Objective
from apart_fast.units import Bounds, check_number

_NOT_SAID = -1
_COUNTED = Bounds(0, 10**9, whole=True)


class Epochs:
    """Sets what depends on the epoch, and says once where nobody tells it. All of it is done by the host."""

    def __init__(self, method: Method, noise: ExampleNoise, objective: Objective):
        self._method, self._noise, self._objective = method, noise, objective
        self._now = np.full(2, _NOT_SAID, np.int64)  # the epoch, and how many there are
        self._reminded = False

    def start(self, epoch: int, step: int, epochs: int | None) -> None:
        """Epoch `epoch` (from 0) of `epochs` begins, or goes on from `step`.

        Raises:
            UserError: a number that is negative or not whole, or no epochs at all.
        """
        check_number("epoch", epoch, _COUNTED)
        check_number("step", step, _COUNTED)
        if epochs is not None:
            check_number("epochs", epochs, Bounds(1, 10**9, whole=True))
        elif self._method.loss.changes:
            self._remind(
                f"the loss of {self._method.name} changes over the training, of which {PUBLISHED_EPOCHS} epochs are "
                "assumed: give their number, apart.start_epoch(epoch, epochs=...)",
                caller=4,
            )
        self._now[:] = epoch, epochs or PUBLISHED_EPOCHS
        self._set(step)

    def _set(self, step: int) -> None:
        epoch, epochs = self._now.tolist()
        self._noise.start_epoch(epoch)
        self._objective.start_epoch(epoch, step, epochs)

    def check_told(self) -> None:
        """Say, in the first step, if no epoch was named and the method needs to know."""
        if self._now[0] < 0 and (self._method.loss.changes or self._method.reset_every):
            self._remind(
                f"{self._method.name} depends on the epoch, and none was named: without apart.start_epoch(epoch, "
                "epochs=...) at the beginning of each it is another method",
                caller=5,
            )

    def _remind(self, text: str, caller: int) -> None:
        if not self._reminded:
            warnings.warn(text, stacklevel=caller)  # the line that has called the method of `Apart`
        self._reminded = True

    def tensors(self) -> dict[str, Tensor]:
        """What a later step depends on."""
        return {"epoch": torch.from_numpy(self._now)}

    def go_on(self) -> None:
        """Set what depends on the epoch as `tensors`, in which another state was written, now say."""
        if self._now[0] < 0:
            self._noise.started = False
            self._objective.forget_epoch()
        else:
            self._set(step=1)  # no beginning
