"""A run, or several side by side, as one HTML file that needs nothing else: `apart-fast report`."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from apart_fast.errors import UserError
from apart_fast.files import atomic_write
from apart_fast.report.page import render
from apart_fast.report.settings import ReportConfig
from apart_fast.runs.json_files import reading
from apart_fast.runs.outputs import PAGE, check_output
from apart_fast.runs.reading import read_runs

READ = ("config.json", "summary.json", "metrics.jsonl", "environment.json", "evaluation.json", "card.json")


def write_report(folders: Sequence[Path], out: Path) -> Path:
    """Write the page of the runs in `folders` to `out`, replacing it; returns `out`.

    Raises:
        UserError: no runs, one of them twice, not a run, unfinished or damaged, a link in the place of a file, or `out`
            cannot be written, or is not a report.
    """
    for path, count in Counter(folder.resolve() for folder in folders).items():
        if count > 1:
            raise UserError(f"{path} is named {count} times: name each run once")
    for folder in folders:
        for name in READ:
            _refuse_link(folder / name)
    page = render(read_runs(folders)).encode(errors="replace")  # a folder's name may hold bytes that are no text
    check_output(out, PAGE)
    atomic_write(out, page)
    return out


def _refuse_link(path: Path) -> None:
    """A page is made to be sent: what lies elsewhere is not meant.

    Raises:
        UserError: a link that leads out of the folder.
    """
    with reading(path):
        if path.is_symlink() and not path.resolve().is_relative_to(path.parent.resolve()):
            raise UserError(
                f"{path} is a link to elsewhere, and a report shows only what lies in the run: put a copy there"
            )


def run(config: ReportConfig) -> None:
    """`apart-fast report`.

    Raises:
        UserError: see `write_report`, or several runs without `out`.
    """
    if config.out is None and len(config.runs) > 1:
        raise UserError("a report of several runs belongs to none of them: say where it goes, --out report.html")
    out = config.out or Path(*config.runs[:1]) / "report.html"
    print(f"report: {write_report(config.runs, out)}")
