"""What all cases start from: drawn data, runs that nothing has broken, and how long their phases take."""

import json
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from faults.contents import rows
from faults.running import Ended, Launcher
from PIL import Image

OK, WRONG, UNNOTICED, TRACEBACK, ENDLESS, HALF, OTHER = OUTCOMES = (
    *("ok", "wrong bits", "unnoticed damage", "traceback", "without end", "half-written", "other"),
)
FLAGS = """--dataset folder --width 0.25 --batch-size 16 --val-images 16 --probe-images 16 --lr 0.05 --device cpu
    --threads 1 --no-progress""".split()
# width 0.25: in narrower networks torch now and then damages its memory (docs/runs.md)
KINDS = {  # of training, by what they exercise
    "plain": ("small", "--epochs 5 --cycle 5 --val-every 2 --checkpoint-every 1 --keep-weights 2".split()),
    "ffcv": ("many", "--epochs 2 --cycle 2 --batch-size 250 --ffcv --method fgsm-rs --test-images 32".split()),
    "disk": ("small", "--epochs 4 --cycle 4 --method atta-1 --omega-device disk --omega-dtype int8 --ema 0.9".split()),
    "workers": ("small", "--epochs 3 --cycle 3 --method fgsm+ --loader dataloader --workers 1 --val-every 1".split()),
}
DATA = {"small": (96, 33), "many": (1500, 33)}  # training and test images
CLASSES = ("a", "b", "c")


@dataclass
class Result:
    """How a case ended: one of OUTCOMES, and what there is to say."""

    outcome: str
    detail: str = ""
    counted: dict[str, str] = field(default_factory=dict)  # what it is counted under besides


class Failure(Exception):
    """A case that did not end well; `args` are the outcome and the detail."""


def expect(true: object, outcome: str, detail: str) -> None:
    if not true:
        raise Failure(outcome, detail)


@dataclass(frozen=True)
class Unbroken:
    """A run that nothing has broken: its folder, the digests of its last.pt and best.pt, its records, and when its
    phases began, in seconds from the start."""

    folder: Path
    last: dict[str, str]
    best: dict[str, str]
    rows: list[dict]
    begins: dict[str, float]


def draw(root: Path, train: int, test: int, side: int = 8) -> Path:
    """Images of noise around a gray of their class, as PNG files."""
    random = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for label, name in enumerate(CLASSES):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count // 3):
                pixels = random.integers(0, 120, (side, side, 3)) + 60 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:03}.png")
    return root


class Workshop:
    """Folders and runs that cases share; each case works in a folder of its own.

    Args:
        again: what an earlier part of the same campaign has made in `folder` is taken as it is.
    """

    def __init__(self, folder: Path, launcher: Launcher, *, again: bool = False):
        self.folder, self.launcher, self._again = folder, launcher, again
        self._unbroken: dict[str, Unbroken] = {}
        self._data: dict[str, Path] = {}

    def data(self, name: str) -> Path:
        """A data folder, not to be altered; its decoded images are kept in it."""
        if name not in self._data:
            path = self.folder / "data" / name
            if self._anew(path):
                draw(path, *DATA[name])
            self._data[name] = path
        return self._data[name]

    def words(self, kind: str, data: Path, out: Path) -> list[str]:
        """Of a training."""
        return [*FLAGS, *KINDS[kind][1], "--data-dir", str(data), "--out", str(out)]

    def unbroken(self, kind: str) -> Unbroken:
        """The run of this kind that nothing has broken."""
        if kind not in self._unbroken:
            out, note = self.folder / "unbroken" / kind, self.folder / "unbroken" / f"{kind}.json"
            data = self.data(KINDS[kind][0])
            if self._anew(out):
                note.write_text(json.dumps(self._watched(kind, data, out)))
            last, best = self.digest(out / "last.pt"), self.digest(out / "best.pt")
            assert last is not None and best is not None
            self._unbroken[kind] = Unbroken(out, last, best, rows(out / "metrics.jsonl"), json.loads(note.read_text()))
        return self._unbroken[kind]

    def _anew(self, path: Path) -> bool:
        """Whether `path` is to be made; what lies there then goes."""
        if self._again and path.exists():
            return False
        shutil.rmtree(path, ignore_errors=True)
        return True

    def _watched(self, kind: str, data: Path, out: Path) -> dict[str, float]:
        """Train, and say when the phases began."""
        epochs, begins = int(KINDS[kind][1][1]), {}
        running = self.launcher.start("train.py", self.words(kind, data, out), self.folder)
        while not running.over(0.002):
            now = time.monotonic() - running.began
            begins |= {name: now for name, there in phases(out, epochs).items() if name not in begins and there()}
        ended = running.wait()
        if ended.code:
            sys.exit(f"the run to compare with failed: {ended.tail()}")
        return {**begins, "end": ended.seconds}

    @cached_property
    def stopped(self) -> Path:
        """The folder of a plain run that was stopped after a few epochs."""
        out = self.folder / "unbroken" / "stopped"
        if not self._anew(out):
            return out
        running = self.launcher.start("train.py", self.words("plain", self.data("small"), out), self.folder)
        while not running.over(0.002) and len(lines(out / "metrics.jsonl")) < 3:
            pass
        running.signal(signal.SIGTERM)
        ended = running.wait()
        if ended.code != 128 + signal.SIGTERM:
            sys.exit(f"the run that is to be gone on with did not stop: {ended.tail()}")
        return out

    @cached_property
    def judged(self) -> Path:
        """A copy of the finished plain run with evaluation.json."""
        out = self.folder / "unbroken" / "judged"
        if not self._anew(out):
            return out
        shutil.copytree(self.unbroken("plain").folder, out)
        self.evaluate(out / "best.pt", check=True)
        return out

    def evaluate(self, file: Path, check: bool = False) -> Ended:
        words = ["evaluate", file, "--data-dir", self.data("small"), "--device", "cpu", "--attacks", "clean", "pgd-3"]
        ended = self.launcher.run("apart-fast", words, self.folder)
        if check and ended.code:
            sys.exit(f"a good checkpoint cannot be judged: {ended.tail()}")
        return ended

    def digest(self, file: Path) -> dict[str, str] | None:
        """See `faults.contents.digests`; in a process that has torch."""
        return self.launcher.call("faults.contents:digests", file)  # type: ignore[return-value]


def lines(file: Path) -> list[str]:
    """Whole lines of a file that may not be there yet."""
    try:
        return [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    except OSError:
        return []


def phases(out: Path, epochs: int) -> dict[str, Callable[[], bool]]:
    """name -> whether this phase of a run in `out` has begun, as its files tell."""
    return {
        "training": lambda: (out / "config.json").exists(),
        "judging": lambda: len(lines(out / "metrics.jsonl")) >= epochs,
        "report": lambda: (out / "summary.json").exists(),
        "after": lambda: (out / "report.html").exists(),
    }


def last_report(folder: Path) -> dict:
    """The attacks' figures in evaluation.json, clocks left out."""
    report = json.loads((folder / "evaluation.json").read_text())
    return {name: (found["correct"], found["n"]) for name, found in report["attacks"].items()}
