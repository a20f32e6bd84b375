"""What is remembered for all examples or for each class, beside the memory, which has rows of its own for each."""

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from apart_fast.step.ranks import Whole


class Shared:
    """What several examples share; `SHARED` in `apart_fast.step.remember` makes it."""

    def start_epoch(self, step: int) -> None:
        """An epoch begins, or goes on from `step`."""

    def within_step(self) -> AbstractContextManager[None]:
        """A step belongs in here: the host's part of it, which no CUDA graph holds, comes before."""
        return nullcontext()

    def without_images(self, whole: Whole) -> None:
        """What a rank does in a step in which only others have images."""

    def tensors(self) -> dict[str, Tensor]:
        """All that a later step depends on."""
        return {}
