"""The command line and the package's names: what is imported when, and how a command ends."""

import ast
import errno
import json
import subprocess
import sys
from dataclasses import asdict
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest
import torch

import apart_fast
from apart_fast.cli import guarded, main
from apart_fast.commands.table import COMMANDS, Command
from apart_fast.errors import Stopped, UserError
from apart_fast.runs import checkpoint
from apart_fast.runs.begin import find_checkpoint
from apart_fast.runs.config import TrainConfig

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "torchvision", "triton", "matplotlib", "tensorboard", "numpy", "scipy", "PIL", "ffcv", "jinja2"}
# runs `what` with the words that follow, then says which modules were imported
PROBE = """
import runpy, sys
what, out, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = what
code = 0
try:
    if what.endswith(".py"):
        runpy.run_path(what, run_name="__main__")
    else:
        exec(what)
except SystemExit as end:
    code = end.code
with open(out, "w") as file:
    print(code, *sys.modules, file=file)
"""
APART_FAST = "from apart_fast.cli import main; main()"
TRAIN = "train.py"


def probe(folder, what, *words):
    """(exit code, top-level modules imported, stderr) of a new process."""
    out = folder / "modules.txt"
    command = [sys.executable, "-c", PROBE, what, str(out), *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    code, *modules = out.read_text().split()
    return int(code), {module.partition(".")[0] for module in modules}, done.stderr


def leaves(table=COMMANDS):
    for name, entry in table.items():
        yield from [(name, entry)] if isinstance(entry, Command) else leaves(entry.commands)


@pytest.mark.parametrize("what", [TRAIN, APART_FAST])
def test_help_waits_for_nothing_heavy(tmp_path, what):
    commands = [[], ["train"], ["evaluate"], ["export"], ["analyze", "curves"], ["report"], ["demo"]]
    words = [[]] if what == TRAIN else commands
    for command in words:
        code, modules, _ = probe(tmp_path, what, *command, "--help")
        assert code == 0 and not modules & HEAVY, command


@pytest.mark.parametrize(
    "what, words",
    [
        (TRAIN, ["--epohcs", "3"]),
        (TRAIN, ["--recipe", "papper"]),
        (APART_FAST, ["demo", "--loader", "quick"]),
        (APART_FAST, []),
    ],
)
def test_a_wrong_word_is_told_at_once(tmp_path, what, words):
    code, modules, error = probe(tmp_path, what, *words)
    assert code == 2 and not modules & HEAVY and error


@pytest.mark.parametrize(
    "what, words, line",
    [
        (TRAIN, ["--resume", "nosuch"], "no run in nosuch"),
        (TRAIN, ["--out", "{run}"], "already holds a run"),
        (TRAIN, ["--out", "~nosuchuser/x"], "no home folder is known for ~nosuchuser"),
        (TRAIN, ["--resume", ""], "--resume has an empty value"),
        (TRAIN, ["--epochs", "0"], "--epochs 0 is too small"),
        (TRAIN, ["--eps", "8"], "did you mean 8/255"),
        (TRAIN, ["--method", "apartt"], "did you mean apart"),
        (APART_FAST, ["train", "--resume", "{run}", "--epochs", "9"], "leave out --epochs"),
        (APART_FAST, ["evaluate", "nosuch.pt"], "no checkpoint at nosuch.pt"),
        (APART_FAST, ["evaluate", "nosuch.pt", "--images", "0"], "--images 0 is too small"),
        (APART_FAST, ["export", "nosuch", "--to", "onnx"], "nothing at nosuch"),
        (APART_FAST, ["predict", "nosuch", "a.png"], "nothing at nosuch"),
        (APART_FAST, ["report", "nosuch"], "no run in nosuch"),
        (APART_FAST, ["report", "{run}"], "is not finished"),
        (APART_FAST, ["analyze", "curves", "nosuch"], "no run in nosuch"),
        (APART_FAST, ["analyze", "gradients", "{run}"], "is not finished"),
        (APART_FAST, ["analyze", "perturbations", "nosuch"], "no run in nosuch"),
        (APART_FAST, ["analyze", "collapse", "{done}", "--reference", "nosuch"], "no run in nosuch"),
    ],
)
def test_a_wrong_path_or_value_is_told_at_once(tmp_path, what, words, line):
    for name in ("run", "done"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(asdict(TrainConfig()), default=str))
    (tmp_path / "done" / "summary.json").write_text("{}")
    words = [word.format(run=tmp_path / "run", done=tmp_path / "done") for word in words]
    code, modules, error = probe(tmp_path, what, *words)
    assert code == 2 and not modules & HEAVY
    assert error.startswith("error: ") and line in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "words, line",
    [
        (["train", "--out", ""], "--out has an empty value"),
        (["train", "--epochs", "1", "--data-dir="], "--data-dir has an empty value"),
        (["evaluate", ""], "one of the words is empty"),
        (["report", "--out", "x.html", ""], "an empty value"),
        (["analyze", "collapse", "--reference=", "x"], "--reference has an empty value"),
        (["demo", "--out", ""], "--out has an empty value"),
        (["check", "--data-dir", ""], "--data-dir has an empty value"),
    ],
)
def test_empty_words_are_refused(capsys, words, line):
    """An unset shell variable: the path would be the working directory."""
    with pytest.raises(SystemExit) as end:
        main(words)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith("error: ") and line in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--resume", "~/x"],
        ["train", "--out=~/here"],
        ["evaluate", "~/x.pt"],
        ["report", "~/x"],
        ["analyze", "curves", "~/x"],
        ["analyze", "perturbations", "~/x"],
        ["check", "--data-dir", "~/x"],
        ["demo", "--out", "~/here"],
    ],
)
def test_every_path_expands(capsys, monkeypatch, tmp_path, words):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "config.json").write_text("{}")
    with pytest.raises(SystemExit) as end:
        main(words)
    error = capsys.readouterr().err
    assert end.value.code == 2 and f"{tmp_path}/" in error and "~" not in error and error.count("\n") == 1


