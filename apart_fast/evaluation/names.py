"""Names of attacks, and how much may be asked of them; no torch, so that a wrong one is told at once."""

import difflib
import re
from collections.abc import Sequence
from importlib.util import find_spec

from apart_fast.errors import UserError

MOST_STEPS = 100_000  # for an image, over all restarts: a hundred times what the literature calls a strong attack
ATTACKS = {"clean": False, "fgsm": False, "pgd": True, "autoattack": False}  # name -> has a number of steps, "name-K"

_TOO_MANY = re.compile("[1-9][0-9]{6,}")  # more digits than int() may like


def parse_attack(name: str) -> tuple[str, int | None]:
    """(attack, its number of steps) of "clean", "fgsm", "pgd-K" with K steps, or "autoattack".

    Raises:
        UserError: unknown name, or a number of steps that is missing, not wanted, not positive or out of proportion.
    """
    base, dash, number = str(name).partition("-")
    if base not in ATTACKS:
        close = difflib.get_close_matches(base, ATTACKS, n=1)
        hint = f"did you mean {close[0]}?" if close else "known: clean, fgsm, pgd-K, autoattack"
        raise UserError(f"unknown attack {name!r}: {hint}")
    if not ATTACKS[base]:
        if dash:
            raise UserError(f"attack {name!r}: {base} takes no number of steps")
        return base, None
    if _TOO_MANY.fullmatch(number):
        raise UserError(f"attack {name[:24]!r} would not end: give at most {base}-{MOST_STEPS}")
    if not re.fullmatch("[1-9][0-9]*", number):
        raise UserError(f"attack {name!r}: write the number of steps like {base}-20")
    return base, int(number)


def parse_attacks(names: Sequence[str], restarts: int) -> dict[str, tuple[str, int | None]]:
    """`parse_attack` of each name.

    Raises:
        UserError: see there; no name at all, more steps in all restarts than would ever end, or AutoAttack's package is
            not installed.
    """
    if isinstance(names, str):
        raise UserError(f"attacks {names!r} is text: give a list of names, such as ({names!r},)")
    parsed = {name: parse_attack(name) for name in names}
    if not parsed:
        raise UserError("no attack is given: name some of clean, fgsm, pgd-K, autoattack")
    for name, (_, steps) in parsed.items():
        if (steps or 0) * restarts > MOST_STEPS:
            raise UserError(
                f"attack {name!r} is {(steps or 0) * restarts:,} steps for each image ({restarts:,} random starts): "
                f"give at most {MOST_STEPS:,} in all"
            )
    if "autoattack" in parsed and find_spec("pyautoattack") is None:  # not after hours of other attacks
        raise UserError("AutoAttack needs the package pyautoattack: pip install 'apart_fast[autoattack]'")
    return parsed
