"""Named spans of a training step, for whoever wants to listen: a profile times them.

Where nobody listens a span costs a call and a comparison; nothing has to be patched to hear one.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

START = "start"  # crops, flips, the start of the perturbation; its rows of omega fetched
PASS_1 = "pass 1"  # forward and backward to the data
MOVE = "move"  # the perturbation's step along the gradient
PASS_2 = "pass 2"  # forward and backward to the weights
REMEMBER = "remember"  # omega, the gradients of the step sizes and their update; its rows sent back
OPTIMIZER = "optimizer"  # the update of the weights, and of their average
SPANS = (START, PASS_1, MOVE, PASS_2, REMEMBER, OPTIMIZER)

Listener = Callable[[str], AbstractContextManager[object]]

_SILENT: AbstractContextManager[None] = nullcontext()
_listener: Listener | None = None


def span(name: str) -> AbstractContextManager[object]:
    """`with span(PASS_1): ...`: what runs within belongs to that part of the step (one of `SPANS`)."""
    return _SILENT if _listener is None else _listener(name)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within: each `span(name)` of this process enters `listener(name)`."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before
