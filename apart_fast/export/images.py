"""Images to compare on: those that the network was tested on, where they are at hand."""

import warnings
from pathlib import Path

import torch
from torch import Tensor

from apart_fast.errors import UserError
from apart_fast.export.stored import Stored
from apart_fast.loaders import load_dataset, subset
from apart_fast.runs import checkpoint
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.folder import RunFolder

_SEED = 0


def find_images(stored: Stored, data_dir: Path | None, cache_dir: Path | None, count: int) -> tuple[Tensor, str]:
    """uint8 [N, H, W, C], at most `count`, and what they are in words.

    Nothing is downloaded. Where the test images are not at hand, or are not those that the network knows, pixels are
    drawn.
    """
    try:
        config = RunFolder.open(stored.file.parent)[1]
    except UserError:  # a checkpoint elsewhere
        config = TrainConfig()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd about the data was said in training
            data = load_dataset(
                stored.dataset,
                data_dir or config.data_dir,
                download=False,
                progress=False,
                cache=cache_dir or (config.cache_dir if data_dir is None else None),
                reading=stored.reading,
            )
            data = checkpoint.check_data(stored.description, data, stored.dataset, stored.file, stored.classes)
    except UserError as error:
        shape = (min(count, 256), *stored.image_shape)
        drawn = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(_SEED))
        return drawn, f"drawn pixels, as the test images are not at hand ({str(error).partition(': ')[0]})"
    test = subset(data.test, min(count, len(data.test)))
    return test.images, f"test images of {stored.public_dataset}"
