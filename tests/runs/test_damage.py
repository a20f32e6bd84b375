"""Checkpoints whose bytes or contents are not what a run writes: refused, or the one before is used, in a line."""

import copy
import errno
import os
import random
import re
import shutil
import warnings
import zipfile
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from test_bad_input import contents, refuse

from apart_fast.cli import main
from apart_fast.errors import UserError
from apart_fast.runs import checkpoint, states
from apart_fast.runs.checkpoint import Damaged
from apart_fast.runs.folder import RunFolder
from apart_fast.training import trainer as trainer_module
from apart_fast.training.state import Progress
from apart_fast.training.watch import CollapseWatch
from tests.runs.states import training, weights

NAN = float("nan")


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


# ---- bytes


def test_a_flipped_bit_is_noticed_wherever_it_matters(tmp_path):
    """Of each byte of a small file, one bit; where the file is taken, it holds what it held."""
    path, number = tmp_path / "best.pt", random.Random(0)
    checkpoint.save(path, weights(a=torch.randn(40), b=torch.arange(5)))
    whole, refused = path.read_bytes(), 0
    wanted = checkpoint.load(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for place in range(0, len(whole), 7):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << number.randrange(8)
            path.write_bytes(damaged)
            # what is not read would look as it did: memory that was given back is used again
            junk = [torch.full((n,), 0x5A5A) for n in (20, 5, 40)]
            del junk
            try:
                assert same(wanted, checkpoint.load(path)), place
            except Damaged:
                refused += 1
    assert refused > len(whole) / 7 / 2  # the rest is padding, and names and times that nobody reads


@pytest.mark.parametrize("bit", [0x10, 0x01])
def test_an_entry_that_is_called_a_folder_is_not_read(tmp_path, bit):
    """torch would give the tensor whatever lies in the memory."""
    path = tmp_path / "best.pt"
    checkpoint.save(path, weights(a=torch.randn(40)))
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"archive/data/0") - 46
    data[entry + 38] ^= bit
    path.write_bytes(data)
    with pytest.raises(Damaged):
        checkpoint.load(path)


def test_a_checkpoint_without_checksums_is_read_with_a_line(tmp_path):
    path = tmp_path / "best.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"format": 1, **weights(a=torch.ones(3))}, path)
        checkpoint.save(tmp_path / "ours.pt", weights(a=torch.ones(3)))  # has them all the same
        assert torch.serialization.get_crc32_options() is False
    finally:
        torch.serialization.set_crc32_options(True)
    with pytest.warns(UserWarning, match="without checksums"):
        assert checkpoint.load(path)["model"]["a"].sum() == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint.load(tmp_path / "ours.pt")


# ---- contents


def test_a_checkpoint_of_a_later_version_is_not_taken_for_damaged(tmp_path):
    """The one before it would be gone on with, and take its place."""
    for name, version in (("last.pt", 2), ("last.previous.pt", 1)):
        torch.save({"format": version, **training(a=torch.ones(2))}, tmp_path / name)
    with pytest.raises(UserError, match="last.pt is of a later version .format 2, this one reads 1.: update") as error:
        checkpoint.load_last(RunFolder(tmp_path))
    assert type(error.value) is UserError


def test_a_disk_that_does_not_answer_is_not_taken_for_damage(tmp_path, monkeypatch):
    def fail(*_arguments, **_options):
        raise OSError(errno.EIO, "Input/output error")

    for name in ("last.pt", "last.previous.pt"):
        torch.save({"format": 1, **training(a=torch.ones(2))}, tmp_path / name)
    monkeypatch.setattr(checkpoint, "_compare_checksums", fail)
    with pytest.raises(UserError, match="last.pt") as error:
        checkpoint.load_last(RunFolder(tmp_path))
    assert type(error.value) is UserError and "previous" not in str(error.value)


