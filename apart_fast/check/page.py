"""What was found, as a page for people and as data."""

import shutil
import textwrap
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
    lines = [line for section in found.values() for line in section]
    first = max((len(line.what) for line in lines), default=0)
    second = max((len(line.verdict) for line in lines), default=0)
    width = min(max(shutil.get_terminal_size((WIDE, 0)).columns, NARROW), WIDE)
    rows = []
    for name, section in found.items():
        rows += [TITLES.get(name, name)]
        for line in section:
            head = f"  {line.what:{first}}  {line.verdict:{second}}  "
            folded = textwrap.wrap(line.text, width - len(head)) or [""]
            rows += [f"{head}{folded[0]}".rstrip(), *(" " * len(head) + more for more in folded[1:])]
        rows += [""]
    faults = wrong(found)
    rows += textwrap.wrap("All that was run is right." if not faults else f"Wrong: {'; '.join(faults)}.", width)
    return "\n".join(rows)


def as_data(found: dict[str, list[Line]]) -> dict[str, Any]:
    """The same for programs: `right`, and for each check its lines with what, verdict, text and the numbers."""
    return {
        "right": not wrong(found),
        "checks": {name: [vars(line) for line in lines] for name, lines in found.items()},
    }
