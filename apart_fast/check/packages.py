"""What is not needed everywhere: whether it is there, what for, and what brings it."""

import ctypes.util
import shutil
import sysconfig
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from apart_fast.check.lines import Given, Line
from apart_fast.check.versions import compiler


class Part(NamedTuple):
    """`needed` for what, `there`: whether it is, `bring`: how to get it."""

    needed: str
    there: Callable[[], bool]
    bring: str


def _module(name: str) -> Callable[[], bool]:
    return lambda: find_spec(name) is not None


def _python_h() -> bool:
    return (Path(sysconfig.get_path("include")) / "Python.h").is_file()


PARTS = {
    "ffcv": Part("--ffcv", _module("ffcv"), "make setup, or pip install apart_fast[ffcv]"),
    "pyautoattack": Part("--attacks autoattack", _module("pyautoattack"), "pip install apart_fast[autoattack]"),
    "timm": Part("--model timm/<name>", _module("timm"), "pip install apart_fast[timm]"),
    "nvidia-ml-py": Part("energy of a GPU", _module("pynvml"), "pip install apart_fast[energy]"),
    "triton": Part("the kernels on a GPU", _module("triton"), "pip install triton (Linux)"),
    "cc": Part(
        "Triton's launcher, --compile, ffcv", lambda: compiler() is not None, "apt-get install gcc (for ffcv g++)"
    ),
    "Python.h": Part("Triton's launcher, ffcv", _python_h, "apt-get install python3-dev"),
    "libturbojpeg": Part(
        "ffcv", lambda: ctypes.util.find_library("turbojpeg") is not None, "apt-get install libturbojpeg0-dev"
    ),
    "opencv": Part(
        "ffcv", lambda: ctypes.util.find_library("opencv_core") is not None, "apt-get install libopencv-dev"
    ),
    "git": Part("the commit in records", lambda: shutil.which("git") is not None, "apt-get install git"),
}


def check(given: Given) -> list[Line]:
    """A line for each of `PARTS`."""
    return [
        Line(name, "ok", f"for {part.needed}")
        if part.there()
        else Line(name, "missing", f"for {part.needed}: {part.bring}")
        for name, part in PARTS.items()
    ]