ABSENT = object()
CHANGES = [  # entry, value, words of the line
    ("model", {"a": torch.tensor([1.0, NAN])}, "model.a has numbers that are not finite"),
    ("model", {"a": torch.tensor([1, NAN], dtype=torch.bfloat16)}, "model.a has numbers that are not finite"),
    ("model", {"a": torch.eye(3).to_sparse()}, "model.a is torch.float32 .3, 3. .torch.sparse_coo., which no run"),
    ("model", {"a": torch.ones(2, dtype=torch.complex64)}, "model.a is torch.complex64"),
    ("model", {"a": torch.zeros(1).expand(10**12)}, "model.a is .* in fewer bytes than that"),
    ("model", {"a": "x"}, "model.a is text instead of a tensor"),
    ("model", [torch.ones(2)], "model is a list instead of an object"),
    ("kind", ABSENT, "kind is missing"),
    ("kind", "x", "kind is text instead of one of weights, training"),
    ("format", torch.ones(2), "is not a checkpoint of this program"),
    ("kind", ["weights"], "kind is a list instead of one of"),
    ("apart.generator", torch.zeros(1, 5056, dtype=torch.uint8), "generator is torch.uint8 .1, 5056. instead"),
    ("ranks", {"name": "../x", "size": 2, "total": 4}, "ranks.name is no name of a folder"),
    ("description", {}, "description.name is missing"),
    ("description.num_classes", "3", "description.num_classes is text instead of a whole number"),
    ("description.num_classes", 4, "classes has 3 names for 4 classes"),
    ("description.image_size", (12,), "description.image_size has 1 entries instead of 2"),
    ("description.width", 1e30, "description.width is 1e.30, not within"),
    ("description.surprise", 1, "description.surprise is not known"),
    ("classes", [1, 2, 3], "classes.0. is a whole number instead of text"),
    ("dataset", None, "dataset is nothing instead of text"),
    ("epoch", True, "epoch is true or false instead of a whole number"),
    ("average", 1, "average is a whole number instead of an object"),
    ("optimizer", {}, "optimizer is an object instead of a list"),
    ("optimizer", [torch.full((3,), float("inf"))], "optimizer.0 has numbers that are not finite"),
    ("apart.memory", torch.full((2,), NAN, dtype=torch.float16), "apart.memory has numbers that are not finite"),
    ("apart.memory", 3, "apart.memory is a whole number instead of a tensor"),
    ("scaler", {"scale": 1.0}, "scaler.growth_factor is missing"),
    ("progress", ABSENT, "progress is missing"),
    ("progress.epoch", ABSENT, "progress.epoch is missing"),
    ("progress.epoch", 2**70, "progress.epoch is .* not within"),
    ("progress.step", -1, "progress.step is -1, not within"),
    ("progress.best_accuracy", NAN, "progress.best_accuracy is not finite"),
    ("progress.surprise", 1, "progress.surprise is not known"),
    ("watch.epochs", [None], "watch.epochs.0. is nothing"),
    ("totals", torch.zeros(3), "totals is torch.float32 .3. instead of torch.float64 .4."),
    ("threads", 10**9, "threads is 1e.09, not within"),
    ("data", 1, "data is a whole number instead of text"),
    ("rng", None, "rng is nothing instead of an object"),
    ("rng.cpu", torch.zeros(5056, dtype=torch.int64), "rng.cpu is torch.int64"),
    ("rng.cpu", torch.full((5056,), 255, dtype=torch.uint8), "rng.cpu is no state of a random generator"),
]


@pytest.mark.parametrize(("entry", "value", "words"), CHANGES, ids=lambda v: v if isinstance(v, str) else "")
def test_other_contents_are_refused_by_name(tmp_path, entry, value, words):
    path, state = tmp_path / "other.pt", {"format": 1, **copy.deepcopy(training(a=torch.ones(2)))}
    holder, (*outer, name) = state, entry.split(".")
    for key in outer:
        holder = holder[key]
    if value is ABSENT:
        del holder[name]
    else:
        holder[name] = value
    torch.save(state, path)
    with pytest.raises(Damaged, match=words) as error:
        checkpoint.load(path)
    assert "\n" not in str(error.value) and ": use another one" in str(error.value)


@pytest.mark.parametrize("value", [None, [1], "x", torch.ones(3), {1: 2}])
def test_other_files_of_torch_are_no_checkpoints(tmp_path, value):
    torch.save(value, tmp_path / "x.pt")
    with pytest.raises(Damaged, match="is damaged or not a checkpoint|is not a checkpoint of this program"):
        checkpoint.load(tmp_path / "x.pt")


def test_weights_of_another_type_are_refused(tmp_path):
    state = weights()
    state["model"]["linear.bias"] = state["model"]["linear.bias"].double()
    checkpoint.save(tmp_path / "best.pt", state)
    with pytest.raises(UserError, match="does not fit: linear.bias is torch.float64 there and torch.float32 here"):
        checkpoint.load_network(tmp_path / "best.pt", torch.device("cpu"))


def test_what_is_written_down_of_a_training_is_all_that_it_keeps():
    for written, kept in ((states.Progress, Progress), (states.Watch, CollapseWatch)):
        assert {field.name for field in fields(written)} == {field.name for field in fields(kept)}


# ---- the checkpoint before


def test_the_checkpoint_before_stays(tmp_path):
    folder = RunFolder(tmp_path)
    for epoch in (1, 2, 3):
        checkpoint.save(folder.last, {**training(a=torch.ones(2)), "epoch": epoch})
        checkpoint.save(folder.best, weights(a=torch.ones(2)))
    assert [checkpoint.load(file)["epoch"] for file in (folder.last, folder.previous)] == [3, 2]
    assert sorted(os.listdir(tmp_path)) == ["best.pt", "last.previous.pt", "last.pt"]


