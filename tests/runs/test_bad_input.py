"""Bad input at the command line: one line on stderr, exit code 2, nothing lost."""

import builtins
import importlib
import resource
import shutil
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from apart_fast import UserError
from apart_fast.cli import main
from apart_fast.runs import checkpoint
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.folder import RunFolder
from apart_fast.training.trainer import Trainer

# not importorskip: importing ffcv by hand sets torch's threads to 1
needs_ffcv = pytest.mark.skipif(find_spec("ffcv") is None, reason="ffcv is not installed: pip install apart_fast[ffcv]")


def refuse(capsys, *words):
    """Run the command; returns the one line it was refused with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    error = capsys.readouterr().err.strip()
    assert end.value.code == 2, error
    assert error.startswith("error: ") and "\n" not in error, error
    return error


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def trained(settings, tmp_path):
    out = tmp_path / "trained"
    with pytest.raises(SystemExit):
        main(["train", *settings, "--epochs", "1", "--no-test", "--out", str(out)])
    return out


@pytest.mark.parametrize(
    "flags, line",
    [
        (["--eps", "8"], "did you mean 8/255"),
        (["--eps", "x"], "eps"),
        (["--eval-eps", "8"], "did you mean 8/255"),
        (["--batch-size", "1000"], "larger than the data"),
        (["--points", "stage.*"], "'stage.*' matches no submodule"),
        (["--method", "apartt"], "did you mean apart"),
        (["--model", "preact_resnet19"], "did you mean preact_resnet18"),
        (["--model", "torchvision/resnet1000"], "torchvision/resnet"),
        (["--dataset", "cifar11"], "cifar10"),
        (["--device", "cuda:99"], "torch sees"),
        (["--device", "abacus"], "unknown device"),
        (["--epochs", "0"], "--epochs 0 is too small"),
        (["--ema", "1.5"], "--ema 1.5 is too large"),
        (["--ffcv", "--loader", "resident"], "contradict"),
        (["--val-images", "48"], "validation"),
        (["--resume", "nowhere"], "no run in nowhere"),
        (["--method", "fgsm-pgi", "--omega-dtype", "int8"], "give --omega-dtype float16 or float32"),
        (["--method", "pgd-10", "--omega-device", "disk"], "--omega-device disk: the method pgd-10 remembers nothing"),
        (["--recipe", "strong", "--ema", "0"], "give --ema, such as 0.9995, or --best-of average"),
        (["--recipe", "strong", "--schedule", "triangle"], "give --schedule-per step, or choose another --schedule"),
    ],
)
def test_settings(capsys, settings, tmp_path, flags, line):
    out = tmp_path / "run"
    assert line in refuse(capsys, "train", *settings, "--out", out, *flags)
    assert not list(tmp_path.rglob("*.pt"))


def test_missing_data(capsys, settings, tmp_path):
    line = refuse(capsys, "train", *settings, "--dataset", "cifar10", "--data-dir", tmp_path, "--no-download")
    assert str(tmp_path) in line


def test_images_of_mixed_sizes(capsys, settings, own_folder):
    Image.fromarray(np.zeros((9, 12, 3), np.uint8)).save(own_folder / "train" / "cross" / "odd.png")
    assert "odd.png" in refuse(capsys, "train", *settings, "--data-dir", own_folder)


def test_empty_class(capsys, settings, own_folder):
    (own_folder / "train" / "triangle").mkdir()
    assert "triangle" in refuse(capsys, "train", *settings, "--data-dir", own_folder)


def test_unreadable_image(capsys, settings, own_folder):
    (own_folder / "train" / "cross" / "000.png").write_bytes(b"\x89PNG not really")
    assert "000.png" in refuse(capsys, "train", *settings, "--data-dir", own_folder)


@needs_ffcv
def test_damaged_beton(capsys, settings, own_folder, tmp_path):
    words = ["train", *settings, "--data-dir", own_folder, "--ffcv", "--epochs", "1", "--no-test"]
    with pytest.raises(SystemExit):
        main([str(word) for word in [*words, "--out", tmp_path / "a"]])
    (beton,) = own_folder.rglob("*.beton")
    beton.write_bytes(beton.read_bytes()[:-100])
    assert str(beton) in refuse(capsys, *words, "--out", tmp_path / "b")
    assert beton.exists()


def test_ffcv_without_ffcv(capsys, settings, monkeypatch, own_folder):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "ffcv":
            raise ModuleNotFoundError("No module named 'ffcv'", name="ffcv")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in [name for name in sys.modules if name.partition(".")[0] == "ffcv" or name.endswith(".ffcv_backend")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(importlib, "import_module", lambda name, package=None: without(name))
    assert "ffcv" in refuse(capsys, "train", *settings, "--data-dir", own_folder, "--ffcv")


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"not a checkpoint"])
def test_damaged_checkpoint(capsys, trained, damage):
    (trained / "last.pt").write_bytes(damage((trained / "last.pt").read_bytes()))
    before = contents(trained)
    assert "damaged" in refuse(capsys, "train", "--resume", trained)
    assert "damaged" in refuse(capsys, "evaluate", trained / "last.pt")
    assert contents(trained) == before


def test_checkpoint_with_code_in_it_is_not_run(capsys, trained):
    torch.save({"format": 1, "model": Image.new("L", (1, 1))}, trained / "last.pt")
    assert "damaged or not a checkpoint" in refuse(capsys, "evaluate", trained / "last.pt")


def test_checkpoint_of_another_model(capsys, trained, settings, tmp_path):
    other = tmp_path / "other"
    with pytest.raises(SystemExit):
        main(["train", *settings, "--width", "0.125", "--epochs", "1", "--no-test", "--out", str(other)])
    shutil.copy(trained / "last.pt", other / "last.pt")
    before = contents(other)
    line = refuse(capsys, "train", "--resume", other)
    assert "of another model: conv1.weight is (4, 3, 3, 3) there and (8, 3, 3, 3) here" in line
    assert contents(other) == before


def test_weights_alone_do_not_resume(capsys, trained):
    shutil.copy(trained / "best.pt", trained / "last.pt")
    assert "holds weights only" in refuse(capsys, "train", "--resume", trained)


def test_damaged_configuration(capsys, trained):
    (trained / "config.json").write_text('{"epochs": ')
    assert "config.json is damaged" in refuse(capsys, "train", "--resume", trained)


def test_a_folder_with_a_run_is_not_overwritten(capsys, trained, settings):
    before = contents(trained)
    assert "already holds a run" in refuse(capsys, "train", *settings, "--out", trained)
    assert contents(trained) == before


def test_nan_loss_ends_the_run_and_keeps_the_checkpoint(capsys, settings, tmp_path, monkeypatch):
    out, step = tmp_path / "nan", Trainer.step

    def poisoned(self, batch):
        if self.global_step == 8:
            with torch.no_grad():
                self.model.linear.weight.fill_(float("nan"))
        step(self, batch)

    monkeypatch.setattr(Trainer, "step", poisoned)
    line = refuse(capsys, "train", *settings, "--log-every", "1", "--out", out)
    assert "the loss became nan in epoch 2: lower --lr" in line
    state = checkpoint.load(out / "last.pt")
    assert state["progress"]["epoch"] == 1 and all(torch.isfinite(v).all() for v in state["model"].values())


@pytest.fixture
def full_disk():
    """No file may grow past 20 kB, as on a disk with so much left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_space_left_for_a_checkpoint(tmp_path, full_disk):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"model": torch.zeros(3)})
    before = path.read_bytes()
    full_disk()
    with pytest.raises(UserError, match="no space left|free some space"):
        checkpoint.save(path, {"model": torch.zeros(1_000_000)})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_no_space_left_in_a_run(capsys, settings, tmp_path, full_disk):
    full_disk()
    assert "free some space" in refuse(capsys, "train", *settings, "--out", tmp_path / "run")


