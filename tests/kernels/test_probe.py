"""What is said before the first launch where Triton cannot compile its launcher."""

import sysconfig

import pytest
import torch
from interpreting import needs_triton

from apart_fast import kernels
from apart_fast.cli import main
from apart_fast.errors import UserError
from apart_fast.kernels import KERNELS, dispatch, probe
from apart_fast.kernels.probe import triton_fault

pytestmark = needs_triton


@pytest.fixture(autouse=True)
def undecided(monkeypatch, tmp_path):
    monkeypatch.setattr(dispatch, "_state", dispatch._State())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def compiler():
    if triton_fault() is not None:
        pytest.skip("needs a C compiler and Python.h")


def empty_path(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    return "finds none"


def no_such_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    return "cannot be run"


def empty_name(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "")
    return "cannot be run"


def failing_compiler(monkeypatch, tmp_path):
    (tmp_path / "cc").write_text("#!/bin/sh\necho 'fatal error: no memory' >&2\nexit 3\n")
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    return "fatal error: no memory"


def lying_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "true")
    return "does not work"


def no_header(monkeypatch, tmp_path):
    paths = sysconfig.get_paths
    monkeypatch.setattr(sysconfig, "get_paths", lambda **options: paths(**options) | {"include": str(tmp_path)})
    return r"Python\.h"


def no_cache(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    return "TRITON_CACHE_DIR"


FAULTS = (empty_path, no_such_compiler, empty_name, failing_compiler, lying_compiler, no_header, no_cache)


@pytest.mark.parametrize("break_it", FAULTS)
def test_a_line_says_what_is_missing(monkeypatch, tmp_path, compiler, break_it):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    told, expected = [], break_it(monkeypatch, tmp_path)
    fault = triton_fault()
    assert fault is not None and "\n" not in fault
    kernels.use("auto", tell=told.append)
    assert told == [f"note: {fault}. Until then plain PyTorch does the work of the Triton kernels, slower"]
    assert kernels.active() == dict.fromkeys(KERNELS, "torch")
    with pytest.raises(UserError, match=f"--kernels triton cannot be had: .*{expected}"):
        kernels.use("triton", tell=told.append)
    assert len(told) == 1


def test_with_a_gpu_the_driver_is_asked_too(monkeypatch, compiler):
    """Without a GPU Triton has no driver, so that this is how a machine without libcuda looks."""
    if torch.cuda.is_available():
        assert triton_fault() is None
    else:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert "driver cannot be loaded" in triton_fault()


@pytest.mark.parametrize(("launches", "said"), [(True, None), (False, "finds none")])
def test_what_is_built_already_needs_no_compiler(monkeypatch, tmp_path, launches, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(probe, "_driver_fault", lambda: (None, launches))
    empty_path(monkeypatch, tmp_path)
    assert (triton_fault() is None) if said is None else (said in triton_fault())


def test_a_run_on_a_cpu_asks_nothing(monkeypatch):
    monkeypatch.setattr(dispatch, "triton_fault", lambda: pytest.fail("probed"))
    kernels.use("auto", torch.device("cpu"))
    kernels.use("torch")
    t = torch.ones(3)
    assert kernels.capture_sign(t).tolist() == [1, 1, 1]
    with pytest.raises(UserError, match="--kernels triton needs a GPU"):
        kernels.use("triton", torch.device("cpu"))


def test_without_triton(monkeypatch):
    monkeypatch.setattr(probe, "HAS_TRITON", False)
    assert "not installed" in triton_fault()


def test_unknown_names():
    with pytest.raises(UserError, match="unknown kernels 'cuda'"):
        kernels.use("cuda")
    with pytest.raises(UserError, match="unknown kernel 'sine': choose one of start"):
        kernels.disable("sine", "wrong")


def test_a_training_on_a_cpu_refuses_triton(settings, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", *settings, "--out", str(tmp_path / "run"), "--kernels", "triton"])
    assert end.value.code == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line and "--kernels triton needs a GPU" in line
