"""`--dry-run`: everything once, in seconds, and nothing is left behind."""

import os
import weakref
from pathlib import Path

import pytest

from apart_fast.cli import main
from apart_fast.errors import UserError
from apart_fast.files import TEMPORARY
from apart_fast.loaders import load_dataset
from apart_fast.runs.begin import begin
from apart_fast.runs.config import TrainConfig
from apart_fast.step.apart import Apart
from apart_fast.training import dry
from apart_fast.training.trainer import Trainer


def tree(*roots):
    """Every path under the roots, with what tells one content from another."""
    return {path: path.lstat().st_mtime_ns for root in roots for path in Path(root).rglob("*") if path.is_file()}


def call(capsys, words):
    with pytest.raises(SystemExit) as end:
        main(["train", *map(str, words)])
    out, err = capsys.readouterr()
    return end.value.code, out, err


@pytest.mark.parametrize("cached", [False, True])
def test_each_part_is_said_in_a_line_and_nothing_is_left(capsys, settings, image_folder, tmp_path, cached, monkeypatch):
    cache = tmp_path / "cache"
    if cached:
        load_dataset("folder", image_folder, cache=cache, progress=False)
        assert tree(cache)
    before, out_folder = tree(image_folder, tmp_path), tmp_path / "new" / "runs" / "x"
    start, told = Apart.start_epoch, []
    monkeypatch.setattr(Apart, "start_epoch", lambda apart, *said: (told.append(said), start(apart, *said)))
    step, sizes, alive = Trainer.step, [], []

    def stepping(self, batch):
        alive[:] = [weakref.ref(self), *(one for one in alive if one() not in (None, self))]
        sizes.append((len(batch), len(alive)))
        step(self, batch)

    monkeypatch.setattr(Trainer, "step", stepping)
    code, out, err = call(capsys, [*settings, "--cache-dir", cache, "--out", out_folder, "--dry-run"])
    assert code == 0, err
    words = ("dry run: apart on folder, 42 images", "checkpoint: ", "step: ", "resume: ", "evaluation: ", "nothing was")
    lines = out.splitlines()
    assert len(lines) == len(words) and all(map(str.startswith, lines, words))
    assert lines[3].endswith("the same bits") and "pgd-20" in lines[4]
    assert tree(image_folder, tmp_path) == before and not out_folder.parent.parent.exists()
    assert cached == cache.exists()
    assert sizes == [(8, 1), (8, 1), (2, 1), (8, 1)]  # the odd last batch too; and never two trainings in memory
    assert told == [(0, 0, 3), (0, 1, 3), (0, 1, 3)]  # losses that rise do so as in the run


def test_a_compiled_step_is_timed_after_it_was_compiled(capsys, settings, tmp_path, graphs_without_compiler):
    code, out, err = call(capsys, [*settings, "--compile", "--out", tmp_path / "x", "--dry-run"])
    assert code == 0, err
    words = ("dry run: ", "compiled in ", "checkpoint: ", "step: ", "resume: ", "evaluation: ", "nothing was")
    lines = out.splitlines()
    assert len(lines) == len(words) and all(map(str.startswith, lines, words))
    assert lines[4].endswith(("the same bits", "as can be on a compiled model, whose first step is plain"))


def test_what_the_run_would_refuse_is_told_and_nothing_is_left(capsys, settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, line in (
        (["--lr", "1000", "--weight-decay", "1000"], "the training diverged"),
        (["--batch-size", "47"], "a batch of 47 is larger than the data"),
        (["--dataset", "svhn", "--data-dir", tmp_path / "none"], "a dry run downloads nothing"),
    ):
        code, _, err = call(capsys, [*settings, *words, "--dry-run"])
        assert code == 2 and line in err and err.count("\n") == 1, err
        assert list(tmp_path.iterdir()) == []


def test_what_a_killed_one_has_left_is_removed_by_the_next(settings, tmp_path, monkeypatch):
    left = tmp_path / f"{dry.NAME}dead{TEMPORARY}"
    (left / "run").mkdir(parents=True)

    def end(*_args, **_more):
        (mine,) = tmp_path.glob(f"{dry.NAME}*")
        assert mine != left
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "step", end)
    with pytest.raises(SystemExit) as ended:
        main(["train", *settings, "--out", str(tmp_path / "x"), "--dry-run"])
    assert ended.value.code == 130 and os.listdir(tmp_path) == []


def test_it_is_of_a_run_that_has_not_begun(settings, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="--dry-run tries a run before it begins"):
        begin(TrainConfig(dry_run=True, resume=Path("auto"), out=tmp_path))
    with pytest.raises(UserError, match="--dry-run and --profile"):
        TrainConfig(dry_run=True, profile=True).check()
