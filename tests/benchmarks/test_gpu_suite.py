"""benchmarks/gpu_suite.py without a GPU: what it would run, when it goes on and when it stops, and a dry pass.

Of the dry pass `REAL` is really started, as the suite starts it. The command lines of the other parts are parsed by the
programs they are for; what these do is tested elsewhere (tests/training, tests/measure, tests/benchmarks, tests/runs).
"""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
import tyro
from torch.distributed.run import get_args_parser

from apart_fast.cli import guarded
from apart_fast.commands.table import COMMANDS
from apart_fast.errors import UserError
from apart_fast.runs.config import EvaluateConfig, TrainConfig
from apart_fast.runs.recipes import RECIPES
from benchmarks import gpu_suite, methods, scaling
from benchmarks.gpu import data, estimates, parts, plan, running, suite, summary

REAL = ("verify-kernels", "step-speed", "data", "apart-30", "strong-autoattack")
PASSED_SUMMARY = {
    "train_seconds": 81.5,
    "epochs": 30,
    "collapsed_at": [],
    "test": dict.fromkeys(
        ("last", "best"), {"attacks": dict.fromkeys(("clean", "pgd-20"), {"accuracy": 0.5, "n": 10_000})}
    ),
}


def parse(words, name, out):
    """Let the program a command line is for read it; returns the settings, or None for pytest."""
    program, *flags = words
    if program == "train.py":
        recipe = flags[flags.index("--recipe") + 1] if "--recipe" in flags else None
        config = tyro.cli(TrainConfig, args=flags, default=TrainConfig.of(recipe) if recipe else TrainConfig())
        assert config.out == out / name
        config.check()
        return config
    if program == "benchmarks/methods.py":
        config = tyro.cli(methods.Config, args=flags)
        assert set(config.stages) <= methods.STAGES.keys() and set(config.methods) <= set(methods.METHODS)
        return config
    if program == "benchmarks/gpu/data.py":
        return tyro.cli(data.Config, args=flags)
    assert program == "-m"
    if flags[0] == "torch.distributed.run":
        started = get_args_parser().parse_args(flags[1:])
        assert started.module and started.training_script == "benchmarks.scaling" and int(started.nproc_per_node) >= 2
        return tyro.cli(scaling.Config, args=started.training_script_args)
    if flags[:2] == ["apart_fast.cli", "evaluate"]:
        return tyro.cli(EvaluateConfig, args=flags[2:])
    if flags[:2] == ["apart_fast.cli", "check"]:
        assert COMMANDS.get("check") is None or tyro.cli(COMMANDS["check"].settings, args=flags[2:])
        return None
    assert flags[0] == "pytest"
    paths = [word for word in flags[1:] if not word.startswith("-")]
    assert paths and all((parts.ROOT / path).exists() for path in paths)
    return None


@pytest.mark.parametrize("dry", [False, True], ids=["gpu", "dry"])
def test_every_command_is_one_that_its_program_takes(monkeypatch, tmp_path, dry):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    place = parts.Place(tmp_path / "data", tmp_path, dry)
    (tmp_path / "data.json").write_text("{}")
    for name, part in parts.PARTS.items():
        config = parse(part.words(place), name, tmp_path)
        if isinstance(config, TrainConfig):
            assert (config.device, config.amp) == (("cpu", False) if dry else ("cuda", True))
            assert config.recipe in RECIPES and part.seconds > 0


def test_processes_are_as_many_as_gpus(ran, monkeypatch, tmp_path, capsys):
    ran("scaling")
    assert states(tmp_path)["scaling"] == "left out" and "there is one GPU" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    seen = []
    ran("scaling", codes={"scaling": lambda words: seen.append(words) or 0})
    assert states(tmp_path)["scaling"] == "passed" and seen[0][4:6] == ["4", "-m"]


