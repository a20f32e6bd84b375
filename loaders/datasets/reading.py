"""How a data set is read, as far as a user decides it: kept with a network, and done again for all that it is shown.
Imported without torch, numpy or Pillow."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

WAYS = ("crop", "pad", "squash")  # of resizing, each a function in resizing.py


@dataclass(frozen=True)
class Resizing:
    """How pictures are brought to one size (a part of `Reading`, which checkpoints keep).

    Attributes:
        size: height and width of the images, in pixels.
        how: one of `WAYS`. crop: the short side is brought to `size`, then the middle is cut out. pad: the long side
            is, and what is missing is black. squash: both are, whatever becomes of the proportions.
    """

    size: int
    how: str = "crop"


@dataclass(frozen=True)
class Reading:
    """What was decided; the entry "reading" of a checkpoint is `dataclasses.asdict` of it.

    Attributes:
        resizing: how pictures are brought to one size. None: they are taken as they are.
        image_column, label_column, train_split, test_split: of a Hugging Face data set. None: found by itself.
    """

    resizing: Resizing | None = None
    image_column: str | None = None
    label_column: str | None = None
    train_split: str | None = None
    test_split: str | None = None

    @property
    def columns(self) -> dict[str, Any]:
        """What was said of columns and splits, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        return {name: value for name, value in named.items() if value is not None}


def reading_of(checkpoint: Mapping[str, Any]) -> Reading:
    """How the data was read that a network was trained on.

    Args:
        checkpoint: what `apart_fast.runs.checkpoint.load` gives; those of older versions resized nothing.
    """
    known = dict(checkpoint.get("reading") or {})
    resizing = known.pop("resizing", None)
    return Reading(None if resizing is None else Resizing(**resizing), **known)
