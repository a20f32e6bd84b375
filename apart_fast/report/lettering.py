"""Names in pictures: any text is drawn as it is, in a font that has its letters where the system has one."""

import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

LONGEST, LONGEST_LABEL = 40, 90  # letters of a name, of a label in a key
_SLANTED = ("bold", "italic", "oblique", "light", "thin", "black", "medium")


def drawn(name: str, longest: int = LONGEST) -> str:
    """What matplotlib is given to draw for a name of the user's: no formulas, no control characters, not endless."""
    text = "".join(_letter(letter) for letter in name)
    if len(text) > longest:
        text = f"{text[: longest - 9]}…{text[-8:]}"
    # matplotlib takes text between two dollars for a formula, and a label that begins with _ for none
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def _letter(letter: str) -> str:
    kind = unicodedata.category(letter)
    if kind in ("Cs", "Cn", "Co"):  # a byte that is not UTF-8 becomes a surrogate
        return "\N{REPLACEMENT CHARACTER}"
    return " " if kind in ("Cc", "Zl", "Zp") else letter


@contextmanager
def lettered(figure: Figure) -> Iterator[None]:
    """Within, each text of the figure has fonts for all of its letters, as far as the system has them.

    A letter that no font has is drawn as a box, without a warning for each.
    """
    for text in figure.findobj(Text):
        lacking = _lacking(text.get_text(), text.get_fontproperties())
        if lacking:
            text.set_fontfamily([*text.get_fontfamily(), *_families(lacking)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .*missing from")
        yield


def _lacking(text: str, properties: FontProperties) -> frozenset[str]:
    if text.isascii():
        return frozenset()
    base = _font(font_manager.findfont(properties))
    return frozenset(c for c in text if not c.isspace() and (base is None or not base.get_char_index(ord(c))))


@cache
def _families(letters: frozenset[str]) -> tuple[str, ...]:
    """Families of installed fonts that have these letters, as few as needed; those that none has are left out."""
    found: list[str] = []
    left, paths = set(letters), sorted(font_manager.findSystemFonts(), key=_rank)
    while left and paths:
        has = {path: _drawable(path, left) for path in paths}
        best = max(paths, key=lambda path: len(has[path]))
        if not has[best]:
            break
        found.append(_register(best))
        left -= has[best]
        paths = [path for path in paths if has[path] and path != best]
    return tuple(found)


def _rank(path: str) -> tuple[bool, bool, str]:
    name = path.lower()
    return any(word in name for word in _SLANTED), "sans" not in name and "gothic" not in name, path


def _font(path: str) -> FT2Font | None:
    try:
        return FT2Font(path)
    except (OSError, RuntimeError):  # not a font that FreeType knows
        return None


def _drawable(path: str, letters: set[str]) -> set[str]:
    """Those of the letters that the font has as outlines: colour fonts have bitmaps of a single size."""
    font = _font(path)
    if font is None:
        return set()
    has = {letter for letter in letters if font.get_char_index(ord(letter))}
    try:
        font.set_size(10, 100)
        for letter in sorted(has)[:1]:
            font.load_char(ord(letter))
    except (RuntimeError, ValueError):
        return set()
    return has


def _register(path: str) -> str:
    """The family of the font, which matplotlib knows from now on."""
    family = font_manager.ttfFontProperty(font_manager.get_font(path)).name
    if not any(entry.fname == path for entry in fontManager.ttflist):
        fontManager.addfont(path)
    return family
