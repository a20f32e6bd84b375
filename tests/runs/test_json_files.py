"""JSON files of a run that hold something else than a run writes, or may not be read."""

import json
import os
import re
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest
import torch
from test_bad_input import refuse

from apart_fast.analysis.cache import ResultCache, result_key
from apart_fast.errors import UserError
from apart_fast.files import to_json
from apart_fast.report.write import write_report
from apart_fast.runs import checkpoint
from apart_fast.runs.config import TrainConfig, from_json
from apart_fast.runs.folder import RunFolder
from apart_fast.runs.json_files import Object, is_file, read_json
from apart_fast.runs.reading import read_runs
from apart_fast.runs.schema import between, misfit
from tests.runs.states import weights, write_run

DEEP = "[" * 100_000 + "]" * 100_000

# ---- schema


@dataclass
class Closed:
    a: int
    b: float = 0.0


class Open(TypedDict):
    a: int
    b: NotRequired[str | None]


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        (1, int, None),
        (True, int, "x is true or false instead of a whole number"),
        (1, float, None),
        (float("inf"), float, "x is not finite"),
        ("1", float, "x is text instead of a number"),
        (None, str | None, None),
        (1, str | None, "x is a whole number instead of text"),
        ([], int | str, "x is a list instead of a whole number or text"),
        ("b", Literal["a", "b"], None),
        ("c", Literal["a", "b"], "x is text instead of one of a, b"),
        ([1, 2.5], list[float], None),
        ([1, "2"], list[float], "x[1] is text instead of a number"),
        ([1], tuple[int, int], "x has 1 entries instead of 2"),
        ((), tuple[int, ...], None),
        ({"k": [None]}, dict[str, list[int]], "x.k[0] is nothing instead of a whole number"),
        ({1: 1}, dict[str, int], "x has 1 among its names"),
        ({"a": 1}, Closed, None),
        ({"b": 1}, Closed, "x.a is missing"),
        ({"a": 1, "c": 1}, Closed, "x.c is not known"),
        ({"a": 1, "c": 1}, Open, None),
        ({"a": 1, "b": 2}, Open, "x.b is a whole number instead of text"),
        (5, Annotated[int, between(0, 4)], "x is 5, not within 0 to 4"),
        (object(), Any, None),
        ("p", Path, None),
    ],
)
def test_kinds(value, kind, words):
    assert misfit(value, kind, "x") == words


# ---- contents


@pytest.fixture
def run(tmp_path):
    """The JSON files of a finished run that never was."""
    return write_run(tmp_path / "run")


CONTENTS = [b"", b"null", b"[]", b'"x"', b"1", b'{"epochs": ', DEEP.encode(), bytes(4096), b'{"a": "\xff\xfe"}']
CONTENTS += ['{"a": 1}'.encode("utf-16"), b'\xef\xbb\xbf{"a": 1}', b'{"a": NaN}', b'{"a": 1e999}']
CONTENTS += [b'{"a": ' + b"9" * 5000 + b"}", b'{"a": ' + b"9" * 30 + b"}", b'{"a": ' * 500 + b"1" + b"}" * 500]


@pytest.mark.parametrize("content", CONTENTS, ids=range(len(CONTENTS)))
def test_other_contents_are_damage_in_one_line(run, tmp_path, content):
    """Of all files alike; the whole page once for each."""
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"some.json is damaged \(.*\): do this") as error:
        read_json(path, Object, "do this")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    for name in ("config.json", "summary.json", "evaluation.json", "card.json", "environment.json"):
        kept = (run / name).read_bytes()
        (run / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} is damaged"):
            found = read_runs([run])[0]
            assert found.evaluation and found.card and found.environment
        (run / name).write_bytes(kept)


def change(file, name, value):
    values = json.loads(file.read_text())
    holder, (*outer, last) = values, name.split(".")
    for key in outer:
        holder = holder[key]
    if value is ...:
        del holder[last]
    else:
        holder[last] = value
    file.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("file", "entry", "value", "words"),
    [
        ("config.json", "epochs", "3", "epochs is text instead of a whole number"),
        ("config.json", "epochs", 0, "too small"),
        ("config.json", "lr", ..., "lr is missing"),
        ("config.json", "points", 1, "points is a whole number instead of a list"),
        ("config.json", "method", "apartt", "did you mean apart"),
        ("config.json", "eps", "8", "did you mean 8/255"),
        ("config.json", "method", "x" * 10**6, "unknown method 'xxx"),
        ("config.json", "data_dir", None, "data_dir is nothing instead of text"),
        ("config.json", "surprise", 1, "surprise is not known"),
        ("summary.json", "parameters", "7", "parameters is text instead of a whole number"),
        ("summary.json", "test", 1, "test is a whole number instead of an object"),
        ("summary.json", "test.last.attacks", [], "test.last.attacks is a list instead of an object"),
        ("summary.json", "test.last.attacks.clean.low", "x", "test.last.attacks.clean.low is text instead of a number"),
        ("summary.json", "collapsed_at", ["1"], r"collapsed_at\[0\] is text instead of a whole number"),
        ("evaluation.json", "attacks.clean", None, "attacks.clean is nothing instead of an object"),
        ("evaluation.json", "n", 1.5, "n is a number instead of a whole number"),
    ],
)
def test_entries_of_another_kind_are_told_by_name(run, file, entry, value, words):
    change(run / file, entry, value)
    with pytest.raises(UserError, match=words) as error:
        assert read_runs([run])[0].evaluation
    assert str(run / file) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 600


