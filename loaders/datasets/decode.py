"""Many pictures decoded in their order, here or by processes beside this one. Imported without torch."""

import pickle
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from apart_fast.errors import UserError
from apart_fast.loaders.datasets.listing import shown
from apart_fast.loaders.datasets.picture import Encoded, read_picture
from apart_fast.loaders.datasets.reading import Resizing

_MOST = 64  # pictures in a part
_BYTES = 2**22  # of the pixels of a part, and of files that lie in memory, unless one picture has more
# started anew, not forked: a fork of a process with threads may hang, and would keep pipes open when this one is killed
_CODE = "import sys; sys.path[:] = sys.argv[1:]; from apart_fast.loaders.datasets.decode import serve; serve()"


class Pattern(NamedTuple):
    """What all pictures must be like, or are made like: (H, W, 3) of the one at `path`.

    Attributes:
        to: how they are made so; None: those of another size are refused.
    """

    shape: tuple[int, int, int]
    path: str
    to: Resizing | None = None


class Decoded(NamedTuple):
    """Consecutive pictures: uint8 [K, H, W, 3], whether any of them holds colour, and how many have which note."""

    pixels: NDArray[np.uint8]
    colored: bool
    notes: Counter[str]


def pattern_of(first: str | Encoded, to: Resizing | None) -> Pattern:
    """What all pictures must be like where this is the first one.

    Raises:
        UserError: it cannot be read.
    """
    size = read_picture(first).pixels.shape[:2] if to is None else (to.size, to.size)
    return Pattern((*size, 3), _name(first), to)


def decode(sources: Iterable[str | Encoded], pattern: Pattern, workers: int) -> Iterator[Decoded]:
    """All pictures in their order, some at a time.

    Args:
        workers: processes that decode; 0, or where none can be started: this one does. They end with this one, however
            it ends.

    Raises:
        UserError: the first picture that cannot be read or has another size, or a process that ended (not enough
            memory, say).
    """
    parts = _parts(sources, max(1, min(_MOST, _BYTES // int(np.prod(pattern.shape)))))
    with ExitStack() as stack:
        idle: SimpleQueue[_Worker] = SimpleQueue()
        threads = stack.enter_context(ThreadPoolExecutor(max(workers, 1)))
        with suppress(OSError):  # the system has no room for (all of) them
            for _ in range(workers):
                idle.put(stack.enter_context(_worker()))
        workers = idle.qsize()
        if not workers:
            yield from (decode_part(part, pattern) for part in parts)
            return

        def ask(part: list[str | Encoded]) -> Decoded:
            worker = idle.get()
            try:
                return worker.decode(part, pattern)
            finally:
                idle.put(worker)

        waiting: deque[Future[Decoded]] = deque()  # in order, and only so many that memory stays bounded
        stack.callback(lambda: [future.cancel() for future in waiting])
        for part in parts:
            waiting.append(threads.submit(ask, part))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _parts(sources: Iterable[str | Encoded], size: int) -> Iterator[list[str | Encoded]]:
    part: list[str | Encoded] = []
    room = _BYTES
    for source in sources:
        part.append(source)
        room -= 0 if isinstance(source, str) else len(source.data)
        if len(part) == size or room <= 0:
            yield part
            part, room = [], _BYTES
    if part:
        yield part


def _name(source: str | Encoded) -> str:
    return source if isinstance(source, str) else source.name


def decode_part(sources: Sequence[str | Encoded], pattern: Pattern) -> Decoded:
    """Some pictures, in this process; see `decode`."""
    try:
        pixels = np.empty((len(sources), *pattern.shape), np.uint8)
    except MemoryError as error:
        height, width, _ = pattern.shape
        raise UserError(f"the memory is too small for an image of {width}x{height}: resize the images") from error
    colored, notes = False, Counter[str]()
    for i, source in enumerate(sources):
        picture = read_picture(source, pattern.to)
        if picture.pixels.shape != pattern.shape:
            (h, w), (h0, w0) = picture.pixels.shape[:2], pattern.shape[:2]
            raise UserError(
                f"{shown(_name(source))} is {w}x{h} but {shown(pattern.path)} is {w0}x{h0}: resize the images to one "
                "size, or have it done with --image-size"
            )
        pixels[i] = picture.pixels
        colored |= picture.colored
        notes.update(picture.notes)
    return Decoded(pixels, colored, notes)


class _Worker:
    """A process that decodes what is asked of it through its pipes."""

    def __init__(self, process: subprocess.Popen[bytes]):
        self._process = process

    def decode(self, sources: list[str | Encoded], pattern: Pattern) -> Decoded:
        """See `decode_part`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            pickle.dump((sources, pattern), self._process.stdin)
            self._process.stdin.flush()
            answer = pickle.load(self._process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
            raise UserError(
                f"a process that decodes pictures ended (exit status {self._process.returncode}) between "
                f"{shown(_name(sources[0]))} and {shown(_name(sources[-1]))}: run again; if that does not help, one of "
                "them is at fault"
            ) from error
        if isinstance(answer, UserError):
            raise answer
        return answer


@contextmanager
def _worker() -> Iterator[_Worker]:
    process = subprocess.Popen(
        [sys.executable, "-c", _CODE, *sys.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for this process, which ends them
    )
    try:
        yield _Worker(process)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(OSError):  # what it did not read any more
                pipe.close()


def serve() -> None:
    """The work of such a process: until nobody asks any more."""
    answers, questions = sys.stdout.buffer, sys.stdin.buffer
    sys.stdout = sys.stderr  # what a library might print is no answer
    with suppress(EOFError, OSError):  # the process that asked is gone
        while True:
            sources, pattern = pickle.load(questions)
            answer: Any
            try:
                answer = decode_part(sources, pattern)
            except UserError as error:
                answer = UserError(str(error))
            pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
            answers.flush()
