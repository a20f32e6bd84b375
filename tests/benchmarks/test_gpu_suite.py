"""benchmarks/gpu_suite.py without a GPU: which commands it would run, when it goes on and when it stops."""

import json

import pytest
import torch
import tyro

from apart_fast.cli import EvaluateConfig
from apart_fast.runs.config import TrainConfig
from benchmarks import gpu_suite, methods


@pytest.fixture
def suite(monkeypatch, tmp_path):
    """suite(*parts, codes=..., **settings) -> (exit code, command lines it ran), as on a machine with a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")

    def run(*parts, codes=None, **settings):
        ran = []

        def run_slice(command):
            ran.append(command)
            return (codes or [0])[min(len(ran), len(codes or [0])) - 1]

        monkeypatch.setattr(gpu_suite, "run_slice", run_slice)
        config = gpu_suite.Config(data_dir=tmp_path, out=tmp_path / "out", parts=parts, **settings)
        return gpu_suite.main(config), ran

    return run


def test_every_command_is_one_that_its_program_takes(tmp_path):
    seen = set()
    for part, command in gpu_suite.PARTS.items():
        if part == "strong-autoattack":
            (tmp_path / "strong").mkdir()
            (tmp_path / "strong" / "summary.json").write_text("{}")
        program, *words = command(gpu_suite.Config(), tmp_path)
        if program == "train.py":
            assert tyro.cli(TrainConfig, args=words).out == tmp_path / part
        elif program == "benchmarks/methods.py":
            config = tyro.cli(methods.Config, args=words)
            assert set(config.stages) <= methods.STAGES.keys() and set(config.methods) <= set(methods.METHODS)
        elif words[:2] == ["apart_fast.cli", "evaluate"]:
            assert tyro.cli(EvaluateConfig, args=words[2:]).checkpoint == tmp_path / "strong" / "best.pt"
        else:
            assert (program, words[0]) == ("-m", "pytest")
            assert all((gpu_suite.ROOT / word).exists() for word in words[1:] if not word.startswith("--"))
        seen.add(program)
    assert seen == {"train.py", "benchmarks/methods.py", "-m"}


def test_a_stopped_training_goes_on_and_a_finished_one_is_left_alone(suite, tmp_path):
    folder = tmp_path / "out" / "apart-30"
    assert suite("apart-30", codes=[gpu_suite.STOPPED, 0], slices=1)[0] == gpu_suite.STOPPED
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    code, ran = suite("apart-30", codes=[gpu_suite.STOPPED, 0], slices=3)
    assert code == 0 and ran == [["train.py", "--resume", str(folder)]] * 2
    (folder / "summary.json").write_text("{}")
    assert suite("apart-30") == (0, [])
    assert json.loads((tmp_path / "out" / "suite.json").read_text())["parts"]["apart-30"]["exit"] == 0


def test_what_has_not_ended_is_not_judged(suite, tmp_path, capsys):
    code, ran = suite("strong-autoattack", "profile-128")
    assert code == 2 and [command[0] for command in ran] == ["train.py"]
    assert "strong has not ended" in capsys.readouterr().err


def test_nothing_is_measured_after_a_failed_verification(suite, capsys):
    code, ran = suite("verify-kernels", "kernel-speed", codes=[1])
    assert code == 1 and len(ran) == 1
    assert "the verification failed: nothing is measured" in capsys.readouterr().err


def test_bad_input_is_told_in_one_line(suite, monkeypatch, capsys):
    assert suite("kernel-sped") == (2, []) and "no part kernel-sped" in capsys.readouterr().err
    assert suite(slices=0) == (2, []) and "--slices 0" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_suite.main(gpu_suite.Config()) == 2 and "torch sees no GPU" in capsys.readouterr().err
