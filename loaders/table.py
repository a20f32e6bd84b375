"""The loaders and data sets by name; imported without torch.

A new loader is a row here; a new data set is one in datasets/table.py.
"""

from apart_fast.loaders.datasets.table import DATASET_NAMES

# name -> where its class is
LOADER_CLASSES = {
    "ffcv": "apart_fast.loaders.ffcv:FfcvLoader",
    "resident": "apart_fast.loaders.resident:ResidentLoader",
    "dataloader": "apart_fast.loaders.dataloader:DataloaderLoader",
}
LOADER_NAMES: tuple[str, ...] = tuple(LOADER_CLASSES)

__all__ = ["DATASET_NAMES", "LOADER_CLASSES", "LOADER_NAMES"]
