"""Pictures of any size brought to one: what was done to the training images is done to all that a network is shown.
Imported without torch."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from apart_fast.loaders.datasets.reading import Resizing

_MOST = 2**26  # pixels of a resized picture from which only the part that is kept is computed


def resize(picture: Image.Image, to: Resizing) -> NDArray[np.uint8]:
    """A picture (mode L or RGB, any size) as uint8 [size, size, 3].

    Bilinear with antialiasing, sizes rounded and parts placed as by torchvision's `Resize` and `CenterCrop`: of crop
    and squash the bits are those of its transforms of a PIL image.
    """
    # a copy: what Pillow hands out cannot be written to, which torch warns of
    return np.array(HOW[to.how](picture, to.size).convert("RGB"))


def enlarges(picture: tuple[int, int], to: Resizing) -> bool:
    """Whether a picture of (width, height) is smaller than what is made of it."""
    return (max if to.how == "pad" else min)(picture) < to.size


def _crop(picture: Image.Image, size: int) -> Image.Image:
    short = min(picture.size)
    width, height = (size if side == short else int(size * side / short) for side in picture.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    if width * height <= _MOST:
        return _scaled(picture, (width, height)).crop((left, top, left + size, top + size))
    # a line of pixels would become a picture of gigabytes; the bits may differ from those of the whole
    across, down = picture.width / width, picture.height / height
    box = (left * across, top * down, (left + size) * across, (top + size) * down)
    return picture.resize((size, size), Image.Resampling.BILINEAR, box=box)


def _pad(picture: Image.Image, size: int) -> Image.Image:
    long = max(picture.size)
    width, height = (size if side == long else max(1, int(size * side / long)) for side in picture.size)
    padded = Image.new(picture.mode, (size, size))
    padded.paste(_scaled(picture, (width, height)), ((size - width) // 2, (size - height) // 2))
    return padded


def _squash(picture: Image.Image, size: int) -> Image.Image:
    return _scaled(picture, (size, size))


def _scaled(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture.resize(size, Image.Resampling.BILINEAR)


HOW: dict[str, Callable[[Image.Image, int], Image.Image]] = {"crop": _crop, "pad": _pad, "squash": _squash}
