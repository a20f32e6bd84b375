"""A wheel, installed outside the checkout: every module is imported from there, and the data files lie there."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("apart_fast", "kernels", "loaders", "setup.py", "pyproject.toml", "README.md", "LICENSE")
DATA = {"py.typed", "published.json", "report.html.j2", "style.css"}
# imports all modules of the package, and says where each lies
WALK = """
import importlib, json, os, pkgutil, sys
import apart_fast
names, skipped = ["apart_fast"], sys.argv[1:]
names += [module.name for module in pkgutil.walk_packages(apart_fast.__path__, "apart_fast.")]
found = {name: os.path.abspath(importlib.import_module(name).__file__) for name in names if name not in skipped}
print(json.dumps({"version": apart_fast.__version__, "found": found}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder into which a wheel of a copy of the sources was installed, without a network."""
    for needed in ("pip", "setuptools"):  # not find_spec: it puts setuptools in place of distutils
        try:
            version(needed)
        except PackageNotFoundError:
            pytest.skip(f"{needed} is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    source, wheels, target = folder / "source", folder / "wheels", folder / "installed"
    source.mkdir()
    for name in SOURCES:  # a copy: what an earlier build left in the checkout would go into the wheel
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    run(folder, [*pip, "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation", "-w", wheels, source])
    (wheel,) = wheels.glob("*.whl")
    run(folder, [*pip, "install", "-q", "--no-deps", "--no-index", "--no-compile", "--target", target, wheel])
    return target


def run(folder, words, **variables):
    done = subprocess.run(
        [str(word) for word in words], cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True
    )
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


def test_every_module_is_imported_from_the_wheel(installed, tmp_path):
    skipped = [] if find_spec("ffcv") else ["apart_fast.loaders.ffcv_backend"]
    # -S: without the links to editable checkouts, which would find what the wheel lacks
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    path = os.pathsep.join([str(installed), *libraries])
    said = json.loads(run(tmp_path, [sys.executable, "-S", "-c", WALK, *skipped], PYTHONPATH=path).splitlines()[-1])
    wanted = {
        f"apart_fast/{file.relative_to(base).as_posix()}"
        for base, folder in ((ROOT / "apart_fast", "."), (ROOT, "kernels"), (ROOT, "loaders"))
        for file in (base / folder).rglob("*.py")
    }
    if skipped:
        wanted.remove("apart_fast/loaders/ffcv_backend.py")
    assert {Path(file).relative_to(installed.resolve()).as_posix() for file in said["found"].values()} == wanted
    assert said["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_data_files_are_in_the_wheel(installed):
    data = [
        file.relative_to(ROOT)
        for file in (ROOT / "apart_fast").rglob("*")
        if file.is_file() and file.suffix not in (".py", ".pyc")
    ]
    assert {file.name for file in data} >= DATA
    for file in data:
        assert (installed / file).read_bytes() == (ROOT / file).read_bytes()


def test_nothing_else_is_in_the_wheel(installed):
    """No tests, no benchmarks, no top-level `kernels` or `loaders`."""
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == {"apart_fast", "bin"}


def test_the_command_answers(installed, tmp_path):
    code = "from apart_fast.cli import main; main(['train', '--help'])"
    assert "--epochs" in run(tmp_path, [sys.executable, "-c", code], PYTHONPATH=str(installed))
