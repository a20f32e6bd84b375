"""Which algorithms a GPU takes, with stand-ins: what is set within, and that all is as it was afterwards."""

import os

import pytest
import torch

from apart_fast.errors import UserError
from apart_fast.runs.config import TrainConfig
from apart_fast.training import run as run_module
from apart_fast.training.algorithms import algorithms
from apart_fast.training.run import train

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def look():
    return (
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        os.environ.get(WORKSPACE),
    )


@pytest.fixture(autouse=True)
def no_workspace(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)


def test_the_quickest_convolutions_are_searched_for_on_a_gpu():
    before = look()
    with algorithms(GPU, deterministic=False):
        assert torch.backends.cudnn.benchmark and not torch.backends.cudnn.deterministic
        assert look()[2:] == before[2:]
    assert look() == before


def test_deterministic_on_a_gpu(capsys):
    before = look()
    with pytest.raises(UserError), algorithms(GPU, deterministic=True):
        assert look() == (False, True, True, True, False, ":4096:8")
        raise UserError("stop")
    assert look() == before
    assert capsys.readouterr().out == ""


def test_a_workspace_that_comes_too_late_is_told(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with algorithms(GPU, deterministic=True):
        pass
    assert "start the program with CUBLAS_WORKSPACE_CONFIG=:4096:8" in capsys.readouterr().out
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with algorithms(GPU, deterministic=True):
        assert os.environ[WORKSPACE] == ":16:8"
    assert os.environ[WORKSPACE] == ":16:8" and capsys.readouterr().out == ""


@pytest.mark.parametrize("deterministic", [False, True])
def test_on_a_cpu_nothing_changes(deterministic):
    before = look()
    with algorithms(CPU, deterministic=deterministic):
        assert look() == before


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_run_trains_within(monkeypatch, tmp_path, deterministic):
    """The GPU is a stand-in; the data is asked for within, and the run ends there."""
    seen = []

    def stop(*_, **__):
        seen.append(look()[:3])
        raise UserError("far enough")

    monkeypatch.setattr(run_module, "pick_device", lambda _: GPU)
    monkeypatch.setattr(run_module, "load_dataset", stop)
    before = look()
    with pytest.raises(UserError, match="far enough"):
        train(TrainConfig(out=tmp_path / "run", deterministic=deterministic))
    assert seen == [(not deterministic, deterministic, deterministic)]
    assert look() == before
