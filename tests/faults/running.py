"""Commands in processes of their own: started, watched, killed, waited for."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from faults.forking import ROOT

LIMIT = 90.0  # seconds, for a command of a second or two
LEAVE = 9.0  # seconds until processes of a killed one must have gone: torch's workers look every 5
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "PYTHONUNBUFFERED": "",
}
CONSOLE = "import sys; from apart_fast.cli import main; sys.argv[0] = 'apart-fast'; sys.exit(main())"


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (negative: the signal that killed it), its output, and what went wrong with it.

    Attributes:
        late: it was still running after its time, and was killed.
        left: processes of its session that outlived it.
    """

    code: int
    out: str
    err: str
    seconds: float
    late: bool
    left: int

    @property
    def traceback(self) -> bool:
        return any(
            mark in self.err + self.out for mark in ("Traceback (most recent", "Fatal Python error", "core dumped")
        )

    @property
    def lines(self) -> list[str]:
        """Of stderr, without empty ones."""
        return [line for line in self.err.splitlines() if line.strip()]

    def tail(self, count: int = 3) -> str:
        lines = self.lines or self.out.splitlines()
        return f"exit {self.code}: " + " | ".join(line.strip()[:200] for line in lines[-count:])


class Running:
    """A command that runs. `poll(seconds)` waits so long at most and gives the exit code, or None."""

    def __init__(self, pid: int, poll: Callable[[float], int | None], folder: Path):
        self.pid, self.began = pid, time.monotonic()
        self._poll, self._folder = poll, folder
        self._code: int | None = None

    def over(self, seconds: float = 0.0) -> bool:
        """Whether it has ended; waits up to `seconds` for that."""
        if self._code is None:
            self._code = self._poll(max(seconds, 0.0))
        return self._code is not None

    def signal(self, number: int) -> None:
        if not self.over():
            os.kill(self.pid, number)

    def wait(self, limit: float = LIMIT) -> Ended:
        """Its end; after `limit` seconds it is killed."""
        late = not self.over(limit)
        if late:
            self._kill_all()
            self.over(30.0)
        seconds, until = time.monotonic() - self.began, time.monotonic() + LEAVE
        while (left := len(session(self.pid))) and time.monotonic() < until and not late:
            time.sleep(0.02)
        if left:
            self._kill_all()
        out, err = ((self._folder / name).read_text(errors="replace") for name in ("out.txt", "err.txt"))
        return Ended(-signal.SIGKILL if self._code is None else self._code, out, err, seconds, late, left)

    def _kill_all(self) -> None:
        for pid in {self.pid, *session(self.pid)}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def session(leader: int) -> list[int]:
    """Living processes of the session that `leader` leads or led."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                state, _, _, number = Path(entry.path, "stat").read_text().rpartition(")")[2].split()[:4]
                if int(number) == leader and state not in "ZX":
                    found.append(int(entry.name))
    return found


class Launcher:
    """Starts commands; a context manager, which ends the process that forks (see `faults.forking`)."""

    def __init__(self, folder: Path):
        self._folder = folder  # of outputs
        self._folder.mkdir(parents=True, exist_ok=True)
        self._environment = {**os.environ, **ENVIRONMENT}
        self._server: subprocess.Popen | None = None
        self._running: Running | None = None

    def __enter__(self) -> "Launcher":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        if self._running is not None and not self._running.over():
            self._running.wait(0.0)
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None

    def start(self, program: str, words: Sequence[object], folder: Path, *, fresh: bool = False) -> Running:
        """Start `program` ("train.py", "apart-fast" or "call") in `folder`; one runs at a time.

        Args:
            fresh: as a new interpreter, which begins with the imports; else as a fork of one that has made them.
        """
        assert self._running is None or self._running.over()
        texts = [str(word) for word in words]
        running = self._fresh(program, texts, folder) if fresh else self._forked(program, texts, folder)
        self._running = running
        return running

    def run(
        self, program: str, words: Sequence[object], folder: Path, *, fresh: bool = False, limit: float = LIMIT
    ) -> Ended:
        return self.start(program, words, folder, fresh=fresh).wait(limit)

    def call(self, function: str, *words: object) -> object:
        """What "module:function" gives for `words`, in a fork; RuntimeError where it fails."""
        ended = self.run("call", [function, *words], self._folder)
        if ended.code:
            raise RuntimeError(f"{function} {words}: {ended.err}")
        return json.loads(ended.out)

    def _fresh(self, program: str, words: list[str], folder: Path) -> Running:
        start = [str(ROOT / program)] if program == "train.py" else ["-c", CONSOLE]
        with open(self._folder / "out.txt", "wb") as out, open(self._folder / "err.txt", "wb") as err:
            child = subprocess.Popen(
                [sys.executable, *start, *words],
                cwd=folder, env=self._environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                start_new_session=True,
            )  # fmt: skip

        def poll(seconds: float) -> int | None:
            if not seconds:
                return child.poll()
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(seconds)
            return None

        return Running(child.pid, poll, self._folder)

    def _forked(self, program: str, words: list[str], folder: Path) -> Running:
        server = self._server = self._server or self._served()
        assert server.stdin is not None and server.stdout is not None
        order = {"program": program, "words": words, "folder": str(folder)}
        order |= {name: str(self._folder / f"{name}.txt") for name in ("out", "err")}
        for name in ("out.txt", "err.txt"):
            (self._folder / name).write_bytes(b"")
        server.stdin.write(json.dumps(order).encode() + b"\n")
        pid = json.loads(server.stdout.readline())["pid"]

        def poll(seconds: float) -> int | None:
            if not select.select([server.stdout], [], [], seconds)[0]:
                return None
            return json.loads(server.stdout.readline())["code"]

        return Running(pid, poll, self._folder)

    def _served(self) -> subprocess.Popen:
        program = [sys.executable, str(ROOT / "tests" / "faults" / "forking.py")]
        # unbuffered: what was read is never more than a line
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        server = subprocess.Popen(program, env=self._environment, start_new_session=True, **pipes)
        assert server.stdout is not None
        if not server.stdout.readline():
            sys.exit("the process that forks has not come up")
        return server