def test_what_cannot_start_leaves_no_run_behind(capsys, settings, tmp_path):
    out = tmp_path / "run"
    refuse(capsys, "train", *settings, "--out", out, "--points", "typo")
    with pytest.raises(SystemExit) as end:
        main(["train", *settings, "--epochs", "1", "--no-test", "--out", str(out)])
    assert not end.value.code


def test_resume_keeps_its_settings(capsys, trained):
    line = refuse(capsys, "train", "--resume", trained, "--epochs", "9", "--lr", "0.3")
    assert "leave out --epochs, --lr" in line
    assert "leave out --out" in refuse(capsys, "train", "--resume", trained, "--out", trained.parent / "elsewhere")


def test_resume_on_other_images(capsys, trained, own_folder):
    image = next((own_folder / "train" / "cross").iterdir())
    Image.fromarray(np.zeros((12, 12, 3), np.uint8)).save(image)
    assert "not those of the run" in refuse(capsys, "train", "--resume", trained, "--data-dir", own_folder)


def test_out_that_is_a_file(capsys, settings, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "cannot write" in refuse(capsys, "train", *settings, "--out", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_evaluate_on_images_of_another_size(capsys, trained, tmp_path):
    from tests.conftest import draw_folder

    other = draw_folder(tmp_path / "larger", size=16)
    assert "has [16, 16, 3]" in refuse(capsys, "evaluate", trained / "last.pt", "--data-dir", other)


def test_evaluate_refuses_other_data(capsys, trained, tmp_path):
    assert "no checkpoint at" in refuse(capsys, "evaluate", tmp_path / "none.pt")


def test_demo_spares_a_folder_of_other_things(capsys, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert "something other than a demo" in refuse(capsys, "demo", "--out", tmp_path)
    assert (tmp_path / "thesis.txt").exists()
    (tmp_path / "thesis.txt").unlink()
    for method in ("apart", "standard"):  # runs of somebody who likes such names
        (tmp_path / method).mkdir()
        (tmp_path / method / "config.json").write_text('{"recipe": "paper"}')
    assert "something other than a demo" in refuse(capsys, "demo", "--out", tmp_path)
    assert (tmp_path / "apart" / "config.json").exists()
    shutil.rmtree(tmp_path / "apart")
    shutil.rmtree(tmp_path / "standard")
    (tmp_path / "curves.png").write_text("somebody's")
    assert "something other than a demo" in refuse(capsys, "demo", "--out", tmp_path)
    (tmp_path / "my-run").mkdir()
    (tmp_path / "my-run" / "config.json").write_text("{}")
    assert "something other than a demo" in refuse(capsys, "demo", "--out", tmp_path)
    assert (tmp_path / "my-run" / "config.json").exists()


def test_an_old_demo_stays_where_a_new_one_has_no_data(capsys, monkeypatch, tmp_path):
    def none(*_, **__):
        raise UserError("no data")

    monkeypatch.setattr("apart_fast.commands.demo.load_dataset", none)
    (tmp_path / "demo" / "apart").mkdir(parents=True)
    (tmp_path / "demo" / "apart" / "config.json").write_text('{"recipe": "demo"}')
    assert "no data" in refuse(capsys, "demo", "--out", tmp_path / "demo")
    assert (tmp_path / "demo" / "apart" / "config.json").exists()


def test_two_runs_that_begin_together_do_not_share_a_folder(settings, tmp_path):
    config = TrainConfig(out=tmp_path / "both")
    first, second = RunFolder.choose(config), RunFolder.choose(config)
    first.create(config)
    before = contents(tmp_path)
    with pytest.raises(UserError, match="another run has begun"):
        second.create(config)
    assert contents(tmp_path) == before


def test_nothing_is_judged_for_a_report_that_cannot_be_written(capsys, settings, trained, tmp_path, monkeypatch):
    words = ["evaluate", trained / "last.pt", "--data-dir", settings[settings.index("--data-dir") + 1], "--images", "4"]
    monkeypatch.setattr("apart_fast.commands.evaluate.evaluate", lambda *_, **__: pytest.fail("judged in vain"))
    assert "it is a folder" in refuse(capsys, *words, "--out", tmp_path)
    (tmp_path / "file").write_text("")
    assert "cannot write" in refuse(capsys, *words, "--out", tmp_path / "file" / "report.json")


def test_a_last_batch_of_one_image_that_the_network_cannot_take(capsys, settings, tmp_path):
    small = ["--model", "torchvision/resnet18", "--width", "1", "--val-images", "6", "--batch-size"]
    line = refuse(capsys, "train", *settings, *small, "41", "--out", tmp_path / "run")
    assert "the last batch of an epoch has one image" in line and not (tmp_path / "run").exists()
