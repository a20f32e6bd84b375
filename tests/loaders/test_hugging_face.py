"""Data sets of Hugging Face: a folder of parquet files that the test writes; nothing is fetched."""

import io
import warnings

import numpy as np
import pytest
import torch
from image_folders import refuse
from PIL import Image

from apart_fast.cli import main
from apart_fast.loaders import load_dataset
from apart_fast.loaders.datasets import decode, hugging_face
from apart_fast.loaders.datasets.folder import CACHE
from apart_fast.loaders.datasets.reading import Reading, Resizing

hf = pytest.importorskip("datasets", reason="Hugging Face's datasets is not installed: pip install 'apart_fast[hf]'")
NAMES = ["dog", "cat"]  # not in the order of the alphabet


@pytest.fixture(autouse=True)
def at_home(tmp_path_factory, monkeypatch):
    """What the package keeps goes nowhere else, and the network is not asked."""
    monkeypatch.setattr(hf.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("hub")))
    monkeypatch.setattr(hf.config, "HF_HUB_OFFLINE", True)
    hf.disable_progress_bars()


def picture(value, size):
    return Image.fromarray(np.random.default_rng(value).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def make(count=6, size=(9, 8), label=None, labels=None, **more):
    """A table of pictures with labels 0, 1, 0, ...; `more`: further columns, as (type, values)."""
    columns = {"picture": hf.Image(), "label": hf.ClassLabel(names=NAMES) if label is None else label}
    values = {
        "picture": [picture(i, (size[0] + i * (size[0] > 9), size[1])) for i in range(count)],
        "label": [i % 2 for i in range(count)] if labels is None else labels[:count],
    }
    if labels == []:
        del columns["label"], values["label"]
    for name, (kind, content) in more.items():
        columns[name], values[name] = kind, content[:count]
    return hf.Dataset.from_dict(values, features=hf.Features(columns))


def write(root, splits=("train", "test"), **options):
    (root / "data").mkdir()
    for i, split in enumerate(splits):
        make(4 if i else 6, **options).to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    return root


def load(root, name="hf", reading=None):
    return load_dataset(name, root, progress=False, reading=reading)


def test_a_folder_of_parquet(tmp_path, monkeypatch):
    data = load(write(tmp_path))
    assert (
        data.classes == NAMES and data.train.labels.tolist() == [0, 1] * 3 and data.test.labels.tolist() == [0, 1] * 2
    )
    for i in range(6):
        assert np.array_equal(data.train.images[i], picture(i, (9, 8)))
    monkeypatch.setattr(decode, "read_picture", None)  # decoded once
    assert torch.equal(load(tmp_path / "nowhere", f"hf:{tmp_path}").test.images, data.test.images)
    assert len(list((tmp_path / CACHE).glob("*.npy"))) == 1


def test_pictures_of_mixed_sizes(tmp_path):
    write(tmp_path, size=(20, 8))
    refuse("hf", tmp_path, "row 1 of train of hf is 21x8 but row 0 of train of hf is 20x8: .*--image-size")
    with pytest.warns(UserWarning, match="10 of 10 pictures are smaller"):
        assert load(tmp_path, reading=Reading(Resizing(12))).train.shape == (6, 12, 12, 3)


def test_what_save_to_disk_writes(tmp_path):
    hf.DatasetDict(train=make(6), test=make(4)).save_to_disk(tmp_path / "saved")
    data = load(tmp_path / "saved")
    assert data.classes == NAMES and np.array_equal(data.test.images[3], picture(3, (9, 8)))
    make(4).save_to_disk(tmp_path / "one")
    refuse("hf", tmp_path / "one", "one holds one split, not train and test: save a DatasetDict of both")


def test_the_hub_is_asked_by_name_and_configuration(tmp_path, monkeypatch):
    asked = []
    found = hf.DatasetDict(train=make(6), validation=make(4))
    monkeypatch.setattr(hf, "load_dataset", lambda *words: asked.append(words) or found)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load(tmp_path, "hf:owner/name:large", Reading(test_split="validation"))
    assert asked == [("owner/name", "large")] and data.train.name == "hf-owner-name-large-train" and len(data.test) == 4


@pytest.mark.parametrize(
    ("kind", "labels", "classes", "numbers"),
    [
        ("string", ["pear", "apple"] * 3, ["apple", "pear"], [1, 0, 1, 0, 1, 0]),
        ("int64", [7, 30] * 3, ["7", "30"], [0, 1, 0, 1, 0, 1]),
        ("bool", [True, False] * 3, ["False", "True"], [1, 0, 1, 0, 1, 0]),
    ],
)
def test_labels_without_names_of_classes(kind, labels, classes, numbers, tmp_path):
    data = load(write(tmp_path, label=hf.Value(kind), labels=labels))
    assert data.classes == classes and data.train.labels.tolist() == numbers


def test_columns_that_flags_name(tmp_path):
    other = [picture(50 + i, (9, 8)) for i in range(6)]
    fine = hf.ClassLabel(names=["a", "b", "c"])
    write(tmp_path, second=(hf.Image(), other), fine=(fine, [0, 1, 2, 2, 1, 0]))
    refuse("hf", tmp_path, r"several columns of pictures \(picture, second\): name one with --image-column")
    reading = Reading(image_column="second")
    refuse("hf", tmp_path, r"several columns .* labels \(label, fine\): name one with --label-column", reading=reading)
    data = load(tmp_path, reading=Reading(image_column="second", label_column="fine"))
    assert data.classes == ["a", "b", "c"] and np.array_equal(data.train.images[2], other[2])
    for reading, line in (
        (Reading(image_column="x"), "--image-column x is no column of hf: choose one of picture, label, second, fine"),
        (Reading(image_column="fine"), "--image-column fine of hf holds ClassLabel, not pictures"),
        (
            Reading(image_column="second", label_column="picture"),
            "--label-column picture of hf holds Image, no classes",
        ),
    ):
        refuse("hf", tmp_path, line, reading=reading)


def test_bytes_that_pandas_has_written(tmp_path):
    def encoded(value):
        stream = io.BytesIO()
        picture(value, (9, 8)).save(stream, "PNG")
        return stream.getvalue()

    for split, count in (("train", 6), ("test", 4)):
        content = {"file": [encoded(i) for i in range(count)], "label": ["x", "y"] * (count // 2)}
        hf.Dataset.from_dict(content).to_parquet(tmp_path / f"{split}.parquet")
    refuse("hf", tmp_path, r"no column of type Image \(file: binary, label: string\): name one with --image-column")
    data = load(tmp_path, reading=Reading(image_column="file"))
    assert data.classes == ["x", "y"] and np.array_equal(data.test.images[3], picture(3, (9, 8)))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"labels": []}, r"hf has no labels \(picture: Image\)"),
        ({"label": "many", "labels": [[0], [0, 1]] * 3}, r"several labels for a picture \(label\)"),
        ({"label": "float", "labels": [0.5, 1.5] * 3}, r"hf has no labels \(picture: Image, label: float32\)"),
        ({"labels": [0, 1, -1, -1, 0, 1]}, r"row 2 of train of hf has the label -1, which is no class \(2 such rows\)"),
        ({"labels": [0, 1, None, 1, 0, 1]}, "row 2 of train of hf has no label"),
        ({"label": "string", "labels": ["a", "b", "a", "b", "c", "c"]}, "class 'c' is in only one of train and test"),
        ({"label": "string", "labels": [*"abcdef"]}, "'label' of hf has 6 different values in 6 rows, .*no classes"),
        ({"splits": ["train"]}, r"hf has one split \(train\) and nothing to judge on: make two of it"),
        ({"splits": ["train", "validation"]}, r"no split 'test' \(it has train, validation\): name one with --test-sp"),
    ],
)
def test_what_is_refused(options, line, untouched):
    kinds = {"many": lambda: hf.List(hf.Value("int64")), "float": lambda: hf.Value("float32")}
    if "label" in options:
        kind = options["label"]
        options = options | {"label": kinds.get(kind, lambda: hf.Value("string"))()}
    refuse("hf", write(untouched, **options), line)


