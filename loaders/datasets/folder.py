"""Folders of images: train/<class>/* and test/<class>/*, decoded once and kept as one file."""

import errno
import hashlib
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from apart_fast.errors import UserError
from apart_fast.files import atomic_path
from apart_fast.loaders.datasets.splits import Dataset, Split

CACHE = ".apart_fast"  # files derived from the data lie in this folder beside it
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
# Pillow's modes that fit into 8-bit gray or RGB; 16-bit and float images would silently lose depth
_GRAY = {"1", "L"}
_COLOR = {"LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr"}


def load_folder(root: Path, *, name: str = "folder", flip: bool = True, progress: bool = True) -> Dataset:
    """Load root/train/<class>/* and root/test/<class>/* (png, jpg, webp; all of one size).

    Classes are numbered by name, images are sorted by name. The images have one channel if all of them are gray,
    otherwise three. Decoded images are kept in `root/.apart_fast` (if it can be written) and used again as long as
    names, sizes and times of the files stay the same.

    Raises:
        UserError: a folder is missing or empty, train and test have different classes, an image cannot be read or has
            another size than the others, or no space is left.
    """
    files = {part: _list(root / part) for part in ("train", "test")}
    classes = sorted(files["train"])
    if classes != sorted(files["test"]):
        odd = sorted(set(files["train"]) ^ set(files["test"]))[0]
        raise UserError(f"class {odd!r} is in only one of train and test of {root}: both need the same classes")
    paths = [path for part in files.values() for label in classes for path in part[label]]
    labels = {
        p: np.repeat(np.arange(len(classes), dtype=np.int64), [len(part[c]) for c in classes])
        for p, part in files.items()
    }

    cache = root / CACHE / f"images-{_digest(root, paths)}.npz"
    images = _read_cache(cache)
    if images is None:
        images = _decode(paths, progress)
        _write_cache(cache, images)
    cut = len(labels["train"])
    train, test = (
        Split(torch.from_numpy(a), torch.from_numpy(labels[part]), f"{name}-{part}", root / CACHE)
        for part, a in (("train", images[:cut]), ("test", images[cut:]))
    )
    return Dataset(name, train, test, classes, flip)


def _list(folder: Path) -> dict[str, list[os.DirEntry]]:
    """Class name -> its image files, sorted by name."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: put the images into {folder}/<class>/ (png, jpg or webp)")
    found = {}
    for label in os.scandir(folder):
        if label.is_dir() and not label.name.startswith("."):
            entries = [e for e in os.scandir(label.path) if _is_image(e.name)]
            if not entries:
                raise UserError(f"class folder {label.path} holds no png, jpg or webp: add images or remove the folder")
            found[label.name] = sorted(entries, key=lambda entry: entry.name)
    if not found:
        raise UserError(f"{folder} holds no class folders: put the images into {folder}/<class>/")
    return found


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")


def _digest(root: Path, files: list[os.DirEntry]) -> str:
    """Names, sizes and times of the files: cheap, and changes when an image does."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise UserError(f"{file.path} cannot be read ({error.strerror}): replace it or remove it") from error
        digest.update(os.fsencode(os.path.relpath(file.path, root)))
        digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _decode(files: list[os.DirEntry], progress: bool) -> np.ndarray:
    """uint8 [N, H, W, C]."""
    # one thread: small images cost mostly Python's own time, and threads made it half as fast
    images: np.ndarray | None = None
    color = False
    for i, file in enumerate(
        tqdm(files, "decoding images", unit="img", mininterval=0.5, disable=None if progress else True)
    ):
        image, has_color = _decode_one(file.path)
        if images is None:
            images = np.empty((len(files), *image.shape), dtype=np.uint8)
        if image.shape != images.shape[1:]:
            (h, w), (h0, w0) = image.shape[:2], images.shape[1:3]
            raise UserError(f"{file.path} is {w}x{h} but {files[0].path} is {w0}x{h0}: resize the images to one size")
        images[i] = image
        color |= has_color
    assert images is not None  # there is at least one file
    return images if color else np.ascontiguousarray(images[..., :1])


def _decode_one(path: str) -> tuple[np.ndarray, bool]:
    """uint8 [H, W, 3] and whether the file holds colour."""
    try:
        with Image.open(path) as image:
            if image.mode not in _GRAY | _COLOR:
                raise UserError(f"{path} has pixels of type {image.mode}: convert it to 8-bit gray or RGB")
            return np.asarray(image.convert("RGB")), image.mode in _COLOR
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error, Image.DecompressionBombError) as error:
        reason = type(error).__name__ if isinstance(error, Image.UnidentifiedImageError) else error
        raise UserError(f"{path} cannot be read as an image ({reason}): replace it or remove it") from error


def _read_cache(path: Path) -> np.ndarray | None:
    try:
        with np.load(path) as arrays:  # a zip file: its checksum is verified while reading
            return arrays["images"]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        return None  # missing or damaged: the images themselves are still there


def _write_cache(path: Path, images: np.ndarray) -> None:
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, images=images)
    except UserError as error:
        # data in a folder that cannot be written is common and costs only the time to decode it again
        if getattr(error.__cause__, "errno", None) not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
