"""Data sets by name, found in `DATASETS`: those that torchvision can fetch, and any folder of images."""

from apart_fast.loaders.datasets.known import DATASETS, load_dataset
from apart_fast.loaders.datasets.splits import Dataset, Split, fingerprint, subset, take_validation

__all__ = ["DATASETS", "Dataset", "Split", "fingerprint", "load_dataset", "subset", "take_validation"]
