"""What a check finds: lines with a verdict."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from apart_fast.errors import UserError

Verdict = Literal["ok", "differs", "fails", "missing", "not run", "use", "leave out"]
WRONG: tuple[Verdict, ...] = ("differs", "fails")  # these make the exit code 1


@dataclass(frozen=True)
class Line:
    """One finding.

    Attributes:
        what: what was looked at.
        verdict: ok; differs (it ran, and gave something else); fails (it raised); missing (and what brings it); not
            run (and why); for flags use or leave out.
        text: one line more for people.
        data: the numbers behind it, for `--json`.
    """

    what: str
    verdict: Verdict
    text: str = ""
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Given:
    """What every check is given.

    Attributes:
        device: to check.
        quick: fewer shapes, and no measurements.
        data_dir: a folder of data, or None.
        folder: temporary, to write to.
        found: lines of the checks that ran before, by name of the check.
        cache_dir: where files derived from the data go, or None.
    """

    device: torch.device
    quick: bool
    data_dir: Path | None
    folder: Path
    found: dict[str, list[Line]] = field(default_factory=dict)
    cache_dir: Path | None = None

    def line(self, check: str, what: str) -> Line | None:
        """The line `what` of a check that ran before."""
        return next((line for line in self.found.get(check, []) if line.what == what), None)


Check = Callable[[Given], list[Line]]


def first_line(error: BaseException) -> str:
    """Kind and first line of an error; of bad input only the line."""
    lines = str(error).strip().splitlines()
    kind = "" if isinstance(error, UserError) and lines else type(error).__name__
    return ": ".join(part for part in (kind, lines[0] if lines else "") if part)


def attempt(what: str, look: Callable[[], Line]) -> Line:
    """The line that `look` gives; if it raises, that is what is said of `what`."""
    try:
        return look()
    except Exception as error:  # whatever this machine lacks
        return Line(what, "fails", first_line(error))


def judged(what: str, right: bool, text: str, **data: Any) -> Line:
    """ok or differs."""
    return Line(what, "ok" if right else "differs", text, data)
