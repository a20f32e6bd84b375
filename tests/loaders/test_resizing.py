"""Pictures of any size brought to one, as torchvision's transforms do it, once, and remembered."""

import warnings
from dataclasses import asdict

import numpy as np
import pytest
import torch
from image_folders import draw, make_folder, refuse
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from apart_fast.kernels.crop import gather_crop
from apart_fast.loaders import Split, load_dataset, make_loader
from apart_fast.loaders.datasets import decode, folder, table
from apart_fast.loaders.datasets.load import _resized
from apart_fast.loaders.datasets.picture import Encoded, read_picture
from apart_fast.loaders.datasets.reading import WAYS, Reading, Resizing, reading_of
from apart_fast.loaders.datasets.resizing import HOW, resize
from apart_fast.units import usual_padding


def mixed(root):
    """Pictures of which no two have the same size, some of one pixel's height."""
    sizes = iter([(20, 31), (9, 9), (64, 1), (1, 40), (33, 8), (15, 16), (40, 41), (8, 60)])
    for part, count in (("train", 3), ("test", 1)):
        for label in ("a", "b"):
            for i in range(count):
                draw(root / part / label / f"{i}.png", i, size=next(sizes))


def load(name, root, to, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_dataset(name, root, progress=False, reading=Reading(to), **options)


def test_the_bits_are_those_of_torchvision():
    drawn = np.random.default_rng(0)
    for _ in range(60):
        (w, h), n = drawn.integers(1, 200, 2), int(drawn.integers(1, 90))
        picture = Image.fromarray(drawn.integers(0, 256, (h, w, 3), dtype=np.uint8))
        long = max(w, h)
        inside = [n if side == long else max(1, int(n * side / long)) for side in (h, w)]
        theirs = {
            "crop": Compose([Resize(n), CenterCrop(n)]),
            "pad": Compose([Resize(inside), CenterCrop(n)]),
            "squash": Resize((n, n)),
        }
        for how in WAYS:
            assert np.array_equal(resize(picture, Resizing(n, how)), np.asarray(theirs[how](picture))), (w, h, n, how)
    assert tuple(HOW) == WAYS


@pytest.mark.parametrize("size", [(1_000_000, 1), (1, 1_000_000)])
def test_a_line_of_pixels_does_not_become_gigabytes(size):
    assert resize(Image.new("RGB", size, (7, 8, 9)), Resizing(128)).tolist() == [[[7, 8, 9]] * 128] * 128


@pytest.mark.parametrize("how", WAYS)
def test_a_folder_of_mixed_sizes(how, tmp_path):
    mixed(tmp_path)
    data = load("folder", tmp_path, Resizing(12, how))
    assert data.train.shape == (6, 12, 12, 3) and data.test.shape == (2, 12, 12, 3)
    with Image.open(tmp_path / "train" / "b" / "2.png") as picture:
        assert np.array_equal(data.train.images[5], resize(picture, Resizing(12, how)))


def test_it_is_done_once_for_each_size_and_way(tmp_path, monkeypatch):
    mixed(tmp_path)
    first = load("folder", tmp_path, Resizing(12))
    for other in (Resizing(12, "pad"), Resizing(13)):
        assert not torch.equal(load("folder", tmp_path, other).train.images[:, :2, :2], first.train.images[:, :2, :2])
    assert len(list((tmp_path / folder.CACHE).glob("*.npy"))) == 3
    monkeypatch.setattr(decode, "read_picture", None)
    assert torch.equal(load("folder", tmp_path, Resizing(12)).train.images, first.train.images)


def test_without_a_size_the_line_names_the_flag(untouched):
    mixed(untouched)
    refuse("folder", untouched, "is 9x9 but .* is 20x31: resize the images to one size, or have it done with --image-s")


def test_smaller_pictures_are_enlarged_with_a_note(tmp_path):
    make_folder(tmp_path)
    draw(tmp_path / "train" / "a" / "large.png", 1, size=(30, 20))
    with pytest.warns(UserWarning, match="8 of 9 pictures are smaller than the size asked for: enlarged"):
        load_dataset("folder", tmp_path, progress=False, reading=Reading(Resizing(16)))


def test_upright_and_on_white_come_before(tmp_path):
    stored = np.random.default_rng(1).integers(0, 256, (30, 20, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "x.png", exif=exif)
    whole = read_picture(str(tmp_path / "x.png"))
    assert whole.pixels.shape == (20, 30, 3)
    found = read_picture(Encoded("x", (tmp_path / "x.png").read_bytes()), Resizing(10, "pad"))
    assert np.array_equal(found.pixels, resize(Image.fromarray(whole.pixels), Resizing(10, "pad")))
    assert found.notes == whole.notes


@pytest.mark.parametrize("mode", ["CMYK", "I;16"])
def test_what_is_refused_is_refused_with_a_size_too(mode, untouched):
    make_folder(untouched)
    file = untouched / "train" / "a" / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.new(mode, (50, 40)).save(file)
    refuse("folder", untouched, "x.(jpg|png) has pixels of type", reading=Reading(Resizing(16)))


def test_pictures_of_108_million_pixels_are_resized_and_larger_ones_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for side, ok in ((40, True), (50, False)):
        Image.new("L", (side, side)).save(tmp_path / "x.png")
        with pytest.raises(Exception, match=r"too large .*: resize it \(--image-size takes twice as many pixels\)"):
            read_picture(str(tmp_path / "x.png"))
        if ok:
            assert read_picture(str(tmp_path / "x.png"), Resizing(8)).pixels.shape == (8, 8, 3)
        else:
            with pytest.raises(Exception, match="too large to be an image of a data set: resize it or remove it"):
                read_picture(str(tmp_path / "x.png"), Resizing(8))


@pytest.mark.filterwarnings("ignore:.*instead of")
def test_a_known_set(tmp_path):
    make_folder(tmp_path, classes=tuple("0123456789"), size=(28, 28), mode="L")
    data = load("fashion-mnist", tmp_path, Resizing(40))
    assert data.train.shape == (30, 40, 40, 1) and data.classes == list(table.KNOWN["fashion-mnist"].names)


def test_other_labels_make_another_known_set():
    """What is known of both is kept under the key: a resumed run would take others for its own."""
    images = [np.zeros((2, 28, 28, 1), np.uint8), np.zeros((1, 28, 28, 1), np.uint8)]
    drawn = [[[0, 1], [1]], [[0, 1], [0]], [[0], [1, 1]], [[0, 1], [1]]]
    keys = [_resized(images, [np.array(y) for y in labels], Resizing(32)).key for labels in drawn]
    assert keys[0] == keys[3] and len(set(keys)) == 3


def test_what_a_checkpoint_says_of_it():
    reading = Reading(Resizing(64, "pad"), label_column="fine")
    assert reading_of({"reading": asdict(reading)}) == reading and reading_of({}) == Reading()
    assert reading.columns == {"label_column": "fine"}


def test_the_padding_goes_with_the_size():
    assert [usual_padding(n, n) for n in (1, 4, 28, 32, 48, 64, 96, 128)] == [0, 3, 4, 4, 6, 8, 12, 16]
    assert usual_padding(64, 200) == 8


@pytest.mark.parametrize("size", [64, 128])
def test_omega_is_cropped_and_flipped_as_larger_images_are(size):
    """Were the padded images remembered, each crop of them would be that of the images."""
    padding, drawn = usual_padding(size, size), np.random.default_rng(0)
    images = torch.from_numpy(drawn.integers(0, 256, (6, size, size, 3), dtype=np.uint8))
    padded = torch.nn.functional.pad(images.permute(0, 3, 1, 2), (padding,) * 4, value=9).permute(0, 2, 3, 1)
    split = Split(images, torch.arange(6) % 2)
    with make_loader("resident", split, batch_size=6, seed=0, padding=padding, flip=True) as loader:
        (batch,) = loader.epoch(0)
    assert int(batch.offsets.max()) > 8 and batch.flips.any() and not batch.flips.all()
    of_images = gather_crop(batch.images, batch.rows, batch.crops, (size, size), 9, padding=padding)
    of_memory = gather_crop(padded.contiguous(), batch.crops.omega_rows, batch.crops, (size, size))
    assert torch.equal(of_images, of_memory)
