"""What was found, as a page for people and as data."""

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from apart_fast.check.lines import WRONG, Line

TITLES = {
    "versions": "Versions and devices",
    "packages": "Packages",
    "kernels": "Kernels against their twins",
    "step": "One training step",
    "resume": "Resuming",
    "loaders": "Loaders",
    "data": "Data",
    "speed": "Measured",
    "flags": "Flags for this machine",
}
NARROW, WIDE = 80, 120  # characters in a line


def wrong(found: dict[str, list[Line]]) -> list[str]:
    """What is not as it should be, as "check: line"."""
    return [f"{name}: {line.what}" for name, lines in found.items() for line in lines if line.verdict in WRONG]


def page(found: dict[str, list[Line]]) -> str:
    """Aligned text: what, verdict, and a word on it."""
    sections = {
        TITLES.get(name, name): [(line.what, line.verdict, line.text) for line in lines]
        for name, lines in found.items()
    }
    faults = wrong(found)
    end = "All that was run is right." if not faults else f"Wrong: {'; '.join(faults)}."
    return "\n".join([*columns(sections), *textwrap.wrap(end, page_width())])


def page_width() -> int:
    """Characters in a line of this terminal, within bounds."""
    return min(max(shutil.get_terminal_size((WIDE, 0)).columns, NARROW), WIDE)


def columns(sections: Mapping[str, Sequence[tuple[str, str, str]]]) -> list[str]:
    """Lines of aligned text: under each title its rows of two words and a folded text, then an empty line."""
    rows = [row for section in sections.values() for row in section]
    first, second = (max((len(row[i]) for row in rows), default=0) for i in (0, 1))
    lines = []
    for title, section in sections.items():
        lines += [title]
        for what, word, text in section:
            head = f"  {what:{first}}  {word:{second}}  "
            folded = textwrap.wrap(text, page_width() - len(head)) or [""]
            lines += [f"{head}{folded[0]}".rstrip(), *(" " * len(head) + more for more in folded[1:])]
        lines += [""]
    return lines


def as_data(found: dict[str, list[Line]]) -> dict[str, Any]:
    """The same for programs: `right`, and for each check its lines with what, verdict, text and the numbers."""
    return {
        "right": not wrong(found),
        "checks": {name: [vars(line) for line in lines] for name, lines in found.items()},
    }
