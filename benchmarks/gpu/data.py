"""Make CIFAR-10 ready, so that a training does not decode or download; without it, draw images to time steps on.

    python benchmarks/gpu/data.py --data-dir data --drawn /tmp/drawn --out /tmp

Writes data.json (how many images, where, seconds) once they are there. Without them: drawn images, and exit code 2.
Without --data-dir: drawn images only, which then count as the real ones (for a dry pass).
"""

import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from apart_fast.cli import guarded
from apart_fast.errors import UserError
from apart_fast.files import atomic_write, expand_paths, to_json
from apart_fast.loaders import load_dataset

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
PATIENCE = 20.0  # seconds for a server that does not answer


@dataclass
class Config:
    """Make the images ready."""

    drawn: Path
    """Folder for drawn images."""
    out: Path
    """Folder for data.json."""
    data_dir: Path | None = None
    """Where CIFAR-10 lies, or is downloaded to. None: draw."""
    images: int = 4096
    """Drawn training images; an eighth as many for tests."""


def draw(root: Path, images: int) -> None:
    """Noise of ten brightnesses as train/<class>/*.png and test/<class>/*.png, 32x32 RGB."""
    random = np.random.default_rng(0)
    for part, count in (("train", images), ("test", max(32, images // 8))):
        for i in range(count):
            label = i % len(CLASSES)
            folder = root / part / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 80, (32, 32, 3)) + 17 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:05}.png", compress_level=1)


def main(config: Config) -> None:
    """Load, or draw.

    Raises:
        UserError: CIFAR-10 is not there and cannot be fetched; images are drawn by then.
    """
    began = time.monotonic()
    socket.setdefaulttimeout(PATIENCE)
    try:
        root = config.data_dir or config.drawn
        if config.data_dir is None:
            draw(root, config.images)
        data = load_dataset("cifar10", root, progress=False)
    except UserError:
        draw(config.drawn, config.images)
        raise
    about = {"train": len(data.train), "test": len(data.test), "drawn": config.data_dir is None}
    about |= {"seconds": time.monotonic() - began}
    atomic_write(config.out / "data.json", to_json(about))
    print(f"{about['train']:,} training and {about['test']:,} test images, {about['seconds']:.1f} s")


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(expand_paths(tyro.cli(Config, description=__doc__)))))
