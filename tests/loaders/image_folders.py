"""Folders of images for tests of data sets, and bad ones that are refused."""

import numpy as np
import pytest
from PIL import Image

from apart_fast.errors import UserError
from apart_fast.loaders import load_dataset
from apart_fast.loaders.datasets.folder import CACHE


def draw(path, value, size=(6, 5), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, lossless=True)
    return pixels


def make_folder(root, classes=("a", "b"), suffix="png", **options):
    """Three training images and one test image of each class; returns {path: pixels}."""
    names = [("train", c, i) for c in classes for i in range(3)] + [("test", c, 0) for c in classes]
    paths = [root / part / c / f"{i}.{suffix}" for part, c, i in names]
    return {path: draw(path, value, **options) for value, path in enumerate(paths)}


def snapshot(root):
    return {str(p): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file() and CACHE not in p.parts}


def refuse(name, root, message, **options):
    before = snapshot(root)
    with pytest.raises(UserError, match=message) as raised:
        load_dataset(name, root, progress=False, **options)
    assert "\n" not in str(raised.value)
    assert snapshot(root) == before