@pytest.mark.parametrize("name, command", list(leaves()))
def test_every_command_runs_with_its_settings(name, command):
    module, _, function = command.run.partition(":")
    (parameter,) = signature(getattr(import_module(module), function)).parameters.values()
    assert parameter.annotation is command.settings


def test_a_missing_checkpoint_has_one_line(tmp_path):
    lines = set()
    for find in (find_checkpoint, checkpoint.load):
        with pytest.raises(UserError) as error:
            find(tmp_path / "nosuch.pt")
        lines.add(str(error.value))
    assert len(lines) == 1


@pytest.mark.parametrize(
    "error, code, line",
    [
        (UserError("too small: give more"), 2, "error: too small: give more\n"),
        (Stopped(15, Path("runs/a")), 143, "stopped by SIGTERM; go on with --resume runs/a\n"),
        (KeyboardInterrupt(), 130, "stopped by SIGINT\n"),
        (PermissionError(errno.EACCES, "Permission denied", "data"), 2, "error: data: Permission denied\n"),
        (OSError(errno.ENOSPC, "full"), 2, "no space left"),
        (torch.OutOfMemoryError("40 GiB\nand more"), 2, "out of GPU memory (40 GiB): lower the batch size\n"),
        (MemoryError(), 2, "error: out of memory (nothing is left): lower the batch size\n"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "error: out of memory (DefaultCPUAllocator"),
    ],
)
def test_how_a_command_ends(capsys, error, code, line):
    def command():
        raise error

    assert guarded(command) == code
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), RuntimeError("a bug"), ValueError("a bug")])
def test_other_errors_are_not_hidden(error):
    def command():
        raise error

    with pytest.raises(type(error)):
        guarded(command)


# ---- the names of the package


def test_the_package_imports_nothing_heavy_until_it_is_used(tmp_path):
    code, modules, _ = probe(tmp_path, "import apart_fast; dir(apart_fast); apart_fast.parse_eps; apart_fast.METHODS")
    assert code == 0 and not modules & HEAVY


def test_every_name_is_there():
    space = {}
    exec("from apart_fast import *", space)
    assert set(apart_fast.__all__) <= space.keys() and set(apart_fast.__all__) <= set(dir(apart_fast))
    assert all(space[name] is getattr(apart_fast, name) for name in apart_fast.__all__)
    with pytest.raises(AttributeError, match="no attribute 'apart'"):
        apart_fast.apart  # noqa: B018
    with pytest.raises(ImportError):
        exec("from apart_fast import Aparrt")


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(apart_fast.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {name.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert set(seen) == set(apart_fast.__all__)
    assert all(getattr(apart_fast, name) is getattr(import_module(module), name) for name, module in seen.items())


def test_the_version_is_that_of_the_installation():
    assert json.dumps(apart_fast.__version__) and apart_fast.__version__[0].isdigit()
