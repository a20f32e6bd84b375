"""Runs that still train, or were stopped: analysed as far as they are, where that is asked for."""

import json
import shutil

import pytest

from apart_fast.cli import main

SUMMARY = ("summary.json", "card.json", "best.pt", "last.pt")  # as of a run that was stopped and has kept its weights


@pytest.fixture
def stopped(runs, tmp_path):
    path = shutil.copytree(runs / "apart-0", tmp_path / "stopped")
    for name in SUMMARY:
        (path / name).unlink()
    (path / "weights" / "epoch-0003.pt").unlink()
    (path / "metrics.jsonl").write_text("".join((path / "metrics.jsonl").read_text().splitlines(keepends=True)[:2]))
    return path


@pytest.mark.parametrize(
    ("analysis", "flags"),
    [("collapse", ["--reference"]), ("perturbations", []), ("curves", ["--judge"]), ("gradients", [])],
)
def test_an_unfinished_run_is_taken_as_far_as_it_is(analysis, flags, stopped, runs, image_folder, tmp_path, capsys):
    flags = [*flags, str(runs / "pgd-0")] if flags == ["--reference"] else flags
    words = ["analyze", analysis, str(stopped), *flags, "--data-dir", str(image_folder), "--images", "6"]
    words += ["--device", "cpu", "--no-progress", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2 and "is not finished" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main([*words, "--unfinished"])
    out, err = capsys.readouterr()
    assert not end.value.code, err
    assert out.count("note: stopped is not finished: it ends at epoch 2 of 3") == 1
    text = (tmp_path / "out" / f"{analysis}.json").read_text()
    assert json.loads(text) and (tmp_path / "out" / f"{analysis}.png").is_file()


def test_a_reference_has_to_be_finished(stopped, runs, image_folder, tmp_path, capsys):
    words = ["analyze", "perturbations", str(runs / "apart-0"), "--reference", str(stopped), "--unfinished"]
    with pytest.raises(SystemExit) as end:
        main([*words, "--data-dir", str(image_folder), "--device", "cpu", "--out", str(tmp_path / "out")])
    assert end.value.code == 2 and "is not finished" in capsys.readouterr().err
