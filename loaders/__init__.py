"""Data: three loaders behind one small interface, found by name in `LOADERS`."""

from apart_fast.errors import UserError
from apart_fast.loaders.base import Loader
from apart_fast.loaders.batch import Batch
from apart_fast.loaders.dataloader import DataloaderLoader
from apart_fast.loaders.datasets import DATASETS, Dataset, Split, fingerprint, load_dataset, subset, take_validation
from apart_fast.loaders.ffcv import FfcvLoader
from apart_fast.loaders.plan import EpochPlan
from apart_fast.loaders.resident import ResidentLoader

LOADERS: dict[str, type[Loader]] = {
    "ffcv": FfcvLoader,
    "resident": ResidentLoader,
    "dataloader": DataloaderLoader,
}


def make_loader(kind: str, split: Split, **options) -> Loader:
    """Build the loader named `kind` (a key of `LOADERS`); see `Loader` for the options.

    Raises:
        UserError: unknown `kind`, a batch larger than the data, ffcv missing, no space for its file, a damaged file.
    """
    if kind not in LOADERS:
        raise UserError(f"unknown loader {kind!r}: choose one of {', '.join(LOADERS)}")
    return LOADERS[kind](split, **options)


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
