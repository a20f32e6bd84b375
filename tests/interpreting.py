"""Cases of kernel tests that run compiled on a CUDA machine, elsewhere in Triton's interpreter.

The interpreter has to be chosen before Triton is imported, so a test file with cases runs as a script, in a process
of its own, and prints what failed.
"""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from apart_fast.kernels.launch import HAS_TRITON

needs_triton = pytest.mark.skipif(
    not HAS_TRITON, reason="Triton does not exist for this platform: only the twins are used"
)


def print_failures(cases: dict[str, tuple[Callable, tuple]]) -> None:
    """What the script does: run every case on the CPU and print name -> traceback of those that fail."""
    failures = {}
    for name, (case, args) in cases.items():
        try:
            case("cpu", *args)
        except Exception:
            failures[name] = traceback.format_exc()
    print(json.dumps(failures))


def run_interpreted(file: str) -> dict[str, str]:
    """Run a test file as a script in the interpreter: the failures of all of its cases."""
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, file], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(cases: dict[str, tuple[Callable, tuple]], name: str, request: pytest.FixtureRequest) -> None:
    """One case: on the GPU if there is one, else what the fixture `interpreted` found."""
    if torch.cuda.is_available():
        case, args = cases[name]
        case("cuda", *args)
    else:
        failures = request.getfixturevalue("interpreted")
        assert name not in failures, failures[name]
