"""The suite: picks parts, runs them in order, keeps suite.json and summary.md."""

import json
import math
import shutil
import signal
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType

import torch

from apart_fast.errors import UserError
from apart_fast.files import atomic_write, check_writable, to_json
from apart_fast.runs.environment import environment
from benchmarks.gpu import running, summary
from benchmarks.gpu.estimates import clock, parse_duration
from benchmarks.gpu.parts import PARTS, PENDING, ROOT, Part, Place, seconds_left, table
from benchmarks.gpu.plan import choose, obstacle, with_needs
from benchmarks.gpu.running import STOPPED

LIMIT = 520.0  # seconds of a slice
LEAST = 20.0  # seconds: with less left no part is started
DRY_RESULTS = ROOT / "benchmarks" / "results" / "cpu-intel-xeon-2-cores-float32.json"  # stand in for benchmarks


@dataclass
class Config:
    """Verify on the GPU, then measure, then train."""

    data_dir: Path = Path("data")
    """Where CIFAR-10 lies (also as train/<class>/*, test/<class>/*), or is downloaded to."""
    out: Path | None = None
    """Folder of what comes out. None: benchmarks/results/<name of the GPU>."""
    parts: tuple[str, ...] = ()
    """Names of the parts to run, with what they need. None given: all."""
    budget: str | None = None
    """Time for everything, as 25m, 2h or seconds: runs the most valuable parts that fit, and stops when it is over."""
    slices: int | None = None
    """How many times nine minutes a part may take. None: half as many again as its estimate wants."""
    again: bool = False
    """Run again what has passed (a finished training stays)."""
    regardless: bool = False
    """Run parts although what they need has failed; summary.md says so."""
    dry: bool = False
    """Start every command once, tiny, on the CPU with drawn images: shows what would fail for a silly reason."""
    list: bool = False
    """Show the parts, what they need and how long they should take, and end."""


