"""Data sets by name, found in `DATASETS`: the known ones of table.py, and any folder of images.

What is listed here is imported where it is first used, so that names can be read without waiting for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apart_fast.loaders.datasets.load import DATASETS, load_dataset
    from apart_fast.loaders.datasets.splits import Dataset, Split, fingerprint, subset, take_validation

__all__ = ["DATASETS", "Dataset", "Split", "fingerprint", "load_dataset", "subset", "take_validation"]

if not TYPE_CHECKING:  # a type checker that saw it would take any name for one of ours
    # the imports above, as they are made
    _HOMES = {
        "DATASETS": "apart_fast.loaders.datasets.load",
        "Dataset": "apart_fast.loaders.datasets.splits",
        "Split": "apart_fast.loaders.datasets.splits",
        "fingerprint": "apart_fast.loaders.datasets.splits",
        "load_dataset": "apart_fast.loaders.datasets.load",
        "subset": "apart_fast.loaders.datasets.splits",
        "take_validation": "apart_fast.loaders.datasets.splits",
    }

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
