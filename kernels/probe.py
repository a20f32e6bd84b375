"""Whether Triton can work on this machine, asked before the first launch: it compiles C when it first launches."""

import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import torch

from apart_fast.kernels.launch import HAS_TRITON

_SOURCE = "#include <Python.h>\nint probe(void) { return PY_VERSION_HEX > 0; }\n"


def triton_fault() -> str | None:
    """What keeps Triton from launching kernels here, in one line with what to do; None where it can.

    A small file is compiled as Triton compiles its launcher; with a GPU, Triton's own driver is built and loaded.
    """
    if not HAS_TRITON:
        return "Triton is not installed (pip install triton, on Linux)"
    from triton import knobs

    if knobs.runtime.interpret:  # nothing is compiled
        return None
    fault = _cache_fault(Path(knobs.cache.dir))
    if fault is None and torch.cuda.is_available():
        fault, launches = _driver_fault()
        if fault is None and launches:  # nothing else is left to be compiled
            return None
        return _compiler_fault() or fault  # the compiler's is the plainer one
    return fault or _compiler_fault()


def _cache_fault(folder: Path) -> str | None:
    """Triton writes all that it compiles into this folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"Triton cannot write to {folder} ({error.strerror}): set TRITON_CACHE_DIR to another folder"


def _driver_fault() -> tuple[str | None, bool]:
    """(what is wrong with Triton's driver, whether it also holds what launches a kernel, as from Triton 3.8 on)."""
    from triton.runtime import driver

    try:
        active: Any = driver.active
        return None, hasattr(active.utils, "launch")
    except Exception as error:  # of many kinds: no libcuda, a compiler that fails, another GPU driver
        lines = str(error).strip().splitlines()
        text = f"{type(error).__name__}{': ' + lines[0] if lines else ''}"
        return f"Triton's driver cannot be loaded ({text}): see that libcuda.so.1 is found by ldconfig", False


def _compiler_fault() -> str | None:
    """What is wrong with the C compiler that Triton takes, or with the headers that it needs."""
    from triton import knobs

    if getattr(knobs.build, "impl", None):  # builds without a compiler of ours
        return None
    compiler = os.environ.get("CC")
    if compiler is None:
        compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return "Triton needs a C compiler and finds none: install gcc, or set CC"
    scheme = sysconfig.get_default_scheme()
    include = sysconfig.get_paths(scheme="posix_prefix" if scheme == "posix_local" else scheme)["include"]
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "probe.c"), Path(folder, "probe.so")
        source.write_text(_SOURCE)
        command = [compiler, str(source), "-shared", "-fPIC", "-o", str(made), f"-I{include}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
        except OSError as error:
            return f"Triton's C compiler {compiler!r} cannot be run ({error.strerror}): install gcc, or set CC to one"
        if done.returncode == 0 and made.exists():
            return None
    if "Python.h" in done.stderr:
        return f"Triton needs Python.h, which is not in {include}: install the headers (python3-dev)"
    said = next((line for line in done.stderr.splitlines() if "error" in line), f"exit code {done.returncode}")
    return f"Triton's C compiler {compiler!r} does not work ({said.strip()}): install gcc, or set CC to one that does"