def test_splits_that_flags_name(tmp_path):
    write(tmp_path, splits=("train", "validation", "test"))
    with pytest.warns(UserWarning, match="not used: validation of hf"):
        load(tmp_path)
    with pytest.warns(UserWarning, match="train and test of hf are the same split: testing on training images"):
        load(tmp_path, reading=Reading(test_split="train"))


def test_damaged_pictures_and_files_are_named(untouched):
    write(untouched)
    rows = {"row 0 of train of hf cannot be read as an image": {"bytes": b"nothing"}, "row 0 .* holds no picture": None}
    for line, row in rows.items():
        kinds = hf.Features(picture=hf.Image(decode=False), label=hf.ClassLabel(names=NAMES))
        table = hf.Dataset.from_dict({"picture": [row] * 4, "label": [0, 1] * 2}, features=kinds)
        table.to_parquet(untouched / "data" / "train-00000-of-00001.parquet")
        refuse("hf", untouched, line)
    (untouched / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1 nothing")
    refuse("hf", untouched, "hf cannot be read by datasets")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--dataset", "hf:no/such", "--no-download"], "hf:no/such is not here and cannot be fetched"),
        (["--dataset", "hf:./nowhere"], "there is no folder nowhere: name one with parquet files"),
        (["--dataset", "hf:"], "--dataset hf: names no data set"),
        (["--dataset", "hf"], "there are no parquet files in "),
        (["--dataset", "folder", "--label-column", "x"], "--label-column is for Hugging Face's data sets"),
        (["--dataset", "hf", "--resize", "pad"], "--resize pad needs a size: give it with --image-size"),
    ],
)
def test_the_command_line_says_it_in_a_line(words, line, capsys, tmp_path):
    with pytest.raises(SystemExit) as end:
        main(["train", *words, "--data-dir", str(tmp_path), "--device", "cpu", "--out", str(tmp_path / "run")])
    error = capsys.readouterr().err.strip()
    assert end.value.code == 2 and error.startswith(f"error: {line}") and "\n" not in error
    assert not list(tmp_path.iterdir())


def test_without_the_package_the_line_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(hugging_face, "find_spec", lambda name: None)
    refuse("hf", tmp_path, r"read by their package: pip install 'apart_fast\[hf\]'")
