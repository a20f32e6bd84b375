"""`--log`: what a logger is told, and that none of them ends a run."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from apart_fast.cli import main
from apart_fast.errors import UserError
from apart_fast.runs.begin import begin
from apart_fast.runs.config import LOGGERS, TrainConfig
from apart_fast.runs.folder import RunFolder
from apart_fast.training import loggers
from apart_fast.training.loggers import MAKERS, Logs, Sparing

# a package that takes down what it is told
STAND_IN = """
import json
from pathlib import Path

def note(what, *args, **more):
    with open({file!r}, "a") as file:
        file.write(json.dumps([what, *args, more], default=str) + "\\n")

class Run:
    url, dir, offline = "https://somewhere/run", "x", False
    def define_metric(self, name, **more): note("define_metric", name, **more)
    def log(self, values, **more):
        {broken}
        note("log", values, **more)
    def finish(self): note("finish")

def init(**more):
    note("init", **more)
    return Run()

class Settings(dict):
    pass
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Installs a package under a name; returns what reads the calls."""

    real = {name: sys.modules.pop(name) for name in MAKERS if name in sys.modules}

    def install(name, broken="pass"):
        file, place = tmp_path / f"{name}.jsonl", tmp_path / "packages"
        place.mkdir(exist_ok=True)
        (place / f"{name}.py").write_text(STAND_IN.format(file=str(file), broken=broken))
        monkeypatch.syspath_prepend(place)
        return lambda: [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    yield install
    for name in MAKERS:
        sys.modules.pop(name, None)
    sys.modules.update(real)


def logged(config, folder, *values):
    logs = Logs(config, folder, 0)
    for step, each in values:
        logs.values(each, step)
    logs.close()


def test_every_logger_of_the_flag_is_there():
    assert {"tensorboard", *MAKERS} == set(LOGGERS)


def test_both_are_told_all_and_a_resumed_run_goes_on_under_its_name(stand_in, tmp_path):
    wandb, trackio = stand_in("wandb"), stand_in("trackio")
    config, folder = TrainConfig(log=("wandb", "trackio"), lr=0.3), RunFolder(tmp_path / "run")
    folder.path.mkdir()
    logged(config, folder, (5, {"step/loss": 1.5}), (6, {"epoch/loss": 1.0, "epoch/alpha": 0.1}))
    (init, *defined, first, second, end), tracked = wandb(), trackio()
    assert init[1]["resume"] == "allow" and init[1]["project"] == "apart_fast" and init[1]["dir"] == str(folder.path)
    assert (
        init[1]["config"]["lr"] == 0.3 and init[1]["id"].startswith("run-") and init[1]["settings"]["console"] == "off"
    )
    assert [call[:2] for call in defined] == [["define_metric", "global_step"], ["define_metric", "*"]]
    assert first[1] == {"step/loss": 1.5, "global_step": 5} and end[0] == "finish"
    assert second[1] == {"epoch/loss": 1.0, "epoch/alpha": 0.1, "global_step": 6}
    assert [call[0] for call in tracked] == ["init", "log", "log", "finish"]
    assert tracked[0][1]["name"] == init[1]["id"] and tracked[1][1:] == [{"step/loss": 1.5}, {"step": 5}]
    logged(config, folder, (7, {"step/loss": 1.0}))
    assert wandb()[6][0] == "init" and wandb()[6][1]["id"] == init[1]["id"]
    (folder.path / "log.json").write_text("{")  # damaged: a new name
    logged(config, folder)
    assert wandb()[-4][1]["id"] != init[1]["id"]


def test_one_that_fails_costs_a_line_and_not_the_run(stand_in, settings, tmp_path, capsys):
    stand_in("wandb", broken="raise ConnectionError('no network\\nat all')")
    trackio = stand_in("trackio")
    words = [*settings, "--epochs", "1", "--no-test", "--log-every", "2", "--log", "wandb", "trackio"]
    with pytest.raises(SystemExit) as end:
        main(["train", *words, "--out", str(tmp_path / "run")])
    out, err = capsys.readouterr()
    assert not end.value.code, err
    lines = [line for line in out.splitlines() if "wandb takes no more" in line]
    assert lines == ["note: wandb takes no more figures (no network): going on without it"]
    names = [set(call[1]) for call in trackio() if call[0] == "log"]
    assert {"step/loss", "step/alpha"} <= names[0] and {
        "epoch/loss",
        "epoch/val_pgd20",
        "epoch/alpha_blocks/7",
    } <= names[-1]
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert json.loads((tmp_path / "run" / "config.json").read_text())["log"] == ["wandb", "trackio"]


class Broken:
    def values(self, values, step):
        raise RuntimeError("full")

    def close(self):
        raise SystemExit("gone")


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: exec("raise SystemExit(1)"), "(1)"),
        (lambda: exec("raise ImportError('nothing there')"), "(nothing there)"),
        (lambda: time.sleep(0.5), "(it does not begin within 0 s)"),
        (lambda: exec("raise KeyError"), "(KeyError)"),
        (Broken, "(full)"),
    ],
)
def test_whatever_they_do_is_one_line(make, line, monkeypatch, capsys):
    monkeypatch.setattr(loggers, "WITHIN", 0.05)
    logger = Sparing("wandb", make)
    for step in range(3):
        logger.values({"loss": 1.0}, step)
    logger.close()
    assert capsys.readouterr().out == f"note: wandb takes no more figures {line}: going on without it\n"


def test_an_end_that_fails_is_one_line(capsys):
    Sparing("wandb", Broken).close()
    assert capsys.readouterr().out.count("(gone)") == 1


def test_a_package_that_is_missing_is_told_before_the_run(monkeypatch, tmp_path):
    monkeypatch.setattr("apart_fast.runs.begin.find_spec", lambda name: None if name == "trackio" else object())
    with pytest.raises(
        UserError, match=r"--log trackio needs the package trackio: pip install 'apart_fast\[trackio\]'"
    ):
        begin(TrainConfig(log=("wandb", "trackio"), out=tmp_path / "run"))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_packages_themselves_offline(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip(name, reason=f"{name} is not installed: pip install apart_fast[{name}]")
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    for step in (1, 2):  # begun, and resumed
        logged(TrainConfig(log=(name,)), folder, (step, {"step/loss": 1.0 / step}))
    out = capsys.readouterr().out
    assert out.count(f"note: {name}: ") == 2 and "takes no more" not in out, out
    made = {"wandb": folder.path / "wandb", "trackio": tmp_path / "trackio"}[name]
    assert any(os.scandir(made)) and Path(made).is_dir()
