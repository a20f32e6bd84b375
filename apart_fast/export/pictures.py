"""Pictures from files as a network takes them, read by the very code that reads them for training."""

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apart_fast.errors import UserError
from apart_fast.export.stored import Stored
from apart_fast.loaders.datasets.listing import shown
from apart_fast.loaders.datasets.picture import Picture, read_picture


def read_pictures(paths: Sequence[Path], stored: Stored) -> Tensor:
    """uint8 [N, H, W, C], as the network takes them: brought to one size where the training images were. A line says
    what was done to pictures without being asked.

    Raises:
        UserError: one cannot be read, has another size, or holds colour where the network takes gray.
    """
    notes: Counter[str] = Counter()
    made = []
    for path in paths:
        picture = read_picture(str(path), stored.reading.resizing)
        notes.update(picture.notes)
        made.append(_fitted(picture, path, stored))
    for note, count in sorted(notes.items()):
        warnings.warn(f"{count} of {len(paths)} pictures {note}", stacklevel=2)
    return torch.from_numpy(np.stack(made))


def _fitted(picture: Picture, path: Path, stored: Stored) -> NDArray[np.uint8]:
    height, width, channels = stored.image_shape
    pixels = picture.pixels
    if pixels.shape[:2] != (height, width):
        raise UserError(
            f"{shown(path)} is {pixels.shape[1]}x{pixels.shape[0]}, the network takes {width}x{height}: its training "
            "images were not resized: resize it"
        )
    if channels == 3:
        return pixels
    if channels != 1:
        raise UserError(f"the network takes pictures of {channels} channels, which no picture file has")
    if (pixels != pixels[..., :1]).any():
        raise UserError(f"{shown(path)} holds colour, the network takes gray pictures: convert it")
    return pixels[..., :1]
