"""Pictures of a run, as PNG: curves over the epochs, and what the perturbations look like."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import nn

from apart_fast.evaluation.attacks import pgd_to_the_end, predict
from apart_fast.files import atomic_path
from apart_fast.loaders import Split
from apart_fast.models.channels_last import any_layout
from apart_fast.models.modes import evaluating
from apart_fast.report.lettering import drawn, lettered
from apart_fast.runs.reading import points

# Okabe and Ito's palette, grey for its pale yellow: told apart by colour-blind readers
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8c8c8c")

WIDE = 20  # letters that stand above an image


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure whole or not at all, in the format its name ends in."""
    with atomic_path(path) as temporary, lettered(figure):
        figure.savefig(temporary, format=path.suffix[1:], dpi=120)


@dataclass(frozen=True)
class Curve:
    """A key of metrics.jsonl over the epochs: what it is called, and its format string of matplotlib."""

    key: str
    label: str
    style: str = "-"


@dataclass(frozen=True)
class Panel:
    """Curves that share their axes.

    Attributes:
        shares: the values are shares of one, drawn from 0 to 100 %.
        from_zero: the axis starts at zero, unless there are values below.
    """

    title: str
    curves: tuple[Curve, ...]
    shares: bool = False
    from_zero: bool = False


PANELS = (
    Panel("training loss", (Curve("loss", "perturbed"), Curve("start_loss", "at the start", ":"))),
    Panel(
        "validation accuracy",
        (
            Curve("val_clean", "clean", "s--"),
            Curve("val_pgd20", "PGD-20", "o-"),
            Curve("probe_pgd10", "PGD-10 probe", ":"),
        ),
        shares=True,
    ),
    Panel(
        "learned step sizes",
        (Curve("alpha", "alpha"), Curve("alpha_omega", "alpha_omega", "--")),
        from_zero=True,
    ),
)


def dress(axes: Axes, panel: Panel) -> None:
    """What all axes over the epochs have in common; call it when the curves are drawn."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.3)
    if panel.shares:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    elif panel.from_zero and axes.dataLim.ymin >= 0:
        axes.set_ylim(bottom=0)


def curves_figure(runs: Mapping[str, list[dict]]) -> Figure:
    """Loss, accuracies and step sizes over the epochs, a colour for each run; `runs`: see `curves`."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for colour, (name, records) in zip(cycle(COLOURS), runs.items(), strict=False):
            for curve in panel.curves:
                if line := points(records, curve.key):
                    label = f"{drawn(name)}: {curve.label}"
                    axes.plot(*zip(*line, strict=True), curve.style, color=colour, label=label, markersize=3)
        axes.set_title(panel.title)
        if axes.has_data():
            dress(axes, panel)
            axes.legend(fontsize=7)
        else:
            axes.set(xticks=[], yticks=[])
            axes.text(0.5, 0.5, "none in this run", ha="center", transform=axes.transAxes)
    return figure


def curves(runs: Mapping[str, list[dict]], path: Path) -> None:
    """Write `curves_figure`; `runs`: name -> lines of metrics.jsonl."""
    save_figure(curves_figure(runs), path)


def perturbations(model: nn.Module, split: Split, classes: list[str], eps: float, path: Path) -> None:
    """Images, their PGD-20 perturbations against `model` (grey: none, white and black: +-eps), and the result."""
    device = next(model.parameters()).device
    images = split.images.to(device).float() / 255  # [N, H, W, C]
    with evaluating(model):
        network = any_layout(model, images.permute(0, 3, 1, 2))
        attacked = pgd_to_the_end(network, images, split.labels.to(device), eps=eps, step=eps / 4, steps=20)
        with torch.no_grad():
            said = [predict(network, x).argmax(1).tolist() for x in (images, attacked)]
    rows = [images, (attacked - images) / (2 * eps) + 0.5, attacked]
    figure = Figure(figsize=(1.3 * len(images) + 0.8, 5), layout="constrained")
    axes = figure.subplots(3, len(images), squeeze=False)
    for r, (pictures, title) in enumerate(zip(rows, ("image", "perturbation", "attacked"), strict=True)):
        for i, picture in enumerate(pictures.cpu().clamp(0, 1)):
            axes[r, i].imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1)
            axes[r, i].set(xticks=[], yticks=[])
        axes[r, 0].set_ylabel(title)
    for i, label in enumerate(split.labels.tolist()):
        axes[0, i].set_title(drawn(classes[label], WIDE), fontsize=8)
        for r, answers in ((0, said[0]), (2, said[1])):
            right = answers[i] == label
            axes[r, i].set_xlabel(
                ("said " if right else "wrong: ") + drawn(classes[answers[i]], WIDE),
                fontsize=7,
                color=COLOURS[0 if right else 1],
            )
    figure.suptitle(f"PGD-20, eps {eps:.4f}; grey: no change, black and white: -eps and +eps", fontsize=9)
    save_figure(figure, path)