@pytest.mark.parametrize("links", [True, False])
def test_one_of_the_two_is_whole_at_each_moment(tmp_path, monkeypatch, links):
    """Killed after each change of a name."""
    folder, seen = RunFolder(tmp_path), []
    for epoch in (1, 2):
        checkpoint.save(folder.last, {**training(a=torch.ones(2)), "epoch": epoch})

    def look(change, works=True):
        def changing(*args, **kwargs):
            if not works:
                raise OSError(95, "Operation not supported")
            change(*args, **kwargs)
            if not str(args[-1]).endswith((".tmp", ".lock")):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of the one before
                    seen.append(checkpoint.load_last(folder)[0]["epoch"])

        return changing

    for name in ("replace", "unlink", "link"):
        monkeypatch.setattr(os, name, look(getattr(os, name), works=links or name != "link"))
    checkpoint.save(folder.last, {**training(a=torch.ones(2)), "epoch": 3})
    assert seen == [2, 2, 3]


def test_without_any_there_is_none_and_with_a_damaged_one_alone_there_is_an_error(tmp_path):
    folder = RunFolder(tmp_path)
    assert checkpoint.load_last(folder) == (None, folder.last)
    folder.last.write_bytes(b"x")
    with pytest.raises(Damaged, match="last.pt is damaged"):
        checkpoint.load_last(folder)
    folder.previous.write_bytes(b"x")
    with pytest.raises(UserError, match="last.pt is damaged.*last.previous.pt, the one before it, is damaged too"):
        checkpoint.load_last(folder)


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    """A run of three epochs, each with a checkpoint, that has not been judged. Not to be altered."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    words = [*settings, "--checkpoint-every", "1", "--val-every", "1", "--no-test", "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "finish", lambda *_: {})
        with pytest.raises(SystemExit) as end:
            main(["train", *words])
    assert not end.value.code
    return out


@pytest.fixture
def own(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "finish", lambda *_: {})
    return shutil.copytree(whole, tmp_path / "own")


def flip(path):
    """A bit in the middle of the largest tensor: around them is padding, which nobody reads."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        entry = max(file.infolist(), key=lambda entry: entry.file_size)
    data[entry.header_offset + entry.file_size // 2] ^= 4
    path.write_bytes(data)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(whole, own):
    flip(own / "last.pt")
    with pytest.warns(
        UserWarning, match="last.pt is damaged.*going on from the checkpoint before it, last.previous.pt"
    ):
        with pytest.raises(SystemExit) as end:
            main(["train", "--resume", str(own)])
    assert not end.value.code
    mine, theirs = (checkpoint.load(run / "last.pt") for run in (own, whole))
    for state in (mine, theirs):
        state["progress"].pop("seconds")
    assert same(mine, theirs)
    assert checkpoint.load(own / "last.previous.pt")["progress"]["epoch"] == 2  # the damaged one did not take its place
    lines = [(run / "metrics.jsonl").read_text().count("\n") for run in (own, whole)]
    assert lines == [3, 3]


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_a_link_that_leads_nowhere_is_not_taken_for_no_checkpoint(capsys, own, name):
    """The disk that it leads to may only be away."""
    (own / name).unlink()
    os.symlink("elsewhere/" + name, own / name)
    assert f"{name} is no file, or a link that leads to none: bring" in refuse(capsys, "train", "--resume", own)
    assert os.readlink(own / name) == "elsewhere/" + name and (own / "metrics.jsonl").read_text().count("\n") == 3


def test_nothing_is_changed_where_both_are_damaged(capsys, own):
    flip(own / "last.pt"), flip(own / "last.previous.pt")
    before = contents(own)
    assert "last.previous.pt, the one before it, is damaged too" in refuse(capsys, "train", "--resume", own)
    assert contents(own) == before


def test_a_damaged_best_checkpoint_is_told_with_a_way_on(capsys, own):
    flip(own / "best.pt")
    assert "best.pt is damaged or not a checkpoint: remove it, and the" in refuse(capsys, "train", "--resume", own)
    (own / "best.pt").unlink()
    with pytest.raises(SystemExit) as end:
        main(["train", "--resume", str(own)])
    assert not end.value.code


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["optimizer"].pop(), r"optimizer\.\d+ is only in the model"),
        (lambda s: s["optimizer"].__setitem__(0, s["optimizer"][0].double()), "optimizer.0 is torch.float64 there"),
        (lambda s: s["optimizer"].__setitem__(0, torch.ones(2)), r"optimizer.0 is \(2,\) there"),
        (lambda s: s["progress"].__setitem__("step", 6), "its epoch has more steps than 6"),
        (lambda s: s["apart"].pop("velocity"), "velocity is nothing there"),
    ],
)
def test_a_state_that_does_not_fit_is_not_gone_on_with(capsys, own, change, words):
    state = torch.load(own / "last.pt", weights_only=True)
    change(state)
    torch.save(state, own / "last.pt")
    before = contents(own)
    line = refuse(capsys, "train", "--resume", own)
    assert re.search(words, line), line
    assert contents(own) == before


def test_the_network_of_a_damaged_file_is_not_judged(capsys, own, image_folder):
    flip(own / "best.pt")
    assert "best.pt is damaged" in refuse(capsys, "evaluate", own / "best.pt", "--data-dir", image_folder)
    assert not Path(own / "evaluation.json").exists()
