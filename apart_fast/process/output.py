"""Output that may be lost, by a closed pipe, a terminal that is gone or a full disk, without harm to what is done."""

import errno
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from apart_fast.errors import NO_ROOM

_FOR_NOW = NO_ROOM | {errno.EAGAIN}  # errno of what may become possible again


@contextmanager
def lasting_output() -> Iterator[None]:
    """Within, and afterwards until the process ends, nothing that is printed can fail.

    A stream whose reader is gone is led nowhere. What the stream's encoding lacks is written as escapes. Lines go out
    at once, into pipes and files too.
    """
    _fill_standard_descriptors()
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:
        error = LastingStream(sys.stderr or nowhere)
        output = LastingStream(sys.stdout or nowhere, tell=lambda line: print(line, file=error))
        sys.stdout, sys.stderr = cast(TextIO, output), cast(TextIO, error)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
            output.settle()
            error.settle()


@contextmanager
def short_warnings() -> Iterator[None]:
    """Within, what a user is warned of is one line, without the place in the code."""
    before = warnings.formatwarning

    def in_a_line(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None) -> str:
        if category is not UserWarning:
            return before(message, category, filename, lineno, line)
        return f"warning: {' '.join(str(message).splitlines())}\n"

    warnings.formatwarning = in_a_line  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.formatwarning = before


class LastingStream:
    """A text stream on top of `stream` whose writes never fail.

    Args:
        tell: called with a line when `stream` is lost.
    """

    def __init__(self, stream: TextIO, tell: Callable[[str], object] = lambda line: None) -> None:
        self._stream, self._tell, self._lost, self._told = stream, tell, False, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write `text`, if that is possible; its length."""
        with self._enduring():
            if not self._lost:
                self._write(text)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write them one after the other."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hand on what was written, if that is possible."""
        with self._enduring():
            if not self._lost:
                self._stream.flush()

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        if "\n" in text:
            self._stream.flush()

    def settle(self) -> None:
        """Hand on what can be; the rest is dropped, so that the interpreter finds nothing to complain of at its end."""
        self._told = True
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._lead_nowhere()

    @contextmanager
    def _enduring(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: closed by somebody in this process
            reason = getattr(error, "strerror", None) or str(error)
            if getattr(error, "errno", None) not in _FOR_NOW:
                self._lead_nowhere()
            if not self._told:
                self._told = True
                self._tell(f"note: the output cannot be written ({reason}): going on without it")

    def _lead_nowhere(self) -> None:
        self._lost = True
        with suppress(OSError, ValueError):
            descriptor = self._stream.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
            self._stream.flush()


def _fill_standard_descriptors() -> None:
    """Open what was closed of the first three: a file that got such a number would be printed into."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
