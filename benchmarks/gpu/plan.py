"""Which parts are run: those that were named and what they need, as far as they fit the time; the rest is named too."""

from collections.abc import Iterable, Mapping

from apart_fast.errors import UserError
from benchmarks.gpu.estimates import clock
from benchmarks.gpu.parts import PARTS


def with_needs(names: Iterable[str], passed: set[str]) -> list[str]:
    """The parts and what they need and have not got, in the order of the table.

    Raises:
        UserError: no such part.
    """
    wanted = set(names)
    if unknown := sorted(wanted - PARTS.keys()):
        raise UserError(f"no part {', '.join(unknown)}: choose from {', '.join(PARTS)}")
    before: set[str] = set()
    while wanted != before:
        before = set(wanted)
        for name in before:
            part = PARTS[name]
            wanted |= {need for need in (*part.needs, *part.after) if need not in passed}
    return [name for name in PARTS if name in wanted]


def choose(names: list[str], budget: float, seconds: Mapping[str, float]) -> tuple[list[str], dict[str, str]]:
    """The most valuable of `names` that fit.

    Args:
        names: in the order of their value; what a part needs comes before it, or has passed.
        budget: seconds; `seconds`: estimates.

    Returns those chosen and, for the others, why they are left out.
    """
    chosen: list[str] = []
    out: dict[str, str] = {}
    left = budget
    for name in names:
        lacking = [need for need in PARTS[name].needs if need in out]
        if lacking:
            out[name] = f"needs {lacking[0]}"
        elif seconds[name] > left:
            out[name] = f"would take {clock(seconds[name])}, {clock(left)} left"
        else:
            chosen.append(name)
            left -= seconds[name]
    return chosen, out


def obstacle(name: str, states: Mapping[str, str]) -> str | None:
    """Why a part must not run now: what it needs has not passed."""
    for need in PARTS[name].needs:
        state = states.get(need, "not run")
        if state != "passed":
            return f"needs {need}, which is {state}" if state == "not run" else f"needs {need}: {state}"
    return None
