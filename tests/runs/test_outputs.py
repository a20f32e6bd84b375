"""No output falls on an input, or on a file of another kind."""

import json
import os
import shutil

import pytest
from test_bad_input import contents, refuse

from apart_fast.analysis import output
from apart_fast.errors import UserError
from apart_fast.report.write import write_report
from apart_fast.runs import checkpoint
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.folder import MADE, RunFolder
from apart_fast.runs.outputs import EVALUATION, PAGE, check_output
from tests.runs.states import weights, write_run

JUDGED = json.dumps({"attacks": {}, "eps": 0.03, "environment": {}})


@pytest.fixture
def run(tmp_path):
    folder = write_run(tmp_path / "run")
    checkpoint.save(folder / "best.pt", weights())
    shutil.copy(folder / "best.pt", folder / "last.pt")
    (folder / "curves.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


@pytest.mark.parametrize(
    "name", ["best.pt", "last.pt", "config.json", "summary.json", "metrics.jsonl", "curves.png", "."]
)
def test_a_judgement_replaces_no_other_file(capsys, run, image_folder, name, monkeypatch):
    monkeypatch.setattr("apart_fast.commands.evaluate.evaluate", lambda *_, **__: pytest.fail("judged in vain"))
    before = contents(run)
    line = refuse(
        capsys, "evaluate", run / "best.pt", "--data-dir", image_folder, "--device", "cpu", "--out", run / name
    )
    assert "read by this command" in line or "something other than an evaluation" in line or "is a folder" in line
    assert contents(run) == before


def test_links_to_what_is_read_are_no_way_around(run):
    os.symlink("best.pt", run / "link.json")
    os.link(run / "best.pt", run / "second.json")
    for name in ("link.json", "second.json"):
        with pytest.raises(UserError, match="is read by this command and would be replaced: name another file"):
            check_output(run / name, EVALUATION, [run / "best.pt"])


def test_what_the_command_has_written_before_is_replaced(run):
    for name, text in (("new.json", None), ("empty.json", ""), ("old.json", JUDGED)):
        if text is not None:
            (run / name).write_text(text)
        before = contents(run)
        check_output(run / name, EVALUATION, [run / "best.pt"])
        assert contents(run) == before
    check_output(run / "deep" / "er" / "new.json", EVALUATION)
    assert not (run / "deep").exists()  # a look leaves nothing


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/null", path)])
def test_pipes_and_devices_are_not_replaced(run, make):
    make(run / "odd")
    with pytest.raises(UserError, match="is no regular file"):
        check_output(run / "odd", PAGE)


@pytest.mark.parametrize("name", ["last.pt", "summary.json", "curves.png", "."])
def test_a_report_replaces_reports_only(run, name):
    before = contents(run)
    with pytest.raises(UserError, match="something other than a report|is a folder"):
        write_report([run], run / name)
    assert contents(run) == before
    for _ in range(2):
        write_report([run], run / "report.html")


def test_an_analysis_spares_runs_and_others_files(run, tmp_path):
    with pytest.raises(UserError, match="is the folder of a run, whose pictures would be replaced"):
        output.check(run, "curves")
    out = tmp_path / "out"
    output.check(out, "curves")
    assert not out.exists()
    out.mkdir()
    (out / "curves.png").write_bytes(b"\x89PNG\r\n\x1a\n")  # a demo's, or somebody's
    with pytest.raises(UserError, match="curves.png is of no analysis .curves.json is not beside it.: choose"):
        output.check(out, "curves")
    (out / "curves.json").write_text('{"mine": 1}')
    with pytest.raises(UserError, match="curves.json holds something other than the numbers of an analysis"):
        output.check(out, "curves")
    (out / "curves.json").write_text('{"runs": [], "dataset": "x", "eps": 1, "environment": {}}')
    output.check(out, "curves")


@pytest.mark.parametrize("command", ["collapse", "perturbations", "curves", "gradients"])
def test_every_analysis_looks_first(capsys, run, command):
    before = contents(run)
    reference = ["--reference", run] if command == "collapse" else []
    line = refuse(capsys, "analyze", command, run, *reference, "--out", run, "--device", "cpu")
    assert "is the folder of a run" in line and contents(run) == before


@pytest.mark.parametrize("name", MADE[1:])
def test_a_run_does_not_begin_where_it_would_replace_files(tmp_path, name):
    (tmp_path / "others.txt").write_text("may stay beside it")
    RunFolder.choose(TrainConfig(out=tmp_path))
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds {name}, which a run would replace: choose another --out"):
        RunFolder.choose(TrainConfig(out=tmp_path))
