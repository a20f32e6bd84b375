"""One part: its command is started, watched, stopped when its time is over, and what it wrote is taken over."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

from benchmarks.gpu.parts import PENDING, ROOT, Part, Place

GRACE = 15.0  # seconds to write a checkpoint, or the JSON of what was measured, after the signal
STOPPED = 124  # exit code of a part whose time was over
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
_BY_SIGNAL = {-number for number in _SIGNALS} | {128 + number for number in _SIGNALS}
_PYTEST_INTERRUPTED = 2


def run_slice(
    words: list[str], limit: float, *, interrupts: bool = False, prints: Path | None = None, dry: bool = False
) -> int:
    """Run a command line of this Python in the project's folder for at most `limit` seconds.

    Args:
        interrupts: stop it by SIGINT, not SIGTERM.
        prints: file for what it prints.
        dry: on a machine that does other things beside.

    Returns its exit code, or `STOPPED`. One that ends as it is told to stop has ended: its own code is returned.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {"OMP_WAIT_POLICY": "passive"} if dry else {}  # threads that spin make a busy machine many times slower
    env |= os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    stdout: IO[bytes] | None = None
    try:
        if prints is not None:
            stdout = open(prints, "wb")  # noqa: SIM115  (closed below)
        # a process group of its own: Ctrl-C reaches the suite alone, and what a part has started ends with it
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=stdout, process_group=0
        )
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return _stop(process, interrupts)
        except BaseException:
            _stop(process, interrupts)
            raise
    finally:
        if stdout is not None:
            stdout.close()


def _stop(process: subprocess.Popen, interrupts: bool) -> int:
    if process.poll() is None:  # else it ended while we woke
        process.send_signal(signal.SIGINT if interrupts else signal.SIGTERM)
    try:
        code = process.wait(GRACE)
    except subprocess.TimeoutExpired:
        code = STOPPED
    with suppress(OSError):  # workers of it that are left, and itself
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return STOPPED if code in _BY_SIGNAL or (interrupts and code == _PYTEST_INTERRUPTED) else code


def is_whole(file: Path) -> bool:
    """Whether a file is there, not empty, and JSON if its name says so."""
    try:
        text = file.read_text()
        return bool(text.strip()) and (file.suffix != ".json" or json.loads(text) is not None)
    except (OSError, ValueError):
        return False


def take_over(part: Part, place: Place) -> list[str]:
    """Move what the part has written whole from the pending folder to the output folder; the names."""
    taken = []
    for name in part.files:
        file = place.out / PENDING / name
        if is_whole(file):
            os.replace(file, place.out / name)
            taken.append(name)
    return taken


def forget_pending(place: Place) -> None:
    """Remove what a killed part has left half done."""
    folder = place.out / PENDING
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