def test_settings_that_a_run_of_any_version_has_written_are_there():
    values = json.loads(to_json(TrainConfig()))
    assert from_json(values) == TrainConfig()
    for name in ("cache_dir", "kernels", "deterministic", "keep_weights"):  # unknown to the first version
        values.pop(name)
    assert from_json(values) == TrainConfig()


LINES = ["{", "[1]", '{"loss": 1}', '{"epoch": "2"}', '{"epoch": 0}', '{"epoch": 2, "loss": "x"}', DEEP]
LINES += ['{"epoch": 2, "alpha_blocks": ["x"]}', '{"epoch": 2, "loss": NaN}']


@pytest.mark.parametrize("line", LINES)
def test_a_damaged_line_of_the_metrics_is_left_out_with_a_warning(run, line):
    path, folder = run / "metrics.jsonl", RunFolder(run)
    lines = path.read_text()
    path.write_text(line + "\n" + lines)
    with pytest.warns(UserWarning, match="line 1 of .*metrics.jsonl is damaged .*: it is left out"):
        assert [record["epoch"] for record in folder.metrics()] == [1, 2]
    path.write_text(lines + line)  # without an end: a process was killed there
    assert [record["epoch"] for record in folder.metrics()] == [1, 2]


# ---- kinds of files


@pytest.mark.parametrize("name", ["config.json", "summary.json", "last.pt", "metrics.jsonl", "evaluation.json"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda p: os.symlink(p.name, p), lambda p: os.symlink("no", p)])
def test_what_is_no_file_is_none(run, name, make):
    """A pipe is not waited for."""
    path = run / name
    path.unlink(missing_ok=True)
    make(path)
    assert not is_file(path)
    if name in ("config.json", "summary.json"):
        with pytest.raises(UserError, match="no run in|not finished"):
            read_runs([run])
    else:
        found = read_runs([run])[0]
        assert found.evaluation == {} or name != "evaluation.json"
        assert found.records == [] or name != "metrics.jsonl"


@pytest.mark.parametrize("words", [["report"], ["analyze", "curves"], ["evaluate"], ["train", "--resume"]])
@pytest.mark.parametrize("name", ["n" * 300, "n" * 300 + "/" + "n" * 300, "/dev/null", "/dev/zero", "a\0b"])
def test_names_that_nothing_can_have(capsys, words, name):
    assert re.search("no (run|checkpoint)", refuse(capsys, *words, name))


# ---- rights


@contextmanager
def as_nobody():
    """Root may read everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def open_folder():
    """One in folders that everybody may look into."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield write_run(Path(name) / "run")


@pytest.mark.parametrize(
    ("closed", "read"),
    [
        ("best.pt", lambda run: checkpoint.load(run / "best.pt")),
        ("last.pt", lambda run: checkpoint.load_last(RunFolder(run))),
        ("weights", lambda run: RunFolder(run).kept_weights()),
        ("weights/epoch-0001.pt", lambda run: result_key(run / "weights/epoch-0001.pt", {})),
        (".", lambda run: checkpoint.load(run / "best.pt")),
        (".", lambda run: read_runs([run])),
        ("config.json", lambda run: read_runs([run])),
        ("summary.json", lambda run: read_runs([run])),
        ("metrics.jsonl", lambda run: read_runs([run])),
        ("evaluation.json", lambda run: read_runs([run])[0].evaluation),
        ("card.json", lambda run: write_report([run], run / "report.html")),
        ("cache.json", lambda run: ResultCache(run / "cache.json")),
    ],
)
def test_what_may_not_be_read_is_not_called_damaged(open_folder, closed, read):
    (open_folder / "weights").mkdir()
    for name in ("best.pt", "last.pt", "last.previous.pt", "weights/epoch-0001.pt"):
        checkpoint.save(open_folder / name, weights(a=torch.ones(2)))
    (open_folder / "cache.json").write_text("{}")
    os.chmod(open_folder / closed, 0)
    try:
        with as_nobody(), pytest.raises(UserError, match="may not be read .Permission denied.: change") as error:
            read(open_folder)
    finally:
        os.chmod(open_folder / closed, 0o755)
    assert "damaged" not in str(error.value) and "\n" not in str(error.value)
