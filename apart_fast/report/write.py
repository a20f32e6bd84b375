"""A run, or several side by side, as one HTML file that needs nothing else: `apart-fast report`."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from apart_fast.errors import UserError
from apart_fast.files import atomic_write
from apart_fast.report.page import render
from apart_fast.report.settings import ReportConfig
from apart_fast.runs.reading import read_runs


def write_report(folders: Sequence[Path], out: Path) -> Path:
    """Write the page of the runs in `folders` to `out`, replacing it; returns `out`.

    Raises:
        UserError: no runs, one of them twice, not a run, unfinished or damaged, or `out` cannot be written.
    """
    for path, count in Counter(folder.resolve() for folder in folders).items():
        if count > 1:
            raise UserError(f"{path} is named {count} times: name each run once")
    # a folder's name may hold bytes that are no text
    atomic_write(out, render(read_runs(folders)).encode(errors="replace"))
    return out


def run(config: ReportConfig) -> None:
    """`apart-fast report`.

    Raises:
        UserError: see `write_report`, or several runs without `out`.
    """
    if config.out is None and len(config.runs) > 1:
        raise UserError("a report of several runs belongs to none of them: say where it goes, --out report.html")
    out = config.out or Path(*config.runs[:1]) / "report.html"
    print(f"report: {write_report(config.runs, out)}")
