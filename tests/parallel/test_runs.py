"""Whole trainings on two gloo ranks: stopped, resumed, gone on with by one process, and judged."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs_script import STOPPED_AT, VARIANTS
from starting import same, start_ranks

from apart_fast.cli import main
from apart_fast.runs import shards
from tests.conftest import draw_folder

SCRIPT = Path(__file__).parent / "runs_script.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder of the runs of the script, and what each rank printed."""
    folder = tmp_path_factory.mktemp("runs")
    draw_folder(folder / "images")
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ranks = start_ranks(2, [sys.executable, str(SCRIPT), str(folder)], **pipes)
    said = [rank.communicate(timeout=300) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    return folder, said


def state(run):
    """last.pt of a run, and what its ranks have kept."""
    made = torch.load(run / "last.pt")
    record = made["ranks"]
    assert record["size"] == 2 and record["total"] == 36
    return made, [shards.read_rank(run, record, rank) for rank in range(2)]


def test_a_run_that_one_rank_was_asked_to_stop_goes_on_to_the_same_bits(runs):
    folder, _ = runs
    (whole, parts), (stopped, others) = state(folder / "whole"), state(folder / "stopped")
    for name in ("model", "optimizer", "apart", "totals", "rng"):
        assert same(whole[name], stopped[name]), name
    assert same(parts, others)
    # the flag travels with the gradients of the step after the signal
    assert int((folder / "stopped-at.txt").read_text()) == STOPPED_AT + 1 - 5
    lines = [json.loads(line) for line in (folder / "stopped/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]


def test_ranks_own_all_rows_and_keep_two_checkpoints_at_most(runs):
    folder, _ = runs
    made, parts = state(folder / "whole")
    owned = torch.cat([part["examples"] for part in parts])
    assert sorted(owned.tolist()) == list(range(36))
    assert "memory" not in made["apart"]
    assert len(list((folder / "whole/ranks").iterdir())) == 2
    rows = shards.read_rows(folder / "whole", made["ranks"], torch.arange(36))
    assert all(torch.equal(rows[part["examples"]], part["memory"]) for part in parts)


def test_the_figures_are_those_of_one_process(runs, capsys):
    """The test images were judged in two parts, with the means of the ranks' running statistics."""
    folder, _ = runs
    judged = json.loads((folder / "whole/summary.json").read_text())["test"]["last"]
    words = ["evaluate", folder / "whole/last.pt", "--data-dir", folder / "images", "--device", "cpu", "--no-progress"]
    with pytest.raises(SystemExit) as end:
        main([*map(str, words), "--batch-size", "128", "--out", str(folder / "judged.json")])
    assert not end.value.code
    alone = json.loads((folder / "judged.json").read_text())
    for attack in ("clean", "pgd-20"):
        assert judged["attacks"][attack]["correct"] == alone["attacks"][attack]["correct"]
    assert judged["n"] == alone["n"] == 12


def test_one_process_goes_on_with_what_two_have_kept(runs, capsys, tmp_path):
    run = shutil.copytree(runs[0] / "ema", tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"epochs": 2}))
    before = torch.load(run / "last.pt")
    rows = shards.read_rows(run, before["ranks"], torch.arange(36))
    with pytest.raises(SystemExit) as end:
        main(["train", "--resume", str(run), "--no-progress"])
    assert not end.value.code, capsys.readouterr()
    after = torch.load(run / "last.pt")
    assert "ranks" not in after and after["apart"]["memory"].shape == rows.shape
    assert after["progress"]["epoch"] == 2
    assert not torch.equal(after["apart"]["memory"], rows)


@pytest.mark.parametrize("name", VARIANTS)
def test_other_settings_train_on_two_ranks(runs, name):
    folder, _ = runs
    summary = json.loads((folder / name / "summary.json").read_text())
    assert summary["ranks"] == 2 and summary["final"]["loss"] > 0
    assert (folder / name / "report.html").is_file()


def test_compiled_ranks_train_as_others_do(runs):
    folder, said = runs
    lines = [[json.loads(line) for line in open(folder / name / "metrics.jsonl")] for name in ("compiled", "whole")]
    for mine, theirs in zip(*lines, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-2)
    assert said[0][0].count("compiled in") == 1


def test_rank_0_alone_speaks_and_one_line_is_said_once(runs):
    _, said = runs
    assert said[1][0] == "" and "epoch   2" in said[0][0]
    lines = [line for _, error in said for line in error.splitlines() if line.startswith("line: ")]
    assert lines == ["line: all ranks find the same"]
    assert all("Traceback" not in error for _, error in said)
