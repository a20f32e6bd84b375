"""SIGTERM, Ctrl-C and a lost terminal end a command in a line, and a training where it can be gone on with."""

import atexit
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType

from apart_fast.errors import Interrupted

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
NOTE, RAISE, EXIT = range(3)  # what a signal does, and after it the next ones
AGAIN = 1.0  # seconds: shells, `timeout` and schedulers send one request twice; only later ones are another
SOON = 0.05  # seconds


class StopSignals:
    """A context manager; within, the first stop signal is noted (`NOTE`), raises `Interrupted` (`RAISE`), or ends the
    process at once in a line (`EXIT`); the next one does what comes after that.

    A signal that is ignored stays so (nohup), and threads other than the main one cannot ask for any. They may be
    nested. What raised within the outer one, and was swallowed there, counts as noted in the inner one. What was raised
    where no exception can go, in a `__del__` or a callback from C, is raised again a little later.

    Attributes:
        received: the number of the first signal that came, or None.
    """

    def __init__(self, first: int = RAISE) -> None:
        self.received: int | None = None
        self._next, self._last = first, -math.inf
        self._before: dict[signal.Signals, object] = {}
        self._hook_before: Callable[[sys.UnraisableHookArgs], object] | None = None

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is not threading.main_thread():
            return self
        for signum in STOP_SIGNALS:
            before = signal.getsignal(signum)
            if before in (signal.SIG_IGN, None):  # None: not Python's
                continue
            outer = getattr(before, "__self__", None)
            if isinstance(outer, StopSignals) and outer.received is not None and self.received is None:
                self.received, self._next = outer.received, self._next + 1
            self._before[signum] = before
            signal.signal(signum, self._handle)
        self._hook_before, sys.unraisablehook = sys.unraisablehook, self._unraisable
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]
        self._before.clear()
        if self._hook_before is not None:
            sys.unraisablehook, self._hook_before = self._hook_before, None

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._last < AGAIN:
            return
        action, self._next, self._last = self._next, self._next + 1, now
        if self.received is None:
            self.received = signum
        if action == RAISE:
            raise Interrupted(signum)
        if action >= EXIT:
            end_now(f"{Interrupted(signum)}\n", 128 + signum)

    def _unraisable(self, args: "sys.UnraisableHookArgs") -> None:
        if not isinstance(args.exc_value, Interrupted):
            if self._next <= RAISE and self._hook_before is not None:
                self._hook_before(args)
            return  # objects that a signal left half made complain when they go
        self._next, self._last = RAISE, -math.inf
        again = threading.Timer(SOON, os.kill, (os.getpid(), args.exc_value.signum))
        again.daemon = True
        again.start()


def leave_to_parent(_number: int = 0) -> None:
    """In a worker process: what comes to a whole group or job (Ctrl-C, `timeout`, a scheduler) is for its parent.

    A second SIGTERM ends it: so multiprocessing ends what its parent has not. A thread that sends to a parent which was
    killed meanwhile says nothing.
    """

    def end_next_time(_signum: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

    def complain(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
        if not isinstance(error, ConnectionError | EOFError):
            sys.__excepthook__(kind, error, at)

    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end_next_time)
    sys.excepthook = complain


def end_now(line: str, code: int) -> None:
    """End the process without undoing anything: temporary files are removed by whoever writes there next."""
    with suppress(OSError):
        os.write(2, line.encode())
    os._exit(code)


def end_with(code: int) -> None:
    """From now on a stop signal ends the process at once with this exit code: its work is done."""
    _answer_by(lambda *_: os._exit(code))


def ignore_at_the_end() -> None:
    """Called first: when all that was left to do at the process's end is done, stop signals do nothing any more.

    The interpreter would take away their handlers, and the exit code would tell of a signal.
    """
    atexit.register(_answer_by, signal.SIG_IGN)


def _answer_by(handler: Callable[..., object] | signal.Handlers) -> None:
    for signum in STOP_SIGNALS:
        if signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, handler)
