"""Everything that needs a GPU, in parts of under nine minutes each, each leaving JSON.

    python benchmarks/gpu_suite.py --data-dir data              # all parts, one after the other
    python benchmarks/gpu_suite.py --data-dir data --parts verify benchmarks

A part is a command of its own, stopped after nine minutes. Training parts go on where they were stopped when the suite
is run again with the same `--out`.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import tyro

from apart_fast.files import atomic_write
from apart_fast.records import environment, to_json

LIMIT = 540  # seconds of a part
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


def _verify(config: Config, out: Path) -> list[str]:
    # kernels against their twins, loaders, graph against eager: no speed is measured before these pass
    tests = ("test_kernels", "test_loaders", "test_graph", "test_step", "test_amp", "test_apart", "test_profiling")
    return ["-m", "pytest", *(f"tests/{name}.py" for name in tests), f"--junitxml={out / 'verify.xml'}"]


def _benchmarks(config: Config, out: Path) -> list[str]:
    return ["-m", "pytest", "benchmarks", f"--benchmark-json={out / 'benchmarks.json'}"]


def _training(name: str, *flags: str) -> Callable[[Config, Path], list[str]]:
    def command(config: Config, out: Path) -> list[str]:
        folder = out / name
        if (folder / "config.json").is_file():
            return ["train.py", "--resume", str(folder)]
        loader = ["--ffcv"] if find_spec("ffcv") else []
        data = ["--data-dir", str(config.data_dir), "--out", str(folder)]
        return ["train.py", "--amp", "--device", "cuda", "--no-progress", *loader, *data, *flags]

    return command


# name -> command line for this Python
PARTS: dict[str, Callable[[Config, Path], list[str]]] = {
    "verify": _verify,
    "benchmarks": _benchmarks,
    "profile-128": _training("profile-128", "--profile"),
    "profile-512": _training("profile-512", "--profile", "--batch-size", "512"),
    "apart-30": _training("apart-30"),
    "apart-30-every-epoch": _training("apart-30-every-epoch", "--val-every", "1", "--no-test"),
    "apart-30-no-graph": _training("apart-30-no-graph", "--graph", "False"),
    "apart-30-compile": _training("apart-30-compile", "--compile"),
    "fgsm-30": _training("fgsm-30", "--method", "fgsm"),
    "fgsm+-30": _training("fgsm+-30", "--method", "fgsm+"),
    "pgd-10-30": _training("pgd-10-30", "--method", "pgd-10"),
}


def main(config: Config) -> int:
    """Run the parts; the exit code is that of the first that failed. A failed `verify` ends the suite."""
    if not torch.cuda.is_available():
        print("error: torch sees no GPU: run this on a machine with one", file=sys.stderr)
        return 2
    unknown = set(config.parts) - PARTS.keys()
    if unknown:
        print(f"error: no part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}", file=sys.stderr)
        return 2
    name = torch.cuda.get_device_name().lower().replace(" ", "-")
    out = config.out or ROOT / "benchmarks" / "results" / name
    out.mkdir(parents=True, exist_ok=True)
    outcomes, code = {}, 0
    for part in config.parts or PARTS:
        command = PARTS[part](config, out.resolve())
        print(f"\n== {part}: python {' '.join(command)}", flush=True)
        began = time.monotonic()
        try:
            ended = subprocess.run([sys.executable, *command], cwd=ROOT, timeout=LIMIT, check=False).returncode
        except subprocess.TimeoutExpired:
            ended = 124
        outcomes[part] = {"exit": ended, "seconds": time.monotonic() - began, "command": command}
        atomic_write(out / "suite.json", to_json({"parts": outcomes, "environment": environment()}))
        code = code or ended
        if part == "verify" and ended:
            print("error: the GPU's results are wrong: nothing is measured", file=sys.stderr)
            break
    return code


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
