"""Everything that needs a GPU, in parts of under nine minutes each, each leaving JSON (the
verification: JUnit XML).

    python benchmarks/gpu_suite.py --data-dir data              # all parts, one after the other
    python benchmarks/gpu_suite.py --data-dir data --parts verify-kernels kernel-speed

A part is a command of its own, stopped (SIGTERM) after nine minutes; `--slices 6` starts a stopped one again up to five
times. What trains goes on where it was stopped, also when the suite is run again with the same `--out`.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch
import tyro

from apart_fast import METHODS, get_method
from apart_fast.errors import UserError
from apart_fast.files import atomic_write, to_json
from apart_fast.runs.environment import environment

LIMIT = 520  # seconds of a slice ...
GRACE = 15  # ... and to write a checkpoint after it
AUTOATTACK = find_spec("pyautoattack") is not None  # judged where it is there
STOPPED = 124  # exit code of a part that needs another slice
ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Config:
    """Verify on the GPU, then measure, then train."""

    data_dir: Path = Path("data")
    """Where CIFAR-10 lies, or is downloaded to."""
    out: Path | None = None
    """Folder for the JSON. None: benchmarks/results/<name of the GPU>."""
    parts: tuple[str, ...] = ()
    """Names of the parts to run. None given: all."""
    slices: int = 1
    """How many times nine minutes a part may take."""


def _verify(*places: str) -> Callable[[Config, Path], list[str]]:
    def command(config: Config, out: Path) -> list[str]:
        name = Path(places[0]).stem
        return ["-m", "pytest", *(f"tests/{place}" for place in places), f"--junitxml={out / name}.xml"]

    return command


def _benchmark(file: Path) -> Callable[[Config, Path], list[str]]:
    def command(config: Config, out: Path) -> list[str]:
        name = file.stem.removeprefix("test_")
        return ["-m", "pytest", f"benchmarks/{file.name}", f"--benchmark-json={out / name}.json"]

    return command


def _training(name: str, *flags: str) -> Callable[[Config, Path], list[str]]:
    def command(config: Config, out: Path) -> list[str]:
        folder = out / name
        if (folder / "summary.json").is_file():
            return []
        if (folder / "config.json").is_file():
            return ["train.py", "--resume", str(folder)]
        loader = ["--ffcv"] if find_spec("ffcv") else []
        data = ["--data-dir", str(config.data_dir), "--out", str(folder)]
        return ["train.py", "--amp", "--device", "cuda", "--no-progress", *loader, *data, *flags]

    return command


def _evaluation(name: str, *attacks: str) -> Callable[[Config, Path], list[str]]:
    def command(config: Config, out: Path) -> list[str]:
        if not (out / name / "summary.json").is_file():
            raise UserError(f"{name} has not ended: run the part {name} again, with more --slices")
        data = ["--data-dir", str(config.data_dir), "--device", "cuda", "--no-progress", "--images", "1000"]
        known = [a for a in attacks if a != "autoattack" or AUTOATTACK]
        return ["-m", "apart_fast.cli", "evaluate", str(out / name / "best.pt"), *data, "--attacks", *known]

    return command


def _methods(*flags: str) -> Callable[[Config, Path], list[str]]:
    def command(config: Config, out: Path) -> list[str]:
        folders = ["--runs", str(out / "methods-paper"), "--out", str(out / "methods")]
        return [
            "benchmarks/methods.py",
            "--recipe",
            "paper",
            "--amp",
            "--data-dir",
            str(config.data_dir),
            *folders,
            *flags,
        ]

    return command


# name -> command line for this Python; empty where there is nothing left to do
PARTS: dict[str, Callable[[Config, Path], list[str]]] = {
    # kernels against their twins, graph against eager, whole commands: no speed is measured before these pass
    "verify-kernels": _verify("kernels"),
    "verify-steps": _verify("step", "loaders/test_loaders.py", "training/test_graph.py"),
    "verify-commands": _verify("training/test_gpu.py", "measure"),
    # one for each file: pytest writes its JSON at the end, and a stopped one leaves none
    **{
        file.stem.removeprefix("test_").replace("_", "-"): _benchmark(file)
        for file in sorted(Path(__file__).parent.glob("test_*_speed.py"))
    },
    "profile-128": _training("profile-128", "--profile"),
    "profile-512": _training("profile-512", "--profile", "--batch-size", "512"),
    "apart-30": _training("apart-30"),
    "apart-30-every-epoch": _training("apart-30-every-epoch", "--val-every", "1", "--no-test"),
    "apart-30-no-graph": _training("apart-30-no-graph", "--graph", "False"),
    "apart-30-compile": _training("apart-30-compile", "--compile"),
    # the published figures: collapse and transfer (30 epochs), robust overfitting (200 epochs); and the methods' table
    **{
        f"methods-{name}": _methods("--stages", "train", "--methods", name)
        for name in (get_method(base).name for base in METHODS)
    },
    "methods-judge": _methods(
        "--stages", "judge", "--strong-images", "10000", "--autoattack-images", "1000" if AUTOATTACK else "0"
    ),
    "methods-table": _methods("--stages", "cost", "table", "pictures", "--rounds", "30"),
    "long-apart": _training("long-apart", "--recipe", "long", "--keep-weights", "10"),
    "long-pgd-10": _training("long-pgd-10", "--recipe", "long", "--keep-weights", "10", "--method", "pgd-10"),
    "strong": _training("strong", "--recipe", "strong"),
    "strong-autoattack": _evaluation("strong", "clean", "pgd-20", "autoattack"),
}


def _earlier(file: Path) -> dict:
    """Outcomes of parts that were run before."""
    try:
        return json.loads(file.read_text())["parts"]
    except (OSError, ValueError, LookupError):
        return {}


def run_slice(command: list[str]) -> int:
    """Run a command line of this Python for at most `LIMIT` seconds; its exit code, or `STOPPED`."""
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT)
    try:
        return process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return STOPPED


def main(config: Config) -> int:
    """Run the parts; the exit code is that of the first that failed. A failed verification ends the suite."""
    if not torch.cuda.is_available():
        print("error: torch sees no GPU: run this on a machine with one", file=sys.stderr)
        return 2
    unknown = set(config.parts) - PARTS.keys()
    if unknown:
        print(f"error: no part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}", file=sys.stderr)
        return 2
    if config.slices < 1:
        print(f"error: --slices {config.slices} is too small: give at least 1", file=sys.stderr)
        return 2
    config = replace(config, data_dir=config.data_dir.resolve())  # the parts run in the project's folder
    name = torch.cuda.get_device_name().lower().replace(" ", "-")
    out = config.out or ROOT / "benchmarks" / "results" / name
    out.mkdir(parents=True, exist_ok=True)
    outcomes, code = _earlier(out / "suite.json"), 0
    for part in config.parts or PARTS:
        try:
            command = PARTS[part](config, out.resolve())
        except UserError as error:
            print(f"\n== {part}\nerror: {error}", file=sys.stderr, flush=True)
            code = code or 2
            continue
        if not command:
            print(f"\n== {part}: has ended before", flush=True)
            continue
        print(f"\n== {part}: python {' '.join(command)}", flush=True)
        began, ended, slices = time.monotonic(), STOPPED, 0
        while ended == STOPPED and slices < config.slices and (going_on := PARTS[part](config, out.resolve())):
            ended, slices = run_slice(going_on), slices + 1
        outcomes[part] = {"exit": ended, "seconds": time.monotonic() - began, "command": command}
        atomic_write(out / "suite.json", to_json({"parts": outcomes, "environment": environment()}))
        code = code or ended
        if part.startswith("verify") and ended:
            reason = "took too long" if ended == STOPPED else "failed"
            print(f"error: the verification {reason}: nothing is measured", file=sys.stderr)
            break
    return code


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