class Suite:
    """What is known of the parts, on disk as suite.json."""

    def __init__(self, place: Place):
        self.place, self.file = place, place.out / "suite.json"
        self.about = _about(place)
        found = summary.read(self.file).get("parts")
        self.parts: dict[str, dict] = {
            name: entry for name, entry in (found or {}).items() if name in PARTS and isinstance(entry, dict)
        }
        for entry in self.parts.values():
            if entry.get("state") == "running":  # by a suite that was killed
                entry |= {"state": "stopped", "why": "cut off"}

    @property
    def states(self) -> dict[str, str]:
        """part -> passed, failed, stopped, left out; what passed on another commit or device has not passed."""
        here = {key: self.about[key] for key in ("commit", "device")}
        states = {}
        for name, entry in self.parts.items():
            other = [key for key in here if entry.get(key) != here[key]]
            state = entry.get("state", "failed")
            states[name] = f"{state} on another {other[0]}" if other and state == "passed" else state
        return states

    @property
    def passed(self) -> set[str]:
        return {name for name, state in self.states.items() if state == "passed"}

    def note(self, name: str, state: str, **more: object) -> None:
        """Write down how a part stands, and make the page anew.

        Raises:
            UserError: no space left, or the folder is gone.
        """
        known = self.parts.get(name, {})
        if state == "left out" and known.get("state") in ("passed", "failed", "stopped"):
            return  # what there is says more
        here = {key: self.about[key] for key in ("commit", "device")}
        self.parts[name] = {"state": state, **more, **here, "date": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        atomic_write(self.file, to_json({"parts": self.parts, "environment": self.about, "dry": self.place.dry}))
        summary.write(self.place.out)


def _about(place: Place) -> dict:
    about = environment()
    for name in ("triton", "ffcv"):
        try:
            about[name] = version(name)
        except PackageNotFoundError:
            about[name] = None
    if place.dry:
        about["device"] = f"dry pass, {about['device']}"
    return about


def main(config: Config) -> int:
    """Run the parts; the exit code is 0, or that of the first that failed or was stopped.

    A signal (SIGTERM, Ctrl-C) stops the part that runs, keeps what it has, and gives 128 + its number.

    Raises:
        UserError: no GPU, no such part, a budget that is none, a folder that cannot be written.
    """
    budget = None if config.budget is None else parse_duration(config.budget)
    if config.list:
        print(table())
        if budget is not None:
            print()
            _show(*choose(list(PARTS), budget, {name: part.seconds for name, part in PARTS.items()}))
        return 0
    if config.slices is not None and config.slices < 1:
        raise UserError(f"--slices {config.slices} is too small: give at least 1")
    with_needs(config.parts, set())  # refuses unknown names
    if not (config.dry or torch.cuda.is_available()):
        raise UserError("torch sees no GPU: run this on a machine with one, or with --dry")
    place = Place(config.data_dir.expanduser().resolve(), _folder(config), config.dry)
    check_writable(place.out / "suite.json")
    running.forget_pending(place)
    suite = Suite(place)
    return _run_all(config, suite, *_plan(config, suite, budget), budget)


def _folder(config: Config) -> Path:
    if config.out is not None:
        return config.out.expanduser().resolve()
    if config.dry:
        raise UserError("a dry pass belongs into a folder of its own: give --out")
    return ROOT / "benchmarks" / "results" / torch.cuda.get_device_name().lower().replace(" ", "-").replace("/", "-")


def _plan(config: Config, suite: Suite, budget: float | None) -> tuple[list[str], dict[str, str]]:
    """The parts to run and, for those left out, why; both are printed."""
    passed = set() if config.again else suite.passed
    names = with_needs(config.parts or PARTS, passed)
    done = [name for name in names if name in passed]
    names = [name for name in names if name not in passed]
    absent = {name: reason for name in names if (reason := PARTS[name].absent(suite.place)) is not None}
    names = [name for name in names if name not in absent]
    seconds = {name: seconds_left(name, suite.place) for name in names}
    chosen, out = (names, {}) if budget is None else choose(names, budget, seconds)
    if done:
        print(f"passed before: {', '.join(done)}")
    _show(chosen, absent | out)
    return chosen, absent | out


def _show(chosen: list[str], out: dict[str, str]) -> None:
    """Say what is run and what is not."""
    total = clock(sum(PARTS[name].seconds for name in chosen))
    print(f"to run, {total} by estimates for an H100:" if chosen else "nothing to run")
    for name in chosen:
        print(f"  {name:<22} {clock(PARTS[name].seconds):>8}  ({PARTS[name].how})")
    if out:
        print("left out:")
    for name, reason in out.items():
        print(f"  {name:<22} {reason}")


class _Signalled(BaseException):
    """A signal asked the suite to end."""

    def __init__(self, number: int):
        self.number = number


def _raise(number: int, _frame: FrameType | None) -> None:
    raise _Signalled(number)


def _run_all(config: Config, suite: Suite, chosen: list[str], out: dict[str, str], budget: float | None) -> int:
    for name, reason in out.items():
        suite.note(name, "left out", why=reason)
    deadline = None if budget is None else time.monotonic() + budget - running.GRACE
    code = 0
    before = {number: signal.signal(number, _raise) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for name in chosen:
            ended = _run(config, suite, name, deadline)
            code = code or ended
    except _Signalled as asked:
        code = 128 + asked.number
        print(f"\nstopped by {signal.Signals(asked.number).name}: the same command goes on", flush=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    print(f"\nsummary: {summary.write(suite.place.out)}")
    return code


def _run(config: Config, suite: Suite, name: str, deadline: float | None) -> int:
    """Run one part in its slices; its exit code (0 also where it was left out)."""
    part, place = PARTS[name], suite.place
    why = obstacle(name, suite.states)
    note = f"regardless: {why}" if why and config.regardless else None
    if why and not config.regardless:
        print(f"\n== {name}: left out, {why}", flush=True)
        suite.note(name, "left out", why=why)
        return 0
    if deadline is not None and deadline - time.monotonic() < LEAST:
        print(f"\n== {name}: left out, the time is over", flush=True)
        suite.note(name, "left out", why="the time was over")
        return 0
    earlier = suite.parts.get(name, {})
    passed = earlier.get("state") == "passed"  # on another commit or device, or this is --again
    if passed and part.folder is not None:
        shutil.rmtree(place.out / part.folder, ignore_errors=True)
    spent = float(earlier.get("seconds") or 0) if earlier.get("state") == "stopped" else 0.0
    began, code, slices, shown = time.monotonic(), STOPPED, 0, list(earlier.get("command") or [])

    most = config.slices or max(1, math.ceil(1.5 * seconds_left(name, place) / LIMIT))

    def record(state: str, **more: object) -> None:
        seconds = spent + time.monotonic() - began
        suite.note(name, state, **{"seconds": seconds, "slices": slices, "command": shown, "why": note, **more})

    try:
        while code == STOPPED and slices < most:
            words = part.words(place)
            if not words:  # it had ended, or ended as it was stopped
                if passed and not slices:  # a finished training is not repeated: it stays what it is, and of when
                    return 0
                code = 0
                break
            left = LIMIT if deadline is None else min(LIMIT, deadline - time.monotonic())
            if left < LEAST and slices:
                break
            slices, shown = slices + 1, words
            print(f"\n== {name}: python {' '.join(words)}", flush=True)
            record("running")
            code = _slice(part, words, place, left)
        if code == STOPPED and not part.words(place):
            code = 0
    except UserError as error:
        print(f"\n== {name}\nerror: {error}", flush=True)
        record("failed", exit=2, why=str(error))
        return 2
    except _Signalled:
        running.take_over(part, place)
        record("stopped", exit=STOPPED)
        raise
    record({0: "passed", STOPPED: "stopped"}.get(code, "failed"), exit=code)
    return code


def _slice(part: Part, words: list[str], place: Place, limit: float) -> int:
    prints = place.out / PENDING / part.prints if part.prints else None
    code = running.run_slice(words, limit, interrupts=part.interrupts, prints=prints, dry=place.dry)
    taken = running.take_over(part, place)
    if place.dry and not taken and code == 0:
        _stand_in(part, place)
    return code


def _stand_in(part: Part, place: Place) -> None:
    """In a dry pass no benchmark is measured: committed figures take the place of the JSON that the page reads."""
    for file in part.files:
        if file.endswith("-speed.json"):
            found = json.loads(DRY_RESULTS.read_text())
            where = f"benchmarks/test_{file.removesuffix('.json').replace('-', '_')}.py"
            found["benchmarks"] = [b for b in found["benchmarks"] if b["fullname"].startswith(where)]
            atomic_write(place.out / file, to_json(found))
