"""Nothing in a folder of images is left out without a word, and nothing else is taken for it."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from image_folders import draw, make_folder, refuse
from PIL import Image, features

from apart_fast.errors import UserError
from apart_fast.files import atomic_path, remove_abandoned
from apart_fast.loaders import fingerprint, load_dataset
from apart_fast.loaders.datasets import converting, folder, listing

SUFFIXES = ["png", "jpg", "JPEG", "jpe", "webp", "bmp", "tif", "TIFF", "gif", "ppm", "pgm"]


def load(root):
    return load_dataset("folder", root, progress=False)


def test_every_kind_of_picture_beside_each_other(tmp_path):
    kinds = SUFFIXES + ["avif"] * features.check("avif")
    for part in ("train", "test"):
        for label in ("a", "b"):
            for i, kind in enumerate(kinds):
                path = tmp_path / part / label / f"{i:02}.{kind}"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.full((16, 16, 3), 20 * i, np.uint8)
                Image.fromarray(pixels).convert("L" if kind == "pgm" else "RGB").save(path)
    data = load(tmp_path)
    assert len(data.train) == len(data.test) == 2 * len(kinds)
    expected = torch.arange(len(kinds)).mul(20).repeat(2)
    assert (data.train.images[:, 8, 8, 0].int() - expected).abs().max() <= 1


@pytest.mark.parametrize("name", ["notes.txt", "photo.heic", "labels.csv", "picture", "0.png.bak"])
def test_what_is_no_picture(name, untouched):
    make_folder(untouched)
    for stray in (name, f"z{name}"):
        (untouched / "test" / "b" / stray).write_text("not an image")
    refuse(
        "folder", untouched, rf"test/b/{name} is no picture that can be read here \(2 such files in its folder; png, "
    )


def test_pictures_in_a_folder_within_a_class(untouched):
    make_folder(untouched)
    draw(untouched / "train" / "a" / "more" / "0.png", 1)
    refuse("folder", untouched, "train/a/more is a folder within a class: put its pictures into .*train/a itself")


def test_files_beside_the_class_folders(untouched):
    make_folder(untouched)
    draw(untouched / "train" / "0.png", 1)
    refuse("folder", untouched, r"train/0.png lies beside the class folders \(1 such file there\): put pictures into")


@pytest.mark.parametrize("how", ["dangling", "loop"])
@pytest.mark.parametrize("what", ["train", "train/c"])
def test_links_that_lead_nowhere(what, how, untouched):
    make_folder(untouched)
    if what == "train":
        shutil.rmtree(untouched / "train")
    (untouched / what).symlink_to(untouched / (what if how == "loop" else "nowhere"))
    refuse("folder", untouched, f"{what} cannot be read .a link that leads nowhere: .*: mend it or remove it")


@pytest.mark.parametrize("what", ["train", "train/b"])
def test_a_folder_that_may_not_be_read(what, untouched, monkeypatch):
    make_folder(untouched)
    scandir = os.scandir

    def refusing(path):
        if str(path) == str(untouched / what):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(listing.os, "scandir", refusing)
    refuse("folder", untouched, rf"folder .*{what} cannot be read \(Permission denied\): mend it or remove it")


def test_a_class_that_is_another_one_by_a_link(untouched):
    make_folder(untouched)
    for part in ("train", "test"):
        (untouched / part / "c").symlink_to(untouched / part / "a")
    refuse("folder", untouched, "train/a and .*train/c are the same folder: remove the link that is not a class")


def test_classes_may_be_links(tmp_path):
    make_folder(tmp_path / "real")
    for part in ("train", "test"):
        (tmp_path / "linked" / part).mkdir(parents=True)
        for label in ("a", "b"):
            (tmp_path / "linked" / part / label).symlink_to(tmp_path / "real" / part / label)
    assert torch.equal(load(tmp_path / "linked").train.images, load(tmp_path / "real").train.images)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_a_picture_that_is_no_file(kind, untouched, monkeypatch):
    make_folder(untouched)
    monkeypatch.chdir(untouched / "train" / "a")
    if kind == "pipe":
        os.mkfifo("x.png")
    elif kind == "device":
        os.symlink("/dev/zero", "x.png")
    else:
        server = socket.socket(socket.AF_UNIX)
        server.bind("x.png")
        server.close()
    if kind == "device":  # `refuse` would read it
        with pytest.raises(Exception, match="train/a/x.png is a device, which cannot be read as an image: remove it"):
            load(untouched)
    else:
        refuse("folder", untouched, f"train/a/x.png is a {kind}, which cannot be read as an image: remove it")


def test_names_that_are_not_utf8(tmp_path, capsys):
    make_folder(tmp_path)
    odd = os.fsencode(tmp_path) + b"/%s/\xff\xe4"
    for part in (b"train", b"test"):
        os.rename(os.fsencode(tmp_path) + b"/" + part + b"/b", odd % part)
    os.rename(odd % b"train" + b"/0.png", odd % b"train" + b"/\xfe\n.png")
    data = load(tmp_path)
    assert data.classes == ["a", "\\xff\\xe4"] and len(data.train) == 6
    "".join(data.classes).encode()  # can be written anywhere
    with open(odd % b"train" + b"/\xfe\n.png", "wb") as file:
        file.write(b"damaged")
    with pytest.raises(Exception, match=r"train/\\xff\\xe4/\\xfe\\n.png cannot be read as an image") as raised:
        load(tmp_path)
    assert "\n" not in str(raised.value) and str(raised.value).encode()


def test_what_may_not_be_meant_is_said(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "val").mkdir()
    with pytest.warns(UserWarning, match=r"not used: val in .* \(validation images are taken from train\)"):
        load(tmp_path)
    shutil.rmtree(tmp_path / "test")
    (tmp_path / "test").symlink_to("train")
    with pytest.warns(UserWarning, match="train and test of .* are the same folder: testing on training images"):
        load(tmp_path)


@pytest.mark.parametrize("how", ["fewer", "float", "flat", "channels", "turned", "altered", "cut", "objects", "pipe"])
def test_decoded_images_that_do_not_fit_the_files(how, tmp_path):
    make_folder(tmp_path)
    first = load(tmp_path).train.images.clone()
    (cache,) = (tmp_path / folder.CACHE).glob("*.npy")
    images, data = np.load(cache), cache.read_bytes()
    cache.unlink()
    if how == "cut":
        cache.write_bytes(data[:-1])
    elif how == "pipe":
        os.mkfifo(cache)
    else:
        changed = {
            "fewer": images[:-1],
            "float": images.astype(np.float32),
            "flat": images[..., 0],
            "channels": images[..., :2],
            "turned": np.asfortranarray(images),
            "altered": images ^ 1,
            "objects": np.array([print], object),
        }[how]
        np.save(cache, changed, allow_pickle=True)
    assert torch.equal(load(tmp_path).train.images, first)
    assert cache.read_bytes() == data


@pytest.mark.parametrize("how", ["gone", "empty", "list", "deep", "binary", "altered", "folder"])
def test_a_note_that_is_not_what_was_written(how, tmp_path, monkeypatch):
    make_folder(tmp_path)
    first = load(tmp_path).train
    (note,) = (tmp_path / folder.CACHE).glob("*.json")
    text = note.read_text()
    note.unlink()
    if how == "folder":
        note.mkdir()
        with pytest.raises(UserError, match="cannot write .*json .*: name another folder .* --cache-dir"):
            load(tmp_path)
        return
    if how != "gone":
        wrong = {"empty": "", "list": "[]", "deep": "[" * 10**5, "binary": "\0", "altered": text.replace("0", "1")}
        note.write_text(wrong[how])
    assert fingerprint(load(tmp_path).train) == fingerprint(first)
    assert json.loads(note.read_text())["fingerprints"] == json.loads(text)["fingerprints"]


def test_images_kept_by_an_older_version_are_removed_with_them(tmp_path):
    make_folder(tmp_path)
    load(tmp_path)
    (cache,) = (tmp_path / folder.CACHE).glob("*.npy")
    cache.unlink()
    old = cache.with_suffix(".npz")  # of these pictures; the other is not theirs
    for path in (old, old.with_name("images-of-others.npz")):
        np.savez(path, images=np.zeros((7, 5, 6, 3), np.uint8), notes=np.array([], np.str_))
    load(tmp_path)
    assert [path.name for path in cache.parent.glob("*.npz")] == ["images-of-others.npz"]


def test_images_of_pictures_that_have_changed_are_named_where_they_are_many(tmp_path, monkeypatch):
    make_folder(tmp_path)
    load(tmp_path)
    draw(tmp_path / "train" / "a" / "3.png", 9)
    monkeypatch.setattr(converting, "_WORTH_A_LINE", 100)
    with pytest.warns(UserWarning, match=r"images decoded earlier \(8.48e-07 GB\) lie in .*, too: delete them unless"):
        load(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path)  # said once


def test_what_a_killed_process_left_is_removed(tmp_path):
    make_folder(tmp_path)
    cache = tmp_path / folder.CACHE
    script = (
        "import sys, time\nfrom apart_fast.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as path:\n    path.write_text('half')\n    print(flush=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(cache / "images-x.npz")], stdout=subprocess.PIPE)
    process.stdout.readline()
    with atomic_path(cache / "mine") as mine:
        load(tmp_path)
        assert len(list(cache.glob(".*.tmp"))) == 2  # both are being written
        process.send_signal(signal.SIGKILL)
        process.wait()
        load(tmp_path)
        assert list(cache.glob(".*.tmp")) == [mine]
        mine.write_text("whole")
    assert (cache / "mine").read_text() == "whole"


def test_what_is_there_is_not_removed_with_it(tmp_path):
    """The folder may be a scratch disk of all."""
    kept = {"a.tmp", "a.apart_fast.tmp", ".b", "c", ".notes.tmp", ".colleague.tmp"}
    (tmp_path / ".colleague.tmp").mkdir()
    for name in kept - {".colleague.tmp"}:
        (tmp_path / name).touch()
    (tmp_path / ".link.apart_fast.tmp").symlink_to("c")
    os.mkfifo(tmp_path / ".pipe.apart_fast.tmp")
    start = time.perf_counter()
    remove_abandoned(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= kept and time.perf_counter() - start < 1
