"""Folders of images, and what is said when they are not in order."""

import errno
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from image_folders import draw, make_folder, refuse
from PIL import Image

from apart_fast.errors import UserError
from apart_fast.loaders import fingerprint, load_dataset
from apart_fast.loaders.datasets import converting, decode, derived, folder


@pytest.mark.parametrize("suffix", ["png", "webp", "PNG"])
def test_folder(suffix, tmp_path):
    pixels = make_folder(tmp_path, classes=("b", "a", "Z"), suffix=suffix)
    for litter in (".notes.txt", "Thumbs.db", "desktop.ini", ".DS_Store"):
        (tmp_path / "train" / "a" / litter).write_text("not an image")
        (tmp_path / "train" / litter).write_text("not an image")
    (tmp_path / "train" / ".hidden").mkdir()
    dataset = load_dataset("folder", tmp_path, progress=False)
    assert dataset.classes == ["Z", "a", "b"] and dataset.flip
    assert dataset.train.images.shape == (9, 5, 6, 3) and dataset.train.images.dtype == torch.uint8
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and dataset.test.labels.tolist() == [0, 1, 2]
    for split, part in ((dataset.train, "train"), (dataset.test, "test")):
        expected = [pixels[path] for path in sorted(pixels) if path.parts[-3] == part]
        assert np.array_equal(split.images.numpy(), expected)


def test_folder_of_jpegs(tmp_path):
    make_folder(tmp_path, suffix="jpeg")
    path = tmp_path / "test" / "b" / "0.jpeg"
    assert np.array_equal(load_dataset("folder", tmp_path).test.images[1], np.asarray(Image.open(path)))


def test_folder_is_gray_only_if_all_images_are(tmp_path):
    make_folder(tmp_path, mode="L")
    gray = load_dataset("folder", tmp_path, progress=False).train.images
    assert gray.shape == (6, 5, 6, 1)
    draw(tmp_path / "test" / "a" / "colour.png", 99)
    mixed = load_dataset("folder", tmp_path, progress=False).train.images
    assert torch.equal(mixed, gray.expand(-1, -1, -1, 3))


def test_folder_is_decoded_once_and_again_when_it_changed(tmp_path, monkeypatch):
    make_folder(tmp_path)
    decoded = []
    read = decode.read_picture
    monkeypatch.setattr(decode, "read_picture", lambda path, *to: decoded.append(path) or read(path, *to))
    first = load_dataset("folder", tmp_path, progress=False)
    assert len(decoded) == 9  # the first one also tells the size of all
    second = load_dataset("folder", tmp_path, progress=False)
    assert len(decoded) == 9 and fingerprint(first.train) == fingerprint(second.train)
    changed = tmp_path / "train" / "b" / "1.png"
    draw(changed, 50)
    os.utime(changed, ns=(1, 1))
    third = load_dataset("folder", tmp_path, progress=False)
    assert len(decoded) == 18 and fingerprint(third.train) != fingerprint(first.train)
    # a damaged cache is only a cache
    for cache in (tmp_path / folder.CACHE).glob("*.npy"):
        data = bytearray(cache.read_bytes())
        data[-300] ^= 1
        cache.write_bytes(data)
    assert fingerprint(load_dataset("folder", tmp_path, progress=False).train) == fingerprint(third.train)
    assert len(decoded) == 27


def test_mixed_sizes(untouched):
    make_folder(untouched)
    draw(untouched / "test" / "b" / "odd.png", 1, size=(7, 5))
    refuse("folder", untouched, r"odd.png is 7x5 but .*train/a/0.png is 6x5: resize the images to one size")


def test_empty_class(untouched):
    make_folder(untouched)
    (untouched / "train" / "c").mkdir()
    refuse("folder", untouched, "train/c holds no png, jpg or webp: add images or remove the folder")


def test_class_without_test_images(untouched):
    make_folder(untouched)
    draw(untouched / "train" / "c" / "0.png", 1)
    refuse("folder", untouched, "class 'c' is in only one of train and test")


@pytest.mark.parametrize("how", ["cut", "text", "empty", "dangling"])
def test_unreadable_image(how, untouched):
    make_folder(untouched)
    victim = untouched / "train" / "b" / "2.png"
    data = victim.read_bytes()
    victim.unlink()
    if how == "dangling":
        victim.symlink_to(untouched / "nowhere")
    else:
        victim.write_bytes({"cut": data[: len(data) // 2], "text": b"not an image", "empty": b""}[how])
    refuse("folder", untouched, r"train/b/2.png cannot be read.*: replace it or remove it")


def test_image_that_would_lose_depth(untouched):
    make_folder(untouched)
    Image.fromarray(np.full((5, 6), 40_000, dtype=np.uint16)).save(untouched / "train" / "a" / "deep.png")
    refuse("folder", untouched, "deep.png has pixels of type I;16: convert it to 8-bit gray or RGB")


@pytest.mark.parametrize("missing", ["train", "test", "both", "classes"])
def test_missing_folder(missing, untouched):
    make_folder(untouched)
    for part in ("train", "test"):
        if missing in (part, "both", "classes"):
            shutil.rmtree(untouched / part)
        if missing == "classes":
            (untouched / part).mkdir()
    said = r"no class folders.*/<class>/" if missing == "classes" else r"no folder.*: put .*/<class>/.* with --data-dir"
    refuse("folder", untouched, said)


def failing_write(code):
    @contextmanager
    def atomic_path(path):
        raise UserError(f"cannot write {path}: choose another") from OSError(code, os.strerror(code))
        yield

    return atomic_path


def test_decoded_images_of_another_user_are_not_damaged(tmp_path, monkeypatch):
    def denied(_path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "is_file", denied)
    with pytest.raises(UserError, match="may not be read .Permission denied.: name another folder .* --cache-dir"):
        derived._found(tmp_path / "x.npy", lambda *_: True, rewrite=True)


def test_no_space_for_decoded_images(untouched, monkeypatch):
    make_folder(untouched)
    monkeypatch.setattr(derived, "atomic_path", failing_write(errno.ENOSPC))
    refuse("folder", untouched, "cannot write .*images-.*npy: free some space, or name another .* with --cache-dir")


@pytest.mark.filterwarnings("ignore:cannot write")
def test_folder_that_cannot_be_written_is_still_read(tmp_path, monkeypatch):
    pixels = make_folder(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(derived, "atomic_path", failing_write(errno.EROFS))
        with pytest.warns(UserWarning, match="npy: name another folder .* --cache-dir; .* in memory"):
            data = load_dataset("folder", tmp_path, progress=False)
        assert np.array_equal(data.test.images, [pixels[p] for p in sorted(pixels) if p.parts[-3] == "test"])
        patch.setattr(converting, "available_bytes", lambda: 700)
        refuse("folder", tmp_path, r"--cache-dir; the memory \(7e-07 GB free\) is too small for the decoded images")
        refuse("folder", tmp_path, "cannot write .*: name another folder", cache=tmp_path / "mine")
    # what was known of the images is the same wherever they lie
    kept = load_dataset("folder", tmp_path, progress=False)
    assert [fingerprint(s) for s in (data.train, data.test)] == [fingerprint(s) for s in (kept.train, kept.test)]
