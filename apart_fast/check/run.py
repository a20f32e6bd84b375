"""The checks by name, in the order of the page, and what runs them."""

import tempfile
import time
from pathlib import Path
from pkgutil import resolve_name

import torch

from apart_fast.check.lines import Given, Line, first_line
from apart_fast.device import pick_device

# name -> where it is; imported when it runs, so that a broken package is told by the check that needs it
CHECKS = {
    "versions": "apart_fast.check.versions:check",
    "packages": "apart_fast.check.packages:check",
    "kernels": "apart_fast.check.kernels:check",
    "step": "apart_fast.check.steps:check",
    "resume": "apart_fast.check.resume:check",
    "loaders": "apart_fast.check.loading:check",
    "data": "apart_fast.check.data:check",
    "speed": "apart_fast.check.speed:check",
    "flags": "apart_fast.check.flags:check",
}


def run_checks(
    device: str | None = None, quick: bool = False, data_dir: Path | None = None, cache_dir: Path | None = None
) -> dict[str, list[Line]]:
    """Lines of every check of `CHECKS`; one that raises says so, and the others run.

    Raises:
        UserError: no such device.
    """
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        given = Given(pick_device(device), quick, data_dir, Path(folder), cache_dir=cache_dir)
        for name, where in CHECKS.items():
            began = time.perf_counter()
            try:
                lines = resolve_name(where)(given)
            except Exception as error:  # a check that cannot run is a finding
                lines = [Line(name, "fails", first_line(error), {"seconds": time.perf_counter() - began})]
            given.found[name] = lines
    return given.found
