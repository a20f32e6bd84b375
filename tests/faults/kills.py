"""Trainings that are killed at a random moment, gone on with, and compared with one that nothing has broken."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from faults.contents import difference, half_written, leftovers, names, rows
from faults.running import Ended, Running
from faults.workshop import (
    ENDLESS,
    HALF,
    KINDS,
    OTHER,
    TRACEBACK,
    WRONG,
    Result,
    Workshop,
    expect,
    lines,
)

SIGNALS = {"SIGKILL": 8, "SIGTERM": 5, "SIGINT": 4, "SIGHUP": 3}  # weights
PHASES = {  # share of the kills
    "start, imports": 0.14,
    "start, imported": 0.06,
    "conversion": 0.14,
    "epoch": 0.22,
    "checkpoint": 0.2,
    "judging": 0.11,
    "report": 0.11,
    "after": 0.02,
}
TWICE = 0.1  # of the kills come with a second signal of the same kind shortly after
FLOOR = 0.3  # seconds in which a new interpreter may not have come to the program's first line
STRETCH = 0.25  # seconds after a temporary file has appeared, at most


@dataclass(frozen=True)
class Kill:
    """One case, drawn from the seed and its number alone."""

    name: str
    phase: str
    kind: str
    signal: str
    twice: bool
    share: float  # of the phase, or of STRETCH, that passes before the signal
    nth: int  # checkpoint
    fresh: bool
    cached: bool  # decoded images are there


def draw_kill(seed: int, number: int) -> Kill:
    r = random.Random(f"{seed} kill {number}")
    # phases in turn, so that a small campaign has them all in its shares
    phase = _phase(((number * 0.6180339887) + seed * 0.37) % 1)
    kind = "ffcv" if phase == "conversion" else r.choices(list(KINDS), (12, 1, 4, 2))[0]
    return Kill(
        name=f"kill-{number}",
        phase=phase,
        kind=kind,
        signal=r.choices(list(SIGNALS), list(SIGNALS.values()))[0],
        twice=r.random() < TWICE,
        share=r.random(),
        nth=r.randint(1, 4),
        fresh=phase == "start, imports" or r.random() < 0.03,
        cached=r.random() < 0.5,
    )


def _phase(place: float) -> str:
    for phase, share in PHASES.items():
        if place < share:
            return phase
        place -= share
    return "epoch"


def run(case: Kill, shop: Workshop, folder: Path) -> Result:
    """Kill, look, go on, compare."""
    unbroken = shop.unbroken(case.kind)
    data = shop.data(KINDS[case.kind][0])
    if case.phase == "conversion":
        data = _copy(data, folder / "data", cached=case.cached)
    out = folder / "run"
    words = shop.words(case.kind, data, out)
    running = shop.launcher.start("train.py", words, folder, fresh=case.fresh)
    _await(case, running, out, data, unbroken.begins)
    after = time.monotonic() - running.began
    alive = not running.over()
    running.signal(getattr(signal, case.signal))
    if case.twice and case.signal != "SIGKILL":
        time.sleep(case.share * 0.1)
        running.signal(getattr(signal, case.signal))
    ended = running.wait()
    counted = {"phase": case.phase, "signal": case.signal if alive else "none, it had ended"}
    _check_end(case, ended, after, alive, out, data)
    resume = ["--resume", str(out)] if (out / "config.json").exists() else words
    resumed = shop.launcher.run("train.py", resume, folder)
    say = f"killed after {after:.2f} s ({ended.tail(1)}), then {resumed.tail(1)}"
    expect(not resumed.late, ENDLESS, f"going on: {say}")
    expect(not resumed.traceback, TRACEBACK, f"going on: {resumed.tail()}")
    expect(resumed.code == 0, OTHER, f"going on: {say}")
    expect(not resumed.left, OTHER, f"going on: {resumed.left} processes left")
    for name in ("last", "best"):
        differs = difference(getattr(unbroken, name), shop.digest(out / f"{name}.pt"))
        expect(differs is None, WRONG, f"{name}.pt: {differs}; {say}")
    _check_records(rows(out / "metrics.jsonl"), unbroken.rows)
    expect(not (half := half_written(out)), HALF, f"{half}; {say}")
    expect(not (left := leftovers(out, data)), HALF, f"left at the end: {left[:3]}; {say}")
    missing = names(unbroken.folder) ^ names(out)
    expect(not missing, OTHER, f"files that only one of the runs has: {sorted(missing)[:4]}; {say}")
    return Result("ok", counted=counted)


def _copy(data: Path, target: Path, *, cached: bool) -> Path:
    """The pictures as links, with or without what is derived from them (but the decoded images)."""
    shutil.copytree(data, target, copy_function=os.link, ignore=shutil.ignore_patterns(".apart_fast"))
    for file in data.glob(".apart_fast/images-*") if cached else ():
        (target / ".apart_fast").mkdir(exist_ok=True)
        shutil.copy2(file, target / ".apart_fast")
    return target


def _await(case: Kill, running: Running, out: Path, data: Path, begins: dict[str, float]) -> None:
    """Wait for the moment of the signal, or the end."""
    epochs = int(KINDS[case.kind][1][1])
    if case.phase.startswith("start"):
        length = begins["training"] + (FLOOR + 4.0 if case.fresh else 0.0)
        running.over((FLOOR if case.fresh else 0.02) + case.share * length)
        return
    waits: dict[str, tuple[Callable[[], object], float]] = {
        "conversion": (lambda: _temporary(data / ".apart_fast", 1), STRETCH * case.share**2),
        "epoch": (lambda: (out / "config.json").exists(), case.share * (begins["judging"] - begins["training"])),
        "checkpoint": (_Nth(out, case.nth), STRETCH * case.share**3),
        "judging": (
            lambda: len(lines(out / "metrics.jsonl")) >= epochs,
            case.share * (begins["report"] - begins["judging"]),
        ),
        "report": (lambda: (out / "summary.json").exists(), case.share * (begins["end"] - begins["report"])),
        "after": (lambda: (out / "report.html").exists(), case.share * 0.5),
    }
    begun, delay = waits[case.phase]
    while not running.over(0.0005) and not begun():
        pass
    running.over(delay)


def _temporary(folder: Path, least: int) -> bool:
    try:
        return sum(name.endswith(".tmp") for name in os.listdir(folder)) >= least
    except OSError:
        return False


class _Nth:
    """True once the nth temporary file of a checkpoint is seen in a run folder."""

    def __init__(self, out: Path, nth: int):
        self._out, self._left, self._seen = out, nth, False

    def __call__(self) -> bool:
        try:
            there = any(".pt" in name and name.endswith(".tmp") for name in os.listdir(self._out))
        except OSError:
            there = False
        self._left -= there and not self._seen
        self._seen = there
        return self._left <= 0


def _check_end(case: Kill, ended: Ended, after: float, alive: bool, out: Path, data: Path) -> None:
    """What a killed training leaves, and says."""
    say = f"{case.signal} after {after:.2f} s: {ended.tail()}"
    number = getattr(signal, case.signal)
    expect(not ended.late, ENDLESS, say)
    expect(not ended.traceback, TRACEBACK, say)
    expect(not ended.left, OTHER, f"{ended.left} processes left; {say}")
    expect(not (half := half_written(out)), HALF, f"{half}; {say}")
    if case.signal == "SIGKILL" or not alive:
        expect(ended.code in (0, -number), OTHER, say)
        return
    if ended.code == 0 or "run folder:" in ended.out:  # it came to its end before it was asked to stop
        return
    unread = case.fresh and after < FLOOR + 0.2 and not ended.err and not out.exists()
    if ended.code == -number and (unread or (case.twice and ended.lines)):
        return
    expect(ended.code == 128 + number, OTHER, f"not exit code {128 + number}; {say}")
    expect(len([line for line in ended.lines if case.signal in line]) == 1 or case.twice, OTHER, f"no line; {say}")
    if not case.twice:
        expect(not (left := leftovers(out, data)), HALF, f"left by a stop: {left[:3]}; {say}")


def _check_records(found: list[dict], unbroken: list[dict]) -> None:
    epochs = [row["epoch"] for row in found]
    expect(epochs == [row["epoch"] for row in unbroken], WRONG, f"metrics.jsonl has rows of the epochs {epochs}")
    for row, other in zip(found, unbroken, strict=True):
        differs = difference(row, other)
        expect(differs is None, WRONG, f"metrics.jsonl, epoch {row['epoch']}: {differs}")


def cases(seed: int, count: int) -> Iterator[Kill]:
    yield from (draw_kill(seed, number) for number in range(count))
