"""What a reader needs to know of the machine and the versions to judge a figure."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch


def environment() -> dict:
    """What a reader needs to judge a figure: versions, device, cores, command, commit."""
    import numpy
    import torchvision

    cuda = torch.cuda.is_available()
    root = Path(__file__).resolve().parent.parent
    try:
        words = ["git", "-C", str(root), "describe", "--always", "--dirty"]
        commit = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:  # no git
        commit = None
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
        "commit": commit,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


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
