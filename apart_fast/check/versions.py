"""What runs here: versions, devices, cores."""

import platform
import re
import shutil
import subprocess
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from apart_fast.check.lines import Given, Line, attempt
from apart_fast.device import usable_cores
from apart_fast.runs.environment import environment

PACKAGES = ("apart_fast", "torch", "torchvision", "triton", "numpy", "ffcv", "numba")
DRIVER = Path("/proc/driver/nvidia/version")


def check(given: Given) -> list[Line]:
    """Versions of all that a result can depend on; every GPU, and the CPU cores that may be used."""
    env = environment()
    lines = [Line(name, "ok", found) if (found := installed(name)) else Line(name, "missing") for name in PACKAGES]
    lines.insert(1, Line("commit", "ok", env["commit"]) if env["commit"] else Line("commit", "missing", "no checkout"))
    lines.append(Line("python", "ok", platform.python_version()))
    lines.append(Line("platform", "ok", platform.platform()))
    lines += [attempt("compiler", _compiler), attempt("CUDA", _cuda), attempt("driver", _driver)]
    lines += [attempt(f"cuda:{i}", partial(_gpu, i)) for i in range(torch.cuda.device_count())]
    lines.append(attempt("cores", lambda: _cores(env)))
    lines.append(Line("checked", "ok", f"{given.device}: {_name(given.device, env)}", {"device": str(given.device)}))
    return lines


def installed(package: str) -> str | None:
    """Version of an installed package, found without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def compiler() -> str | None:
    """Path of the C compiler that Triton and inductor would call."""
    return next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)


def _compiler() -> Line:
    path = compiler()
    if path is None:
        return Line("compiler", "missing")
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    return Line("compiler", "ok", done.stdout.splitlines()[0])


def _cuda() -> Line:
    if torch.version.cuda is None:
        return Line("CUDA", "missing", "this torch is built for CPUs")
    cudnn = torch.backends.cudnn.version()
    return Line("CUDA", "ok", f"{torch.version.cuda}, cuDNN {cudnn or 'missing'}")


def _driver() -> Line:
    if DRIVER.is_file():
        found = re.search(r"\d+\.\d+(\.\d+)*", DRIVER.read_text())
        if found:
            return Line("driver", "ok", found[0])
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return Line("driver", "missing", "no NVIDIA driver")
    query = [smi, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return Line("driver", "ok", done.stdout.split()[0]) if done.stdout.split() else Line("driver", "missing")


def _gpu(index: int) -> Line:
    about = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    text = (
        f"{about.name}, compute capability {about.major}.{about.minor}, {total / 1e9:.1f} GB of which {free / 1e9:.1f} "
        f"are free, {about.multi_processor_count} multiprocessors"
    )
    return Line(f"cuda:{index}", "ok", text, {"free": free, "total": total})


def _cores(env: dict) -> Line:
    cores = usable_cores()
    text = f"{cores} may be used, of {env['cores']}; torch has {env['threads']} threads"
    return Line("cores", "ok", text, {"cores": cores, "all": env["cores"], "threads": env["threads"]})


def _name(device: torch.device, env: dict) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else env["device"]
