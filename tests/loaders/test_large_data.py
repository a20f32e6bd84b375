"""Images in a mapped file, parts of it by number, and what needs them all in memory or not."""

import fcntl
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import fields, replace
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from image_folders import draw, make_folder, refuse
from PIL import Image

from apart_fast.analysis.settings import CurvesConfig
from apart_fast.check.settings import CheckConfig
from apart_fast.cli import train_command
from apart_fast.errors import UserError
from apart_fast.loaders import Split, fingerprint, load_dataset, make_loader, subset, take_validation
from apart_fast.loaders.datasets import converting, decode, derived, folder, mapped, statistics, writing
from apart_fast.loaders.datasets.fingerprints import Fingerprint
from apart_fast.loaders.datasets.splits import content_key
from apart_fast.runs.config import DemoConfig, EvaluateConfig, TrainConfig
from apart_fast.step import omega

needs_ffcv = pytest.mark.skipif(find_spec("ffcv") is None, reason="ffcv is not installed: pip install apart_fast[ffcv]")
DISK = [pytest.param("ffcv", marks=needs_ffcv), "dataloader"]
OPTIONS = {"batch_size": 4, "seed": 3, "padding": 2, "flip": True, "progress": False}


def load(root, **options):
    return load_dataset("folder", root, progress=False, **options)


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A folder of 24 and 8 images, treated as if they were too many to be read at every start."""
    make_folder(tmp_path, classes="abcdefgh")
    monkeypatch.setattr(derived, "READ_ANEW", 0)
    return tmp_path


def pixels_of(split):
    """What a fingerprint would be if nothing were known of the images."""
    found = Fingerprint(split.shape)
    found.add(split.images.numpy())
    return found.finish(split.labels.numpy())


# ---------------------------------------------------------------------------------------------------------------------
# parts by number


def test_parts_share_the_images(tmp_path):
    make_folder(tmp_path, classes="abcdefgh")
    data = load(tmp_path)
    train, val = take_validation(data.train, 6)
    small = subset(train, 9)
    for part in (train, val, small, small.take(np.array([8, 0, 0]))):
        assert part.store.data_ptr() == data.train.store.data_ptr()
        assert part.images.shape == part.shape and torch.equal(torch.cat(list(part.blocks())), part.images)
        assert fingerprint(part) == pixels_of(part)
    assert torch.equal(small.take(np.array([8, 0])).images, small.images[[8, 0]])
    with make_loader("resident", small, **OPTIONS) as loader:
        assert loader.images.data_ptr() == data.train.store.data_ptr()  # on the CPU nothing is copied


def test_fingerprints_are_known_and_right(large, monkeypatch):
    first = load(large)
    monkeypatch.setattr(Fingerprint, "add", None)  # nothing is read for them
    data = load(large)
    known = [fingerprint(split) for split in (data.train, data.test)]
    part = subset(data.train, 9)
    keys = [content_key(split) for split in (part, subset(data.train, 8), replace(part, labels=part.labels + 1))]
    monkeypatch.undo()
    assert known == [pixels_of(split) for split in (first.train, first.test)]
    assert len({*keys, *known}) == 5
    other = replace(data.train, labels=data.train.labels.flip(0))  # the kept one is not that of other labels
    assert fingerprint(other) == pixels_of(other) != known[0] and content_key(other) == fingerprint(other)


def test_statistics_of_many_images(monkeypatch):
    images = torch.randint(0, 256, (40, 9, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.zeros(40, dtype=torch.int64)).take(np.arange(3, 40))
    before = statistics.channel_statistics(split)
    monkeypatch.setattr(statistics, "_AT_ONCE", 0)
    monkeypatch.setattr("apart_fast.loaders.datasets.splits._BLOCK", 1000)
    pixels = images[3:].double().reshape(-1, 3) / 255
    for found, old, exact in zip(
        statistics.channel_statistics(split), before, (pixels.mean(0), pixels.std(0)), strict=True
    ):
        assert np.allclose(found, exact, atol=1e-12) and np.allclose(found, old, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# the file


def test_what_is_written_to_mapped_images_stays_in_the_process(tmp_path):
    make_folder(tmp_path)
    data = load(tmp_path)
    before = data.train.images.clone()
    data.train.images.fill_(7)
    assert torch.equal(load(tmp_path).train.images, before)


@pytest.mark.parametrize("first_color", [0, 1, 5, 11, 12])
def test_channels_are_as_many_as_the_last_picture_needs(first_color, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "_BLOCK", 90)  # three gray pictures
    monkeypatch.setattr(decode, "_MOST", 2)
    for i in range(12):
        path = tmp_path / "train" / "ab"[i % 2] / f"{i:02}.png"
        draw(path, i, mode="L" if i % 2 * 6 + i // 2 < first_color else "RGB")
    for label in "ab":
        draw(tmp_path / "test" / label / "0.png", 99, mode="L" if first_color == 12 else "RGB")
    data = load(tmp_path)
    paths = [*sorted((tmp_path / "train").rglob("*.png")), *sorted((tmp_path / "test").rglob("*.png"))]
    expected = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    expected = expected[..., :1] if first_color == 12 else expected
    assert np.array_equal(torch.cat([data.train.images, data.test.images]), expected)
    assert fingerprint(data.train) == pixels_of(data.train) and fingerprint(data.test) == pixels_of(data.test)
    assert torch.equal(load(tmp_path).test.images, data.test.images)
    (file,) = (tmp_path / folder.CACHE).glob("*.npy")
    assert np.array_equal(np.load(file, mmap_mode="r"), expected)  # plain npy


def test_a_large_file_is_read_again_only_when_it_was_touched(large, monkeypatch):
    read, look = [], converting.checksum
    monkeypatch.setattr(converting, "checksum", lambda path, seen: read.append(path) or look(path, seen))
    before = load(large).train.images.clone()
    load(large)
    assert not read
    (file,) = (large / folder.CACHE).glob("*.npy")
    os.utime(file)  # copied to another disk, say
    assert torch.equal(load(large).train.images, before) and len(read) == 1
    load(large)
    assert len(read) == 1
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert torch.equal(load(large).train.images, before) and len(read) == 2
    data[-1] ^= 1
    assert file.read_bytes() == data


@pytest.mark.parametrize("kind", DISK)
@pytest.mark.parametrize("world_size", [1, 2])
def test_the_same_batches_from_a_file_that_is_not_at_hand(kind, world_size, large, monkeypatch):
    told = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *args: told.append(args))
    train, _ = take_validation(load(large).train, 3)
    options = OPTIONS | {"rank": world_size - 1, "world_size": world_size}
    with make_loader("resident", train, **options) as reference, make_loader(kind, train, **options) as loader:
        for epoch in (0, 1):
            pairs = list(zip(reference.epoch(epoch), loader.epoch(epoch), strict=True))
            for a, b in pairs:
                assert torch.equal(a.images[a.rows], b.images[b.rows]) and torch.equal(a.labels, b.labels)
                assert torch.equal(a.indices, b.indices) and torch.equal(a.offsets, b.offsets)
    size = train.store[0].nbytes
    assert len(told) == 2 * loader.num_examples and {length for _, _, length, _ in told} == {size}
    (file,) = large.rglob("*.beton" if kind == "ffcv" else "*.npy")
    places = {place for _, place, _, _ in told}
    images = {file.read_bytes()[place : place + size] for place in places}
    assert images == {train.images[i].numpy().tobytes() for i in range(len(train))[world_size - 1 :: world_size]}


def test_workers_open_the_file_themselves(large):
    train = load(large).train
    sent = pickle.dumps(train.file.scattered())
    assert len(sent) < 1000  # none of the images
    again = pickle.loads(sent)
    assert torch.equal(again.images, train.images) and again.is_scattered
    with make_loader("dataloader", train, workers=1, **OPTIONS) as loader:
        found = torch.cat([batch.indices for batch in loader.epoch(0)])
        images = torch.cat([batch.images for batch in loader.epoch(0)])
    assert torch.equal(images, train.images[found])


def test_a_system_that_maps_nothing_private(tmp_path, monkeypatch):
    make_folder(tmp_path)
    before = load(tmp_path).train.images
    real = mapped.mmap.mmap

    def strict(handle, length, *args, **options):
        if args:
            raise OSError(12, "Cannot allocate memory")
        return real(handle, length, **options)

    monkeypatch.setattr(mapped.mmap, "mmap", strict)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(load(tmp_path).train.images, before)


# ---------------------------------------------------------------------------------------------------------------------
# decoding by several processes


@pytest.fixture
def several(monkeypatch):
    """Two processes, whatever there is to decode; their ids."""
    monkeypatch.setattr(converting, "_FEW", 0)
    monkeypatch.setattr(converting, "_FEW_BYTES", 0)
    monkeypatch.setattr(converting, "usable_cores", lambda: 2)
    monkeypatch.setattr(decode, "_MOST", 2)
    started, popen = [], subprocess.Popen

    def start(*args, **options):
        started.append(popen(*args, **options))
        return started[-1]

    monkeypatch.setattr(decode.subprocess, "Popen", start)
    yield started
    assert all(process.returncode is not None for process in started)


def test_processes_decode_what_one_does(several, tmp_path):
    pixels = make_folder(tmp_path, classes="abcdefgh")
    Image.fromarray(np.full((5, 6, 4), 9, np.uint8)).save(tmp_path / "train" / "h" / "2.png")
    with pytest.warns(UserWarning, match="1 of 32 pictures have transparency"):
        data = load(tmp_path)
    assert len(several) == 2
    for split, part in ((data.train, "train"), (data.test, "test")):
        expected = [pixels[path] for path in sorted(pixels) if path.parts[-3] == part]
        assert np.array_equal(split.images[:23], expected[:23])


@pytest.mark.parametrize("there", [0, 1])
def test_a_system_without_room_for_processes(there, several, tmp_path, monkeypatch):
    pixels, popen = make_folder(tmp_path, classes="abcdefgh"), decode.subprocess.Popen

    def start(*args, **options):
        if len(several) == there:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return popen(*args, **options)

    monkeypatch.setattr(decode.subprocess, "Popen", start)
    data = load(tmp_path)
    assert len(several) == there
    assert np.array_equal(data.test.images, [pixels[path] for path in sorted(pixels) if path.parts[-3] == "test"])


def test_of_several_bad_pictures_the_first_is_named(several, untouched):
    make_folder(untouched, classes="abcdefgh")
    draw(untouched / "train" / "c" / "1.png", 1, size=(7, 5))
    (untouched / "train" / "d" / "1.png").write_bytes(b"not an image")
    refuse("folder", untouched, "train/c/1.png is 7x5 but .*train/a/0.png is 6x5")
    draw(untouched / "train" / "c" / "1.png", 1)
    refuse("folder", untouched, "train/d/1.png cannot be read as an image")
    assert not list((untouched / folder.CACHE).iterdir())


def test_a_process_that_is_killed(several, untouched, monkeypatch):
    make_folder(untouched, classes="abcdefgh")
    asked = count()

    def dump(value, file, *args, real=pickle.dump, **options):
        if next(asked) == 3:
            several[0].kill(), several[1].kill()
        real(value, file, *args, **options)

    monkeypatch.setattr(decode.pickle, "dump", dump)
    refuse(
        "folder", untouched, r"a process that decodes pictures ended \(exit status -9\) between .*png and .*png: run "
    )


def test_decoding_processes_end_with_the_one_that_asked():
    script = (
        "import os, signal\nfrom apart_fast.loaders.datasets import decode\n"
        "with decode._worker() as worker:\n"
        "    print(worker._process.pid, flush=True)\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while alive(int(done.stdout)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(int(done.stdout))


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ---------------------------------------------------------------------------------------------------------------------
# where derived files lie, and who writes them


@pytest.mark.parametrize("name", ["folder", "cifar10"])
def test_another_folder_for_derived_files(name, tmp_path):
    root, cache = tmp_path / "data", tmp_path / "deep" / "cache"
    classes = ("a", "b") if name == "folder" else [str(i) for i in range(10)]
    make_folder(root, classes=classes, size=(32, 32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = load_dataset(name, root, progress=False, cache=cache)
    assert {path.name for path in root.iterdir()} == {"train", "test"}
    assert data.train.cache == cache and len(list(cache.glob("images-*.npy"))) == 1


@pytest.mark.parametrize("settings", [TrainConfig, EvaluateConfig, DemoConfig, CheckConfig, CurvesConfig])
def test_whoever_takes_data_takes_a_folder_for_derived_files(settings):
    assert {"data_dir", "cache_dir"} <= {field.name for field in fields(settings)}


def test_the_flag_reaches_the_data(tmp_path, monkeypatch):
    make_folder(tmp_path / "data")
    words = f"--dataset folder --data-dir {tmp_path}/data --cache-dir {tmp_path}/cache --val-images 2 --batch-size 9"
    with pytest.raises(SystemExit):  # the batch is larger than the data
        train_command([*words.split(), "--out", str(tmp_path / "run"), "--device", "cpu", "--no-progress"])
    assert [path.suffix for path in (tmp_path / "cache").iterdir()].count(".npy") == 1
    assert not (tmp_path / "data" / folder.CACHE).exists()
    saved = TrainConfig(data_dir=tmp_path / "data")
    assert TrainConfig(cache_dir=tmp_path / "cache").resumed(saved).cache_dir == tmp_path / "cache"


def test_a_folder_for_derived_files_that_is_a_file(untouched):
    make_folder(untouched)
    (untouched / "file").write_text("kept")
    for cache in (untouched / "file", untouched / "file" / "within"):
        refuse("folder", untouched, r"cannot write .*npy \(.*\): name another folder .* --cache-dir", cache=cache)


@needs_ffcv
@pytest.mark.parametrize("what", ["folder", "space"])
def test_a_beton_that_cannot_be_written_names_the_flag(what, tmp_path, monkeypatch):
    split = Split(torch.zeros(12, 4, 4, 3, dtype=torch.uint8), torch.arange(12) % 3, cache=tmp_path / ".apart_fast")
    if what == "folder":
        (tmp_path / ".apart_fast").write_text("not a folder")
        message = r"cannot write .*beton \(.*\): name another folder for derived files with --cache-dir"
    else:
        monkeypatch.setattr(derived.shutil, "disk_usage", lambda path: shutil_usage(100))
        message = (
            r"12 images for FFCV need 5.76e-07 GB in .*, where 1e-07 GB are free: free some space, or name .*--cache"
        )
    with pytest.raises(UserError, match=message):
        make_loader("ffcv", split, **OPTIONS)


def shutil_usage(free):
    return type("usage", (), {"free": free})


def test_images_that_do_not_fit_on_the_disk(untouched, monkeypatch):
    make_folder(untouched)
    monkeypatch.setattr(derived.shutil, "disk_usage", lambda path: shutil_usage(719))
    refuse(
        "folder", untouched, "8 decoded images need 7.2e-07 GB in .*, where 7.19e-07 GB are free: free some .* --cache"
    )
    assert not list((untouched / folder.CACHE).iterdir())


@pytest.mark.parametrize("kind", ["folder", pytest.param("ffcv", marks=needs_ffcv)])
def test_leftovers_of_every_kind_are_removed(kind, tmp_path):
    """Whoever writes into the folder, and whoever has left something there."""
    make_folder(tmp_path / "data")
    cache = tmp_path / "cache"
    cache.mkdir()
    left = [
        ".images-x.npy.a.apart_fast.tmp",
        ".images-x.npy.json.a.apart_fast.tmp",
        ".train-x.beton.a.apart_fast.tmp",
        ".train-x.beton.json.a.apart_fast.tmp",
    ]
    for name in left:
        (cache / name).touch()
    if kind == "folder":
        load(tmp_path / "data", cache=cache)
    else:
        make_loader("ffcv", load(tmp_path / "data").train, cache=cache, **OPTIONS).close()
    assert not list(cache.glob(".*")) and len(list(cache.iterdir())) == 2


@pytest.mark.filterwarnings("ignore:another process")
def test_two_that_convert_at_once(tmp_path, monkeypatch):
    make_folder(tmp_path)
    (tmp_path / folder.CACHE).mkdir()
    other = os.open(tmp_path / folder.CACHE, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    decoded, read = [], decode.read_picture
    monkeypatch.setattr(decode, "read_picture", lambda path, *to: decoded.append(path) or read(path, *to))
    found = []
    threads = [threading.Thread(target=lambda: found.append(load(tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    assert not found and not decoded  # they wait
    os.close(other)
    for thread in threads:
        thread.join()
    assert len(decoded) == 9 and torch.equal(found[0].train.images, found[1].train.images)


@needs_ffcv
def test_a_beton_with_the_note_of_an_older_version(tmp_path):
    split = Split(torch.zeros(12, 4, 4, 3, dtype=torch.uint8), torch.arange(12) % 3, "train", tmp_path)
    make_loader("ffcv", split, **OPTIONS).close()
    (beton,) = tmp_path.glob("*.beton")
    assert beton.name == f"train-{fingerprint(split)}.beton"
    note, before = beton.with_name(beton.name + ".json"), beton.stat().st_mtime_ns
    new = derived.json.loads(note.read_text())
    note.write_text(derived.json.dumps({name: new[name] for name in ("bytes", "blake2b")}))
    make_loader("ffcv", split, **OPTIONS).close()
    assert beton.stat().st_mtime_ns == before and derived.json.loads(note.read_text()) == new


# ---------------------------------------------------------------------------------------------------------------------
# too large for the memory


@pytest.mark.parametrize("ffcv", [True, False])
def test_resident_images_that_do_not_fit_into_the_memory(ffcv, tmp_path, monkeypatch):
    make_folder(tmp_path)
    train = load(tmp_path).train
    monkeypatch.setattr("apart_fast.loaders.resident.available_bytes", lambda: 539)
    monkeypatch.setattr("apart_fast.loaders.resident.find_spec", lambda name: ffcv or None)
    named = "--loader ffcv or --loader dataloader, which read" if ffcv else "--loader dataloader, which reads"
    with pytest.raises(
        UserError, match=rf"images \(5.4e-07 GB\) do not fit .* \(5.39e-07 GB free\): choose {named} them"
    ):
        make_loader("resident", train, **OPTIONS)
    make_loader("dataloader", train, **OPTIONS).close()
    make_loader("resident", replace(train, file=None), **OPTIONS).close()  # lies in memory anyway


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_omega_is_drawn_in_parts_of_bounded_size(dtype, monkeypatch):
    """Rows of large images are few at a time; the numbers are those of all at once."""
    drawn, real = [], torch.Tensor.normal_
    monkeypatch.setattr(torch.Tensor, "normal_", lambda t, **options: drawn.append(t.numel()) or real(t, **options))
    found = []
    for most in (4096 * 75, 4096 * 75 - 1):
        monkeypatch.setattr(omega, "_MOST", most)
        monkeypatch.setattr(omega, "_LESS", 20 * 75)
        memory = omega.Memory(torch.zeros(90, 5, 5, 3, dtype=dtype))
        memory.reset(torch.Generator().manual_seed(3))
        found.append(memory.store)
    assert drawn == [90 * 75] + [16 * 75] * 5 + [10 * 75] and torch.equal(*found)
