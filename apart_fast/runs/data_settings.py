"""Flags of how a data set is read, which trainings and evaluations share (docstrings are the help)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from apart_fast.errors import UserError
from apart_fast.loaders.datasets.reading import WAYS, Reading, Resizing

if TYPE_CHECKING:
    How = str
else:  # the flag takes the names of the table
    How = Literal[*WAYS]

_NAMES = ("image_column", "label_column", "train_split", "test_split")


@dataclass(kw_only=True)
class DataSettings:
    """How pictures become images, and where they are in a data set of Hugging Face."""

    image_size: int | None = None
    """Bring all pictures to so many pixels in height and width, once, antialiased. None: they must have one size."""
    resize: How | None = None
    """How: crop (the short side is brought to --image-size and the middle cut out), pad (the long side is, the rest is
    black) or squash (both are). None: crop."""
    image_column: str | None = None
    """Column of a Hugging Face data set that holds the pictures. None: the one of type Image."""
    label_column: str | None = None
    """Column that holds the labels. None: the one that names classes, else the one of integers or words."""
    train_split: str | None = None
    """Split of a Hugging Face data set to train on. None: train."""
    test_split: str | None = None
    """Split to judge on. None: test."""

    @property
    def reading(self) -> Reading:
        """What was said.

        Raises:
            UserError: how to resize without a size.
        """
        if self.image_size is None:
            if self.resize is not None:
                raise UserError(f"--resize {self.resize} needs a size: give it with --image-size")
            resizing = None
        else:
            resizing = Resizing(self.image_size, self.resize or "crop")
        return Reading(resizing, **{name: getattr(self, name) for name in _NAMES})
