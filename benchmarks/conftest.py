"""How a comparison is recorded: seconds go to pytest-benchmark, ratios to its `extra_info` and to the table at the end.

With `--benchmark-json FILE.json` the table is written to FILE.md beside it.
"""

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from apart_fast.device import keep_freed_memory, pick_device
from apart_fast.measure.interleave import Spread, Timings
from apart_fast.runs.environment import environment
from apart_fast.training.algorithms import algorithms

HEAD = ("what", "seconds", "faster than", "times [quartiles]", "ceiling", "share", "target")


@dataclass(frozen=True)
class Rival:
    """How often `what` is done while `name` is done once.

    ceiling: the largest ratio that the arithmetic allows; target: the least ratio aimed at.
    """

    name: str
    ceiling: float | None = None
    target: float | None = None


class _Replay:
    """Hands seconds that were measured before to pytest-benchmark: a clock that `run` moves on."""

    def __init__(self, seconds: list[float]):
        self._left, self._now = list(seconds), 0.0

    def clock(self) -> float:
        return self._now

    def run(self) -> None:
        self._now += self._left.pop(0)


ROWS = pytest.StashKey[dict[str, list[tuple[str, ...]]]]()  # group -> rows
ABOUT = pytest.StashKey[dict[str, str | int]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = {}
    keep_freed_memory()  # as in training, and for all rivals alike


@pytest.fixture(scope="session", autouse=True)
def onednn() -> Iterator[None]:
    """Measured as it is in real runs (the conftest of the tests switches it off)."""
    before = torch.backends.mkldnn.set_flags(True)
    yield
    torch.backends.mkldnn.set_flags(*before)


@pytest.fixture(scope="session", autouse=True)
def as_in_training() -> Iterator[None]:
    """On a GPU cuDNN searches for the quickest algorithms, for all rivals alike."""
    with algorithms(pick_device(None), deterministic=False):
        yield


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[..., list[Spread]]:
    """record(timings, name, *rivals, group=..., note=...): a row of pytest-benchmark, one of the table for each rival.

    pytest-benchmark times one function after another, so it cannot take turns; it is given the seconds of the rounds
    that `interleave` measured.
    """

    def record(timings: Timings, name: str, *rivals: Rival, group: str, note: str = "") -> list[Spread]:
        replay = _Replay(timings.seconds[name])
        request.node.add_marker(pytest.mark.benchmark(timer=replay.clock, group=group))
        benchmark = request.getfixturevalue("benchmark")
        spreads = [timings.ratio(rival.name, name) for rival in rivals]
        benchmark.extra_info["ratios"] = [
            {"compared with": r.name, **asdict(s), "ceiling": r.ceiling, "target": r.target}
            for r, s in zip(rivals, spreads, strict=True)
        ]
        if not benchmark.disabled:
            benchmark.pedantic(replay.run, rounds=len(timings.seconds[name]))
        seconds = f"{timings.median(name):.4g}"
        what = f"{name}, {note}" if note else name
        rows = [_row(what, seconds, r, s) for r, s in zip(rivals, spreads, strict=True)]
        request.config.stash[ROWS].setdefault(group, []).extend(rows or [(what, seconds, *[""] * 5)])
        return spreads

    return record


def _row(what: str, seconds: str, rival: Rival, ratio: Spread) -> tuple[str, ...]:
    ceiling = share = target = ""
    if rival.ceiling is not None:
        ceiling, share = f"{rival.ceiling:.3g}", f"{ratio.median / rival.ceiling:.0%}"
    if rival.target is not None:
        target = f"{rival.target:.3g} {'met' if ratio.median >= rival.target else 'MISSED'}"
    return what, seconds, rival.name, str(ratio), ceiling, share, target


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.pop("release", None)  # the kernel's build says nothing about speed
    machine_info.pop("node", None)


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    output_json["environment"] = _environment(config)


def _environment(config: pytest.Config) -> dict[str, str | int]:
    """Machine, versions and command (pytest-benchmark compares its `machine_info`, where the command must not be), as
    they are before a file is written, which would make the commit one with changes."""
    if ABOUT in config.stash:
        return config.stash[ABOUT]
    versions = {name: _version(name) for name in ("triton", "ffcv", "pytest-benchmark")}
    about = environment() | versions | {"vector unit": torch.backends.cpu.get_cpu_capability()}
    about |= {
        "system": f"{platform.system()} {platform.machine()}",
        "command": " ".join(["python -m pytest", *config.invocation_params.args]),
    }
    config.stash[ABOUT] = {name: value for name, value in about.items() if value is not None}
    return config.stash[ABOUT]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    groups = config.stash[ROWS]
    if not groups:
        return
    lines = []
    for group, rows in groups.items():
        lines += ["", f"## {group}", "", *_table(rows)]
    terminalreporter.section("comparisons (seconds: median of a call)")
    for line in lines:
        terminalreporter.write_line(line)
    output = config.getoption("benchmark_json", None)
    if output is not None:
        notes = [f"- {name}: {value}" for name, value in _environment(config).items()]
        path = (output if isinstance(output, Path) else Path(output.name)).with_suffix(".md")
        path.write_text("\n".join([f"# {path.stem}", "", *notes, *lines, ""]))
        terminalreporter.write_line(f"written to {path}")


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in (HEAD, *rows)) for i in range(len(HEAD))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return [line(HEAD), line(["-" * width for width in widths]), *map(line, rows)]
