"""`apart-fast check`: its verdicts, its exit code, and that one check cannot stop another."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from apart_fast import kernels
from apart_fast.check import drawn, flags, loading, resume, run, speed, steps
from apart_fast.check import kernels as kernel_checks
from apart_fast.check.lines import WRONG, Given, Line
from apart_fast.check.page import as_data, page, wrong
from apart_fast.cli import main
from apart_fast.kernels import KERNELS, verify
from tests.conftest import draw_folder

VERDICTS = {"ok", "differs", "fails", "missing", "not run", "use", "leave out"}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """All of it in seconds."""
    for module in (steps, resume):
        monkeypatch.setattr(module, "WIDTH", 0.125)
    monkeypatch.setattr(steps, "IMAGES", 8)
    monkeypatch.setattr(resume, "BATCH", 4)
    monkeypatch.setattr(resume, "IMAGES", 24)
    monkeypatch.setattr(loading, "LOADERS", ["resident", "dataloader"])  # FFCV compiles for seconds
    monkeypatch.setattr(speed, "COPY", {"cpu": 2**20})
    monkeypatch.setattr(speed, "STEP", {"cpu": (0.125, 4)})
    monkeypatch.setattr(speed, "matrix_peak", lambda device, dtype: 1e9)


def check(*words):
    """Exit code."""
    with pytest.raises(SystemExit) as end:
        main(["check", "--device", "cpu", *words])
    return end.value.code


def only(monkeypatch, *names):
    monkeypatch.setattr(run, "CHECKS", {name: run.CHECKS[name] for name in names})


def test_all_is_right_on_the_cpu(capsys):
    assert check() == 0
    out = capsys.readouterr().out
    assert "All that was run is right." in out and max(map(len, out.splitlines())) <= 120
    for title in ("Versions and devices", "Kernels against their twins", "Resuming", "Measured"):
        assert f"{title}\n" in out
    assert " the same bits" in out and "train.py" in out


def test_json_has_the_same_verdicts(capsys, monkeypatch):
    only(monkeypatch, "packages", "kernels", "loaders", "flags")
    assert check("--quick") == 0
    text = capsys.readouterr().out
    assert check("--quick", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["right"] and set(data["checks"]) == {"packages", "kernels", "loaders", "flags"}
    rows = [" ".join(row.split()) for row in text.splitlines()]
    for line in (line for lines in data["checks"].values() for line in lines):
        assert any(row.startswith(f"{line['what']} {line['verdict']}") for row in rows), line
    assert {line["what"] for line in data["checks"]["kernels"]} >= set(KERNELS)


def test_a_wrong_kernel_is_told(monkeypatch, capsys):
    only(monkeypatch, "kernels", "loaders")

    def wrong_twin(a, s, alpha):
        out = KERNELS["relu_add_sign"].twin(a, s, alpha)
        return out + 0.01 if a.dtype == torch.float32 else out

    monkeypatch.setitem(kernels.KERNELS, "add_sign", KERNELS["add_sign"]._replace(twin=wrong_twin))
    assert check("--quick") == 1
    out = capsys.readouterr().out
    assert "Wrong: kernels: add_sign." in out
    (line,) = (line for line in out.splitlines() if line.startswith("  add_sign "))
    assert " differs " in line


def test_where_triton_cannot_work_the_twins_are_checked_and_it_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(kernel_checks, "triton_fault", lambda: "Triton needs a C compiler: install gcc")
    monkeypatch.setattr(kernel_checks, "many_calls", lambda name, device, shapes: verify.small_calls(name, "cpu"))
    given = Given(torch.device("cuda"), True, None, tmp_path)
    given.found["kernels"] = lines = kernel_checks.check(given)
    assert (lines[0].verdict, lines[0].text) == ("missing", "Triton needs a C compiler: install gcc")
    assert {line.verdict for line in lines[2:]} == {"ok"} and len(lines) == 2 + len(KERNELS)
    assert flags._kernels(given).text == "the twins do the work by themselves: Triton needs a C compiler: install gcc"


def test_a_check_that_raises_does_not_stop_the_others(monkeypatch, capsys):
    only(monkeypatch, "kernels", "step", "loaders")
    monkeypatch.setattr(steps, "has_bfloat16", lambda device: 1 / 0)
    assert check("--json") == 1
    found = json.loads(capsys.readouterr().out)["checks"]
    assert [(line["verdict"], line["text"]) for line in found["step"]] == [
        ("fails", "ZeroDivisionError: division by zero")
    ]
    assert {line["verdict"] for line in found["loaders"]} == {"ok"}


def test_a_loader_that_differs_or_is_missing_is_told(monkeypatch, tmp_path):
    given = Given(torch.device("cpu"), False, None, tmp_path)
    first = loading._first_batches

    def turned(kind, split, given):
        found = first("resident", split, given)
        if kind == "dataloader":
            found[1][0] = found[1][0].flip(2)
        return found

    monkeypatch.setattr(loading, "_first_batches", turned)
    monkeypatch.setattr(loading, "LOADERS", ["resident", "dataloader", "ffcv"])
    monkeypatch.setitem(loading.PARTS, "ffcv", loading.PARTS["ffcv"]._replace(there=lambda: False))
    lines = {line.what: line for line in loading.check(given)}
    assert [lines[kind].verdict for kind in ("resident", "dataloader", "ffcv")] == ["ok", "differs", "missing"]
    assert "images" in lines["dataloader"].text and "pip install" in lines["ffcv"].text


def test_a_step_that_differs_is_told(monkeypatch, tmp_path):
    make = drawn.drawn_apart

    def other(model, n, dtype=torch.float32, amp=None):
        apart = make(model, n, dtype, amp)
        apart.alpha_omega = 0.0 if dtype == torch.float32 else apart.alpha_omega.item()
        return apart

    monkeypatch.setattr(steps, "drawn_apart", other)
    assert steps.check(Given(torch.device("cpu"), False, None, tmp_path))[0].verdict == "differs"


def test_data_sets_of_a_folder_are_read(monkeypatch, capsys, tmp_path):
    only(monkeypatch, "data")
    draw_folder(tmp_path / "images")
    assert check("--data-dir", str(tmp_path / "images")) == 0
    out = capsys.readouterr().out
    assert "48 training and 12 test images of 12x12x3" in out and "missing" in out
    (tmp_path / "images" / "train" / "extra").mkdir()  # in one of two
    assert check("--data-dir", str(tmp_path / "images")) == 1
    assert re.search(r"^ *folder +fails", capsys.readouterr().out, re.M)
    assert check("--data-dir", str(tmp_path / "nosuch")) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_bad_input(capsys):
    with pytest.raises(SystemExit) as end:
        main(["check", "--device", "cuda:9"])
    assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_flags_follow_from_what_was_found():
    def together(amp, ffcv, graph, device="cuda"):
        found = {
            "step": [Line("bfloat16 against float64", amp), Line("graph against eager", graph)],
            "loaders": [Line("ffcv", ffcv)],
            "versions": [Line("cores", "ok", data={"cores": 2, "threads": 8})],
        }
        return flags.check(Given(torch.device(device), False, None, Path(), found))[-1].text

    assert together("ok", "ok", "ok") == "train.py --amp --ffcv --threads 2"
    assert together("differs", "missing", "fails") == "train.py --threads 2 --graph False"
    assert together("not run", "ok", "not run", "cpu") == "train.py --ffcv --threads 2"


def test_the_exit_code_is_that_of_the_worst_line():
    for verdict in VERDICTS:
        found = {"kernels": [Line("start", "ok"), Line("sign_dot", verdict, "why")]}
        assert bool(wrong(found)) == (verdict in WRONG) == (not as_data(found)["right"])
        assert "why" in page(found)


# ---- at the start of a training


def test_the_quick_check_finds_what_is_wrong(monkeypatch):
    def raising(*args, **options):
        raise RuntimeError("no compiler\nand more")

    for name, kernel in KERNELS.items():
        monkeypatch.setitem(kernels.KERNELS, name, kernel._replace(triton_launcher=kernel.twin))
    assert verify.quick_kernel_check("cpu") == {}
    half = KERNELS["sign_dot"]._replace(triton_launcher=lambda g, s: KERNELS["sign_dot"].twin(g, s) / 2)
    monkeypatch.setitem(kernels.KERNELS, "sign_dot", half)
    monkeypatch.setitem(kernels.KERNELS, "start", KERNELS["start"]._replace(triton_launcher=raising))
    unwritten = KERNELS["capture_sign"]._replace(triton_launcher=lambda g: torch.empty_like(g, dtype=torch.int8))
    monkeypatch.setitem(kernels.KERNELS, "capture_sign", unwritten)
    found = verify.quick_kernel_check("cpu")
    assert set(found) == {"sign_dot", "start", "capture_sign"}
    assert found["start"] == "raises RuntimeError: no compiler"
    assert found["capture_sign"].startswith("differs from its twin by 100.0% of its numbers (8x16x16x16 float32")

    disabled, told = {}, []
    monkeypatch.setattr(kernels, "active", lambda: dict.fromkeys(KERNELS, "triton"), raising=False)
    monkeypatch.setattr(kernels, "disable", lambda name, reason: disabled.update({name: reason}), raising=False)
    verify.replace_wrong_kernels("cpu", told.append)
    assert disabled == found and len(told) == 3
    assert all("\n" not in line and any(f"kernel {name} " in line for name in found) for line in told)


def test_kernels_pass_the_quick_check_in_the_interpreter():
    script = "from apart_fast.kernels.verify import quick_kernel_check; print(quick_kernel_check('cpu'))"
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "{}", done.stdout + done.stderr[-4000:]
