"""The parts of the suite, in the order of their value: what is worth most comes first, and is run first.

| part                     | what it answers                                                                |
|--------------------------|--------------------------------------------------------------------------------|
| check                    | is the installation right: `apart-fast check`                                  |
| verify-*                 | do kernels, steps, loaders, commands compute on a GPU what they compute on a CPU |
| *-speed, profile-*       | how fast, against what; only after what they depend on was verified            |
| scaling                  | images a second of all GPUs of the machine over those of one, communication     |
| apart-30, pgd-10-30, ... | a training at full size: seconds, accuracy under PGD-20                         |
| methods-*, long-*, ...   | the tables and curves of `docs/results.md` at full size: hours                 |
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from apart_fast import METHODS, get_method
from apart_fast.commands.table import COMMANDS
from apart_fast.errors import UserError
from benchmarks.gpu import estimates
from benchmarks.gpu.estimates import START, attack, step, training

ROOT = Path(__file__).resolve().parent.parent.parent
PENDING = "pending"  # folder in the output folder: files of the part that is running, until they are whole
AUTOATTACK = find_spec("pyautoattack") is not None  # judged where it is there
FAMILY = tuple(get_method(base).name for base in METHODS)
SPEED = ("verify-kernels", "verify-steps")  # nothing is timed before these passed
# a training of seconds on a CPU
_TINY = "--width 0.0625 --batch-size 16 --train-images 64 --val-images 16 --test-images 16 --probe-images 16"
TINY = [*_TINY.split(), "--threads", "1"]
SHORT = ["--epochs", "1"]


@dataclass(frozen=True)
class Place:
    """Where a suite runs.

    data_dir: where CIFAR-10 lies; out: folder of what comes out, absolute; dry: tiny, on the CPU.
    """

    data_dir: Path
    out: Path
    dry: bool = False

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    @property
    def drawn(self) -> Path:
        """Folder of drawn images, which stand in where there are no real ones."""
        return self.out / "drawn-images"

    @property
    def images(self) -> Path:
        """Folder of the images to train on."""
        return self.drawn if self.dry else self.data_dir


@dataclass(frozen=True)
class Part:
    """A command line for this Python, made when its turn comes; empty where nothing is left to do.

    seconds: estimate for an H100, and `how` it was made; needs: parts that must have passed; after: parts that are
    tried before; epochs: of a training; files: what it writes into the pending folder, moved to the output folder once
    whole; prints: which of them is what it prints; absent: why it cannot run there; folder: what it leaves in the
    output folder, which goes when it is asked for anew.
    """

    words: Callable[[Place], list[str]]
    seconds: float
    how: str
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    epochs: int = 0
    files: tuple[str, ...] = ()
    prints: str | None = None
    absent: Callable[[Place], str | None] = lambda place: None
    folder: str | None = None

    @property
    def interrupts(self) -> bool:
        """Whether it is stopped by SIGINT: pytest then writes what it has."""
        return any(file.endswith(".xml") or file.endswith("-speed.json") for file in self.files)


def _check() -> Part:
    def words(place: Place) -> list[str]:
        return [
            "-m",
            "apart_fast.cli",
            "check",
            "--json",
            "--device",
            place.device,
            *(["--quick"] if place.dry else []),
        ]

    absent = None if "check" in COMMANDS else "there is no command `apart-fast check` yet"
    return Part(words, 60, "guess", files=("check.json",), prints="check.json", absent=lambda place: absent)


def _verify(name: str, seconds: float, how: str, *places: str) -> Part:
    def words(place: Place) -> list[str]:
        flags = [f"--junitxml={place.out / PENDING / name}.xml", *(["--collect-only", "-q"] if place.dry else [])]
        return ["-m", "pytest", *(f"tests/{path}" for path in places), *flags]

    return Part(words, seconds, how, files=(f"{name}.xml",))


def _speed(name: str, seconds: float, how: str, *needs: str) -> Part:
    def words(place: Place) -> list[str]:
        flags = [
            f"--benchmark-json={place.out / PENDING / name}.json",
            *(["--collect-only", "-q"] if place.dry else []),
        ]
        return ["-m", "pytest", f"benchmarks/test_{name.replace('-', '_')}.py", *flags]

    return Part(words, seconds, how, needs=needs or SPEED, files=(f"{name}.json", f"{name}.md"))


def _data() -> Part:
    def words(place: Place) -> list[str]:
        numbers = ["--images", "96"] if place.dry else []
        only = [] if place.dry else ["--data-dir", str(place.data_dir)]
        return ["benchmarks/gpu/data.py", *only, "--drawn", str(place.drawn), "--out", str(place.out), *numbers]

    return Part(words, 40, "60,000 small images are decoded once, on one core, or downloaded")


def _started(folder: Path, fresh: list[str]) -> list[str]:
    """The command that begins a run, goes on with it, or nothing."""
    if (folder / "summary.json").is_file():
        return []
    return ["train.py", "--resume", str(folder), "--no-progress"] if (folder / "config.json").is_file() else fresh


def _training(name: str, method: str, epochs: int, *flags: str, how: str = "", **options: float) -> Part:
    def words(place: Place) -> list[str]:
        made = [] if method == "apart" else ["--method", method]
        tiny = [*TINY, *SHORT] if place.dry else ["--amp"]
        where = ["--device", place.device, "--data-dir", str(place.images), "--out", str(place.out / name)]
        return _started(place.out / name, ["train.py", "--no-progress", *made, *flags, *tiny, *where])

    seconds = training(method, epochs, **options)
    every = f"start, {epochs} epochs, validation, test" + (f"; {how}" if how else "")
    return Part(words, seconds, every, needs=(*SPEED, "data"), epochs=epochs)


def _profile(name: str, batch: int) -> Part:
    def words(place: Place) -> list[str]:
        folder = place.out / name
        if (folder / "profile.json").is_file():
            return []
        if (folder / "config.json").is_file():  # stopped: a profile goes on like a run
            return ["train.py", "--resume", str(folder), "--no-progress"]
        real = (place.out / "data.json").is_file()  # what a step takes does not depend on what the images show
        images = place.images if real else place.drawn
        if not (real or (images / "train").is_dir()):
            raise UserError("there are no images, real or drawn: run the part data first")
        size = [*TINY] if place.dry else ["--amp", "--batch-size", str(batch)]
        where = ["--device", place.device, "--data-dir", str(images), "--out", str(folder)]
        return ["train.py", "--profile", "--no-progress", *size, *where]

    seconds = START + 20 + 1200 * step("apart", batch)
    return Part(
        words, seconds, "start, 20 s of tracing, 1,200 steps or their floor", needs=SPEED, after=("data",), folder=name
    )


def _scaling() -> Part:
    def words(place: Place) -> list[str]:
        ranks = 2 if place.dry else torch.cuda.device_count()
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        size = ["--width", "0.0625", "--batch", "4", "--rounds", "1"] if place.dry else ["--batch", "128"]
        where = ["--device", place.device, "--out", str(place.out / PENDING / "scaling.json")]
        return [*torchrun, "-m", "benchmarks.scaling", *size, *where]

    def absent(place: Place) -> str | None:
        alone = not place.dry and torch.cuda.device_count() < 2
        return "there is one GPU: nothing to communicate with" if alone else None

    seconds = 2 * START + 4 * 11 * 2 * step("apart", 128)
    how = "start, processes that find each other, 11 rounds of four kinds of step"
    return Part(words, seconds, how, needs=SPEED, files=("scaling.json",), absent=absent)


def _evaluation(name: str, run: str, *attacks: str) -> Part:
    def words(place: Place) -> list[str]:
        known = [a for a in attacks if a != "autoattack" or (AUTOATTACK and not place.dry)]
        where = ["--data-dir", str(place.images), "--device", place.device, "--no-progress"]
        size = ["--images", "16" if place.dry else "1000"]
        checkpoint = str(place.out / run / "best.pt")
        return ["-m", "apart_fast.cli", "evaluate", checkpoint, *where, *size, "--attacks", *known]

    seconds = START + attack(20, 1000) + 10 * attack(100, 1000)
    return Part(words, seconds, "AutoAttack as ten PGD-100", needs=(run,))


def _methods(seconds: float, how: str, needs: tuple[str, ...], *flags: str) -> Part:
    def words(place: Place) -> list[str]:
        folders = ["--runs", str(place.out / "methods-paper"), "--out", str(place.out / "methods")]
        # dry: no seed, so nothing to train
        what = ["--stages", "train", "--seeds", "--device", "cpu"] if place.dry else ["--amp", *flags]
        return ["benchmarks/methods.py", "--recipe", "paper", "--data-dir", str(place.images), *folders, *what]

    return Part(words, seconds, how, needs=needs)


def _methods_parts() -> dict[str, Part]:
    needs = (*SPEED, "data")
    found = {
        f"methods-{name}": _methods(2 * training(name, 30), "two seeds", needs, "--stages", "train", "--methods", name)
        for name in ("apart", "fgsm", "pgd-10", *(n for n in FAMILY if n not in ("apart", "fgsm", "pgd-10")))
    }
    judged = len(FAMILY) * 2 * (attack(20, 10_000) + attack(50, 10_000, 10) / 2 + (10 * attack(100, 1000)))
    strong = ["--strong-images", "10000", "--autoattack-images", "1000" if AUTOATTACK else "0"]
    cost = START + 120 + 36 * 5 * sum(step(name, 128) for name in FAMILY)
    made = ("methods-apart",)
    return found | {
        "methods-judge": _methods(judged, "half of PGD-50's restarts fall early", made, "--stages", "judge", *strong),
        "methods-table": _methods(
            cost, "36 rounds of 5 steps, pictures", made, "--stages", "cost", "table", "pictures", "--rounds", "30"
        ),
    }


_STEP_SPEED = 60 + START + 2 * 5 * 25 * (sum(step(m, 320) for m in ("apart", "fgsm", "standard", "pgd-10")) + 0.12)
_EVALUATION_SPEED = START + 20 + 8 * (2.5 * attack(20, 10_000) + step("apart", 10_000) * 8)

PARTS: dict[str, Part] = {
    "check": _check(),
    "verify-kernels": _verify("verify-kernels", 180, "guess: hundreds of Triton variants", "kernels"),
    "verify-steps": _verify("verify-steps", 150, "guess", "step", "training/test_graph.py"),
    "step-speed": _speed("step-speed", _STEP_SPEED, "25 rounds of 5 steps, two sizes; released steps at 60 ms"),
    "kernel-speed": _speed(
        "kernel-speed", 240, "eleven kernels, 20 s of torch.compile and a few of timing each", SPEED[0]
    ),
    "data": _data(),
    "profile-128": _profile("profile-128", 128),
    "apart-30": _training("apart-30", "apart", 30),
    "epoch-speed": _speed("epoch-speed", START + 4 * step("apart", 50_000) * 3, "four epochs of three rivals"),
    "verify-loaders": _verify("verify-loaders", 60, "guess", "loaders/test_loaders.py"),
    "verify-commands": _verify("verify-commands", 150, "guess: ten small runs", "training/test_gpu.py", "measure"),
    "profile-512": _profile("profile-512", 512),
    "scaling": _scaling(),
    "pgd-10-30": _training("pgd-10-30", "pgd-10", 30),
    "fgsm-30": _training("fgsm-30", "fgsm", 30),
    "evaluation-speed": _speed("evaluation-speed", _EVALUATION_SPEED, "eight rounds of PGD-20 on 10,000, three ways"),
    "loader-speed": _speed(
        "loader-speed", 120, "guess; skips itself without ffcv", "verify-loaders", "verify-kernels", "verify-steps"
    ),
    "apart-30-every-epoch": _training(
        "apart-30-every-epoch", "apart", 30, "--val-every", "1", "--no-test", val_every=1, test=False
    ),
    "apart-30-no-graph": _training(
        "apart-30-no-graph", "apart", 30, "--graph", "False", factor=1.5, how="half as long again without graph"
    ),
    "apart-30-compile": _training("apart-30-compile", "apart", 30, "--compile", factor=1.5, how="with compiling"),
    **_methods_parts(),
    "strong": _training("strong", "apart+js", 100, "--recipe", "strong"),
    "strong-autoattack": _evaluation("strong-autoattack", "strong", "clean", "pgd-20", "autoattack"),
    "fastat-pgd-10": _training("fastat-pgd-10", "pgd-10", 100, "--recipe", "fastat"),
    "fastat-autoattack": _evaluation("fastat-autoattack", "fastat-pgd-10", "clean", "pgd-20", "autoattack"),
    "long-apart": _training("long-apart", "apart", 200, "--recipe", "long", "--keep-weights", "10"),
    "long-pgd-10": _training("long-pgd-10", "pgd-10", 200, "--recipe", "long", "--keep-weights", "10"),
}


def seconds_left(name: str, place: Place) -> float:
    """The estimate of a part less what was done before: of a training its epochs, in equal shares."""
    part, log = PARTS[name], place.out / name / "metrics.jsonl"
    try:
        done = len(log.read_text().splitlines()) if part.epochs else 0
    except OSError:
        done = 0
    return START + (part.seconds - START) * max(0.0, 1 - done / part.epochs) if done else part.seconds


def table() -> str:
    """Every part with what it needs and how long it should take, for `--list`."""
    lines = [f"{'part':<22}{'estimate':>9}  {'sum':>8}  {'needs':<40} how the estimate was made"]
    total = 0.0
    for name, part in PARTS.items():
        total += part.seconds
        needs = ", ".join(part.needs) or "-"
        lines.append(
            f"{name:<22}{estimates.clock(part.seconds):>9}  {estimates.clock(total):>8}  {needs:<40} {part.how}"
        )
    return "\n".join(
        [
            *lines,
            "",
            "Estimates for an H100, made before anything ran on one (benchmarks/gpu/estimates.py says from what).",
        ]
    )
