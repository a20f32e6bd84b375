"""Data: three loaders behind one small interface, found by name in `LOADERS`, and data sets, in `DATASETS`.

What is listed here is imported where it is first used: the names alone (table.py) come without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apart_fast.loaders.base import Loader
    from apart_fast.loaders.batch import Batch
    from apart_fast.loaders.dataloader import DataloaderLoader
    from apart_fast.loaders.datasets.load import DATASETS, load_dataset
    from apart_fast.loaders.datasets.splits import Dataset, Split, fingerprint, subset, take_validation
    from apart_fast.loaders.ffcv import FfcvLoader
    from apart_fast.loaders.make import LOADERS, make_loader
    from apart_fast.loaders.plan import EpochPlan
    from apart_fast.loaders.resident import ResidentLoader

__all__ = [
    "DATASETS",
    "LOADERS",
    "Batch",
    "DataloaderLoader",
    "Dataset",
    "EpochPlan",
    "FfcvLoader",
    "Loader",
    "ResidentLoader",
    "Split",
    "fingerprint",
    "load_dataset",
    "make_loader",
    "subset",
    "take_validation",
]

if not TYPE_CHECKING:  # a type checker that saw it would take any name for one of ours
    # the imports above, as they are made
    _HOMES = {
        "DATASETS": "apart_fast.loaders.datasets.load",
        "LOADERS": "apart_fast.loaders.make",
        "Batch": "apart_fast.loaders.batch",
        "DataloaderLoader": "apart_fast.loaders.dataloader",
        "Dataset": "apart_fast.loaders.datasets.splits",
        "EpochPlan": "apart_fast.loaders.plan",
        "FfcvLoader": "apart_fast.loaders.ffcv",
        "Loader": "apart_fast.loaders.base",
        "ResidentLoader": "apart_fast.loaders.resident",
        "Split": "apart_fast.loaders.datasets.splits",
        "fingerprint": "apart_fast.loaders.datasets.splits",
        "load_dataset": "apart_fast.loaders.datasets.load",
        "make_loader": "apart_fast.loaders.make",
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
