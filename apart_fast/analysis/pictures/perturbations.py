"""The picture of `apart-fast analyze perturbations`."""

from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from apart_fast.report.lettering import drawn


@dataclass(frozen=True)
class Row:
    """A row of the picture: delta, float [shown, H, W, C] in [-eps, eps], and what is written beside it."""

    name: str
    words: tuple[str, ...]
    delta: Tensor


@dataclass(frozen=True)
class Picture:
    """Images float [shown, H, W, C] in [0, 1], the names of their classes, and the perturbations below them."""

    images: Tensor
    classes: list[str]
    rows: list[Row]
    eps: float


def draw(picture: Picture) -> Figure:
    """Images in the first row, below them each `Row` (a colour channel's 0 is -eps, 1/2 no change, 1 +eps)."""
    columns, count = len(picture.images), 1 + len(picture.rows)
    figure = Figure(figsize=(2.6 + 1.25 * columns, 0.5 + 1.34 * count), layout="constrained")
    axes = figure.subplots(count, columns, squeeze=False)
    scaled = [(row.delta / (2 * picture.eps) + 0.5).clamp(0, 1) for row in picture.rows]
    for r, tensors in enumerate([picture.images, *scaled]):
        for i, pixels in enumerate(tensors):
            axes[r, i].imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes[r, i].set(xticks=[], yticks=[])
    for i, name in enumerate(picture.classes):
        axes[0, i].set_title(drawn(name, 16), fontsize=10)
    _beside(axes[0, 0], "image", ())
    for r, row in enumerate(picture.rows, 1):
        _beside(axes[r, 0], row.name, row.words)
    eps = f"{picture.eps * 255:.3g}/255"
    figure.suptitle(
        f"eps {eps}; in each colour channel dark: -eps, medium: no change, bright: +eps", fontsize=10, wrap=True
    )
    return figure


def _beside(axes: Axes, name: str, words: tuple[str, ...]) -> None:
    """Text to the left of a row: its name, and smaller lines below it."""
    lines = name.count("\n") + 1
    # one block of text for each size, meeting at the height that their numbers of lines give
    height = 0.5 + 0.065 * (len(words) - lines)
    at: dict[str, Any] = dict(xycoords="axes fraction", textcoords="offset points", xytext=(-8, 0), ha="right")
    axes.annotate(name, (0, height), va="bottom" if words else "center", fontsize=10, weight="bold", **at)
    axes.annotate("\n".join(words), (0, height), va="top", fontsize=8.5, color="0.25", **at)
