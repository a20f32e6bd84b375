"""FFCV where a process may use fewer cores than the machine has."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.skipif(find_spec("ffcv") is None, reason="ffcv is not installed: pip install apart_fast[ffcv]")

LOAD = """
import os, sys
if sys.argv[2] == "pinned":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import torch
from apart_fast.loaders import Split, make_loader
split = Split(torch.zeros(12, 4, 4, 3, dtype=torch.uint8), torch.arange(12) % 3, "train")
workers = None if sys.argv[3] == "None" else int(sys.argv[3])
with make_loader("ffcv", split, batch_size=5, seed=0, cache=sys.argv[1], workers=workers) as loader:
    print([len(batch.labels) for batch in loader.epoch(0)])
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no cores can be chosen on this system")
@pytest.mark.parametrize("pinned, threads", [("pinned", None), ("free", "1")])
@pytest.mark.parametrize("workers", ["None", "64"])
def test_batches_come_with_one_core(tmp_path, pinned, threads, workers):
    env = {**os.environ} if threads is None else {**os.environ, "NUMBA_NUM_THREADS": threads}
    command = [sys.executable, "-c", LOAD, str(tmp_path), pinned, workers]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "[5, 5, 2]"
