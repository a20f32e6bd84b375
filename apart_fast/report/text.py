"""Numbers as a reader likes them."""

from collections.abc import Mapping

NOTHING = "–"


def number(source: Mapping, *keys: str) -> float | None:
    """The number under nested keys; None where there is none."""
    value: object = source
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def duration(seconds: float) -> str:
    """Such as 0.4 s, 32 s, 17 min 8 s, 3 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    minutes, hours = seconds // 60, round(seconds / 60) // 60
    if minutes == 0:
        return f"{seconds} s"
    if minutes < 60:
        return f"{minutes} min {seconds % 60} s"
    return f"{hours} h {round(seconds / 60) % 60} min"


def scaled(value: float, unit: str) -> str:
    """With a decimal prefix: 115.2 MB, 3.2 kJ."""
    for prefix in ("", "k", "M", "G", "T"):
        if value < 1000 or prefix == "T":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if not prefix else f"{value:.1f} {prefix}{unit}"


def count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def plain(value: object) -> str:
    """A value of a JSON file or a setting, short."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or "none"
    return str(value)