def test_needs_come_first():
    names = list(parts.PARTS)
    for name, part in parts.PARTS.items():
        assert all(names.index(need) < names.index(name) for need in (*part.needs, *part.after)), name
        speed = name.endswith("-speed") or name.startswith("profile")
        assert not speed or any(need.startswith("verify") for need in part.needs)


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """ran(*parts, codes={part: codes of its slices}, **settings) -> (exit code, parts whose commands were started)."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "A GPU")
    monkeypatch.setattr(suite, "environment", lambda: {"device": "A GPU", "commit": "abc"})

    def run(*names, codes=None, **settings):
        started, slices = [], {n: c if callable(c) else list(c) for n, c in (codes or {}).items()}

        def run_slice(words, limit, **_):
            name = json.loads((tmp_path / "out" / "suite.json").read_text())["parts"]
            (name,) = (n for n, entry in name.items() if entry["state"] == "running")
            started.append(name)
            if callable(slices.get(name)):
                return slices[name](words)
            return slices[name].pop(0) if slices.get(name) else 0

        monkeypatch.setattr(running, "run_slice", run_slice)
        config = suite.Config(data_dir=tmp_path, out=tmp_path / "out", parts=names, **settings)
        return suite.main(config), started

    return run


def states(tmp_path):
    return {n: e["state"] for n, e in json.loads((tmp_path / "out" / "suite.json").read_text())["parts"].items()}


def test_parts_bring_what_they_need_and_are_not_repeated(ran):
    assert ran("kernel-speed") == (0, ["verify-kernels", "kernel-speed"])
    assert ran("kernel-speed", "step-speed") == (0, ["verify-steps", "step-speed"])
    assert ran("kernel-speed", again=True) == (0, ["verify-kernels", "kernel-speed"])


def test_what_passed_on_another_commit_or_device_has_not_passed(ran, monkeypatch, tmp_path):
    ran("verify-kernels")
    monkeypatch.setattr(suite, "environment", lambda: {"device": "A GPU", "commit": "def"})
    assert ran("check")[0] == 0
    assert re.search(r"\| verify-kernels \| passed .*\| commit abc \|", (tmp_path / "out" / "summary.md").read_text())
    assert ran("kernel-speed") == (0, ["verify-kernels", "kernel-speed"])
    monkeypatch.setattr(suite, "environment", lambda: {"device": "Another", "commit": "def"})
    assert ran("verify-kernels") == (0, ["verify-kernels"])


def test_a_failed_part_keeps_back_only_what_needs_it(ran, tmp_path, capsys):
    code, started = ran("kernel-speed", "step-speed", "check", codes={"verify-steps": [1]})
    assert code == 1
    assert started == [*(["check"] if "check" in COMMANDS else []), "verify-kernels", "verify-steps", "kernel-speed"]
    assert states(tmp_path)["step-speed"] == "left out" and "needs verify-steps: failed" in capsys.readouterr().out
    code, started = ran("step-speed", regardless=True, codes={"verify-steps": [1]})
    assert code == 1 and started == ["verify-steps", "step-speed"]
    assert "regardless: needs verify-steps: failed" in (tmp_path / "out" / "summary.md").read_text()


def test_a_stopped_training_goes_on_and_a_finished_one_is_left_alone(ran, tmp_path, monkeypatch):
    folder, stopped = tmp_path / "out" / "apart-30", running.STOPPED
    code, started = ran("apart-30", codes={"apart-30": [stopped, stopped]}, slices=2)
    assert code == stopped and started.count("apart-30") == 2 and states(tmp_path)["apart-30"] == "stopped"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    seen = []
    assert ran("apart-30", codes={"apart-30": lambda words: seen.append(words) or 0})[1] == ["apart-30"]
    assert seen == [["train.py", "--resume", str(folder), "--no-progress"]]
    (folder / "summary.json").write_text("{}")
    assert ran("apart-30", again=True)[1].count("apart-30") == 0 and states(tmp_path)["apart-30"] == "passed"
    monkeypatch.setattr(suite, "environment", lambda: {"device": "A GPU", "commit": "def"})
    ran("apart-30")
    entry = json.loads((tmp_path / "out" / "suite.json").read_text())["parts"]["apart-30"]
    assert entry["state"] == "passed" and entry["commit"] != "def"  # its figures are of then


def test_a_profile_of_another_commit_is_made_anew(ran, tmp_path, monkeypatch):
    kept = tmp_path / "out" / "profile-128" / "profile.json"

    def profile(_words):
        assert not kept.exists()
        kept.parent.mkdir()
        kept.write_text("{}")
        return 0

    def started():
        return ran("profile-128", codes={"profile-128": profile})[1].count("profile-128")

    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "data.json").write_text("{}")
    assert (started(), started()) == (1, 0)
    monkeypatch.setattr(suite, "environment", lambda: {"device": "A GPU", "commit": "def"})
    assert started() == 1
    assert json.loads((tmp_path / "out" / "suite.json").read_text())["parts"]["profile-128"]["commit"] == "def"


def test_one_that_ends_as_its_last_slice_is_stopped_has_ended(ran, tmp_path):
    folder = tmp_path / "out" / "apart-30"

    def ends(words):
        folder.mkdir()
        (folder / "summary.json").write_text("{}")
        return running.STOPPED

    assert ran("apart-30", codes={"apart-30": ends}, slices=1)[0] == 0
    assert states(tmp_path)["apart-30"] == "passed"


def test_a_signal_keeps_what_there_is(ran, tmp_path, capsys):
    code, started = ran("kernel-speed", codes={"verify-kernels": lambda words: signal.raise_signal(signal.SIGTERM)})
    assert code == 128 + signal.SIGTERM and started == ["verify-kernels"]
    assert states(tmp_path)["verify-kernels"] == "stopped" and "SIGTERM" in capsys.readouterr().out
    assert (tmp_path / "out" / "summary.md").is_file()


def test_the_most_valuable_parts_that_fit_the_budget_are_run(ran, tmp_path, capsys):
    names = list(parts.PARTS)
    chosen, out = plan.choose(names, 25 * 60, {name: part.seconds for name, part in parts.PARTS.items()})
    most = ["check", "verify-kernels", "verify-steps", "step-speed", "kernel-speed", "data", "profile-128", "apart-30"]
    assert chosen[:8] == most and set(out) == set(names) - set(chosen) and "long-pgd-10" in out
    assert sum(parts.PARTS[name].seconds for name in chosen) <= 25 * 60
    assert plan.choose(["verify-kernels", "kernel-speed"], 10, dict.fromkeys(names, 20))[1]["kernel-speed"] == (
        "needs verify-kernels"
    )
    code, started = ran(budget="4m")
    assert code == 0 and "verify-kernels" in started and "kernel-speed" not in started
    assert "kernel-speed" in capsys.readouterr().out and states(tmp_path)["kernel-speed"] == "left out"
    assert ran("verify-steps", budget="200")[1] == ["verify-steps"]


def test_the_list_needs_no_gpu(capsys):
    assert suite.main(suite.Config(list=True, budget="25m")) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in parts.PARTS) and "left out:" in shown and "Estimates" in shown


def test_estimates_count_passes():
    apart, pgd = (estimates.step(name, 50_000) for name in ("apart", "pgd-10"))
    assert pgd / apart == pytest.approx(23 / 5) and 2 < apart < 4
    assert estimates.PASS * 5 == pytest.approx(5.55e9) and estimates.PASS * 23 == pytest.approx(25.6e9, rel=0.01)
    assert [estimates.parse_duration(text) for text in ("25m", "90s", "2h", "1500")] == [1500, 90, 7200, 1500]


@pytest.mark.parametrize(
    "settings, said",
    [
        (dict(parts=("kernel-sped",)), "no part kernel-sped"),
        (dict(slices=0), "--slices 0"),
        (dict(budget="soon"), "--budget soon"),
        (dict(budget="-5"), "--budget -5"),
        (dict(), "torch sees no GPU"),
        (dict(dry=True), "give --out"),
    ],
)
def test_bad_input_is_told_in_one_line(monkeypatch, settings, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=said) as raised:
        suite.main(suite.Config(**settings))
    assert "\n" not in str(raised.value)


def test_what_is_lacking_is_told_before_anything_is_imported():
    code = "import sys; sys.modules['tyro'] = None; import runpy; runpy.run_path(sys.argv[1], run_name='__main__')"
    words = [sys.executable, "-c", code, str(parts.ROOT / "benchmarks" / "gpu_suite.py")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "this Python lacks tyro" in done.stderr and len(done.stderr.splitlines()) == 1


# ---- one command


@pytest.mark.parametrize(
    "code, ended",
    [
        ("raise SystemExit(3)", 3),
        ("import time; time.sleep(60)", running.STOPPED),
        ("import signal, time; signal.signal(15, lambda *_: exit(0)); time.sleep(60)", 0),
        ("import signal, time; signal.signal(15, lambda *_: exit(4)); time.sleep(60)", 4),
        ("import signal, time; signal.signal(15, lambda *_: exit(143)); time.sleep(60)", running.STOPPED),
        ("import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)", running.STOPPED),
    ],
    ids=["ends", "is stopped", "ends as it is stopped", "fails as it is stopped", "checkpoint", "does not listen"],
)
def test_a_slice(monkeypatch, code, ended):
    monkeypatch.setattr(running, "GRACE", 2.0)
    assert running.run_slice(["-c", code], 2.0) == ended


def test_pytest_leaves_what_it_has(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # or its benchmarks would be left out
    file = tmp_path / "test_two.py"
    file.write_text("import time\ndef test_a(benchmark): benchmark.pedantic(int)\ndef test_b(): time.sleep(60)\n")
    report, figures = tmp_path / "two.xml", tmp_path / "two.json"
    words = ["-m", "pytest", str(file), f"--junitxml={report}", f"--benchmark-json={figures}"]
    assert running.run_slice(words, 8.0, interrupts=True) == running.STOPPED
    assert 'name="test_a"' in report.read_text()
    assert [entry["name"] for entry in json.loads(figures.read_text())["benchmarks"]] == ["test_a"]


def test_only_whole_files_are_taken_over(tmp_path):
    place, part = parts.Place(tmp_path, tmp_path), parts.PARTS["step-speed"]
    running.forget_pending(place)
    (tmp_path / "step-speed.json").write_text('{"old": 1}')
    (tmp_path / parts.PENDING / "step-speed.json").write_text('{"half": ')
    (tmp_path / parts.PENDING / "step-speed.md").write_text("")
    assert running.take_over(part, place) == [] and summary.read(tmp_path / "step-speed.json") == {"old": 1}
    (tmp_path / parts.PENDING / "step-speed.json").write_text('{"new": 1}')
    assert running.take_over(part, place) == ["step-speed.json"]
    assert summary.read(tmp_path / "step-speed.json") == {"new": 1}


# ---- the page


def test_a_page_of_damaged_files_is_a_page(tmp_path):
    assert "Nothing yet." in summary.write(tmp_path).read_text()
    (tmp_path / "apart-30").mkdir()
    (tmp_path / "profile-128").mkdir()
    for name in ("suite", "check", "step-speed", "apart-30/config", "apart-30/summary", "profile-128/profile"):
        (tmp_path / f"{name}.json").write_text('{"parts": 1, "benchmarks": [1], "checks": [')
    (tmp_path / "verify-steps.xml").write_text("<testsuite")
    (tmp_path / "kernel-speed.json").write_text('{"benchmarks": [{"group": 1}]}')
    text = summary.write(tmp_path).read_text()
    assert all(f"## {title}" in text for title in summary.SECTIONS) and "Cannot be read" in text and "damaged" in text


def test_failed_verifications_are_named(tmp_path):
    (tmp_path / "verify-steps.xml").write_text(
        '<testsuites><testsuite tests="4" failures="1" errors="0" skipped="1" time="2.5">'
        '<testcase classname="tests.a" name="b"><failure message="2 is&#10;not 3"/></testcase></testsuite></testsuites>'
    )
    text = summary.write(tmp_path).read_text()
    assert "| verify-steps | 2 | 1 | 1 | 2 |" in text and "- tests.a::b: 2 is not 3" in text


# ---- the dry pass


def test_a_dry_pass_starts_every_part_and_its_page_is_complete(monkeypatch, tmp_path):
    real, out = running.run_slice, tmp_path / "out"

    def run_slice(words, limit, **options):
        entries = json.loads((out / "suite.json").read_text())["parts"]
        (name,) = (n for n, entry in entries.items() if entry["state"] == "running")
        if name in REAL:
            return real(words, limit, **options)
        config = parse(words, name, out)
        if isinstance(config, TrainConfig):  # what is parsed only leaves what its figures are read from
            config.out.mkdir()
            (config.out / "config.json").write_text(json.dumps({"profile": config.profile}))
            kept = parts.ROOT / "benchmarks" / "results" / "cpu-intel-xeon-2-cores-float32-profile.json"
            text = kept.read_text() if config.profile else json.dumps(PASSED_SUMMARY)
            (config.out / ("profile.json" if config.profile else "summary.json")).write_text(text)
            if name == "strong":  # judged for real
                os.symlink(out / "apart-30" / "best.pt", config.out / "best.pt")
        if name == "scaling":
            rates = {"rank 0 alone": 100.0, "all, one flat all-reduce": 190.0}
            told = {"ranks": 2, "batch": 4, "images_per_second": rates}
            told["silent_over"] = {"all, one flat all-reduce": {"median": 0.95}}
            config.out.write_text(json.dumps(told))
        if name == "check":
            line = {"what": "start", "verdict": "ok", "text": "largest error 0", "data": {}}
            options["prints"].write_text(json.dumps({"right": True, "checks": {"kernels": [line]}}))
        return 0

    monkeypatch.setattr(running, "run_slice", run_slice)
    monkeypatch.chdir(tmp_path)
    assert guarded(lambda: gpu_suite.main(gpu_suite.Config(dry=True, out=out))) == 0
    absent = {name for name, part in parts.PARTS.items() if part.absent(parts.Place(tmp_path, out, dry=True))}
    assert {name for name, state in states(tmp_path).items() if state != "passed"} == absent
    assert len(states(tmp_path)) == len(parts.PARTS) and absent <= {"check"}
    text = (out / "summary.md").read_text()
    assert "Cannot be read" not in text and "damaged" not in text and text.count("Nothing yet.") == len(absent)
    short = text.partition("## In short")[2].partition("##")[0].splitlines()
    dashes = {line.split("|")[1].strip() for line in short if "| -" in line and "---" not in line}
    assert dashes <= {"APART step faster than the released step in bfloat16", *(["checks"] if absent else [])}
    assert "| apart, batch 128, float32 |" in text and "| strong | pgd-20 |" in text and "| verify-kernels |" in text
    assert "| all, one flat all-reduce | 190 | 1.90 | 5.0% |" in text
