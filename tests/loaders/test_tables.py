"""Names of loaders and data sets come without torch, and what they stand for when it is asked for."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name

import pytest

from apart_fast import loaders
from apart_fast.loaders import Loader, datasets
from apart_fast.loaders.datasets.read import READERS
from apart_fast.loaders.datasets.table import KNOWN
from apart_fast.loaders.table import DATASET_NAMES, LOADER_CLASSES, LOADER_NAMES

HEAVY = ("torch", "torchvision", "numpy", "scipy", "PIL", "tqdm", "ffcv", "numba", "triton")


def imported_by(code):
    """What of HEAVY a fresh Python imports for `code`."""
    script = f"{code}; import sys; print(*(m for m in {HEAVY} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    return set(done.stdout.split())


def test_names_come_without_torch():
    assert imported_by("from apart_fast.loaders.table import LOADER_NAMES, DATASET_NAMES") == set()


def test_packages_are_listed_without_torch():
    assert (
        imported_by("import apart_fast.loaders, apart_fast.loaders.datasets as d; dir(apart_fast.loaders), dir(d)")
        == set()
    )


def test_data_sets_come_without_ffcv():
    found = imported_by("from apart_fast.loaders import LOADERS, load_dataset")
    assert "torch" in found and not found & {"ffcv", "numba"}


@pytest.mark.parametrize("package", [loaders, datasets], ids=lambda package: package.__name__)
def test_every_listed_name_is_there(package):
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="has no attribute 'Loaders'"):
        package.Loaders  # noqa: B018
    # what a type checker reads is what is imported
    tree = ast.parse(Path(package.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    shown = {alias.name: node.module for node in block.body for alias in node.names}
    assert shown == package._HOMES and sorted(shown) == sorted(package.__all__)
    for name, module in shown.items():
        assert getattr(import_module(module), name) is getattr(package, name)


def test_tables_are_whole():
    assert tuple(loaders.LOADERS) == LOADER_NAMES == tuple(LOADER_CLASSES)
    assert all(issubclass(resolve_name(where), Loader) for where in LOADER_CLASSES.values())
    assert tuple(loaders.DATASETS) == DATASET_NAMES == (*KNOWN, "folder", "hf")
    assert {known.reader for known in KNOWN.values()} == set(READERS)
