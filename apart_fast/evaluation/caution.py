"""When a figure is no measure of robustness, in words: the attack had no gradient to go by.

Reports are dictionaries (`asdict` of a `Report`, or read from JSON, where anything may lie; older ones have no counts).
"""

from collections.abc import Mapping


def _count(source: object, key: str) -> int:
    value = source.get(key) if isinstance(source, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def mark(result: object) -> str:
    """Words beside the figure of an attack (an `AttackResult` as a dictionary); empty where it can be trusted."""
    infinite, zero, stand = (_count(result, key) for key in ("gradient_not_finite", "gradient_zero", "correct"))
    kinds = [f"{n} {kind}" for n, kind in ((infinite, "not finite"), (zero, "all zero")) if n]
    if not kinds:
        return ""
    return f"no measure of robustness: of {stand} images that stand, {infinite + zero} had no gradient to follow" + (
        f" ({', '.join(kinds)})"
    )


def cautions(report: object) -> list[str]:
    """A line for each figure of a report that must not be quoted as it is, and one for logits that are NaN."""
    attacks = report.get("attacks") if isinstance(report, Mapping) else None
    found = {name: mark(result) for name, result in attacks.items()} if isinstance(attacks, Mapping) else {}
    lines = [f"{name}: {words}" for name, words in found.items() if words]
    if nan := _count(report, "logits_nan"):
        lines.append(f"logits are NaN for {nan} of {_count(report, 'n')} images, which count as wrong")
    return lines
