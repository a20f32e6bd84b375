"""What a reader needs to know of the machine and the versions to judge a figure."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


def environment() -> dict:
    """What a reader needs to judge a figure: versions, device, cores, command, commit."""
    import numpy
    import torch  # here: a run folder is read without it
    import torchvision

    cuda = torch.cuda.is_available()
    return {
        "command": _command(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        "device": torch.cuda.get_device_name() if cuda else _cpu_name(),
        "cuda": torch.version.cuda if cuda else None,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "commit": commit_of(PACKAGE),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def commit_of(package: Path) -> str | None:
    """The commit (`git describe --always --dirty`) of the checkout whose top folder holds `package`, tracked.

    None elsewhere: an installed package may lie in a repository, but what that one is at says nothing of the package.
    """
    root = package.resolve().parent
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root:
        return None
    if _git(root, "ls-files", "--error-unmatch", "--", f"{package.name}/__init__.py") is None:
        return None
    return _git(root, "describe", "--always", "--dirty")


def _git(folder: Path, *words: str) -> str | None:
    """What git prints there; None if it fails, prints nothing, or is not installed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # a hook names its own
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], env=env, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return (done.stdout.strip() or None) if done.returncode == 0 else None


def _command() -> str:
    program, *words = sys.argv or [""]
    # where somebody's installation lies is nobody's business
    name = Path(program).name if Path(program).is_absolute() else program
    return " ".join([*(["python"] if name.endswith(".py") else []), name, *words])


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
