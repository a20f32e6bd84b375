"""Runs to analyse."""

import json
import shutil

import pytest

from apart_fast.cli import main
from apart_fast.files import to_json
from apart_fast.runs.config import TrainConfig


@pytest.fixture(scope="session")
def trained(settings, tmp_path_factory):
    """apart-0, a run of APART with the weights of each of its 3 epochs. Not to be altered."""
    out = tmp_path_factory.mktemp("runs") / "apart-0"
    with pytest.raises(SystemExit) as end:
        main(["train", *settings, "--keep-weights", "1", "--no-test", "--out", str(out)])
    assert not end.value.code
    return out


@pytest.fixture(scope="session")
def change():
    """Alters the settings that a run says it had."""

    def change(run, **settings):
        values = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(values | settings))

    return change


@pytest.fixture(scope="session")
def runs(trained, change):
    """The folder of apart-0 and of pgd-0, one as if of PGD, without kept weights. Not to be altered."""
    reference = shutil.copytree(trained, trained.parent / "pgd-0")
    shutil.move(reference / "weights" / "epoch-0001.pt", reference / "best.pt")
    shutil.rmtree(reference / "weights")
    change(reference, method="pgd-2")
    return trained.parent


@pytest.fixture
def common(image_folder, tmp_path):
    return dict(data_dir=image_folder, device="cpu", progress=False, out=tmp_path / "out")


@pytest.fixture
def write_run(tmp_path):
    """Writes the records of a finished run that never was: values of `key`, one for each epoch (None: not there)."""

    def write(name, values, key="probe_pgd10", **settings):
        folder = tmp_path / "written" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(to_json(TrainConfig(out=folder, **settings)))
        (folder / "summary.json").write_text("{}")
        lines = [{"epoch": i + 1} | ({} if v is None else {key: v}) for i, v in enumerate(values)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return write
