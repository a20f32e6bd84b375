"""The picture of `apart-fast analyze gradients`."""

import math
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from apart_fast.analysis.groups import group_colours
from apart_fast.analysis.network_gradients import PGD_STEPS
from apart_fast.report.lettering import LONGEST_LABEL, drawn

_DOT: dict[str, Any] = dict(marker=".", markersize=4)  # one epoch alone is seen too
# (row, column of the panel, key, line style, factor)
_LINES = (
    (0, 0, "input_gradient", "-", 1),
    (0, 1, "fgsm_pgd_cosine", "-", 1),
    (0, 1, "gradient_alignment", "--", 1),
    (1, 0, "fgsm_gain", "-", 1),
    (1, 0, "pgd_gain", "--", 1),
    (1, 1, "alpha", "-", 255),
    (1, 1, "alpha_omega", "--", 255),
)


def draw(numbers: dict) -> Figure:
    """The figure of what `measure` returned: 2 x 3 panels over the epochs; means over seeds, faint single seeds."""
    runs = numbers["runs"]
    labels = list(dict.fromkeys(run["method"] for run in runs))
    colours = group_colours(labels)
    figure = Figure(figsize=(14, 7.8), layout="constrained")
    panels = figure.subplots(2, 3)
    for row, column, key, style, factor in _LINES:
        for label in labels:
            mine = [run for run in runs if run["method"] == label]
            _draw_lines(panels[row, column], mine, key, style, colours[label], factor)
    _name_panels(panels, numbers)
    _draw_blocks(panels[0, 2], panels[1, 2], next((run for run in runs if any(run["alpha_blocks"])), runs[0]))
    every = [epoch for run in runs for epoch in run["epochs"]]
    margin = 0.04 * max(1, max(every) - min(every))
    for panel in panels.flat:
        panel.set(xlabel="epoch", xlim=(min(every) - margin, max(every) + margin))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
        if not panel.has_data():
            panel.set(xticks=[], yticks=[], yscale="linear")
            panel.text(0.5, 0.5, "none in these runs", ha="center", va="center", transform=panel.transAxes)
    handles = [Line2D([], [], color=colours[label], linewidth=2) for label in labels]
    counts = {label: sum(run["method"] == label for run in runs) for label in labels}
    names = [drawn(label, LONGEST_LABEL) + (f" ({n} seeds)" if n > 1 else "") for label, n in counts.items()]
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(labels), 7), frameon=False)
    return figure


def _name_panels(panels: np.ndarray, numbers: dict) -> None:
    _name(panels[0, 0], "gradient at the input", "BatchNorm on batch statistics")
    panels[0, 0].set(yscale="log", ylabel=r"mean of $\Vert\partial\,$CE$_i/\partial x\Vert_2$")
    _name(
        panels[0, 1],
        "is the loss linear in the ball?",
        f"solid: FGSM, PGD-{PGD_STEPS}; dashed: gradients at x, x + noise",
    )
    lowest = min(0.0, panels[0, 1].get_ylim()[0])
    panels[0, 1].set(ylabel="mean cosine", ylim=(lowest, 1.03))
    _name(panels[1, 0], "cross-entropy gained by the attack", f"solid: FGSM; dashed: PGD-{PGD_STEPS}")
    panels[1, 0].set(ylabel="mean gain (nats)")
    _name(panels[1, 1], "learned step sizes", r"solid: $\alpha$; dashed: $\alpha_\omega$; dotted: eps of training")
    panels[1, 1].set(ylabel="size (1/255 of the pixel range)")
    if panels[1, 1].has_data():
        for eps in numbers["train_eps"]:
            panels[1, 1].axhline(255 * eps, color="black", linestyle=":", linewidth=1)


def _name(panel: Axes, title: str, lines: str) -> None:
    panel.set_title(title, pad=20)
    panel.text(0.5, 1.02, lines, ha="center", va="bottom", fontsize=9, color="0.3", transform=panel.transAxes)


def _draw_lines(panel: Axes, runs: list[dict], key: str, style: str, colour: str, factor: float) -> None:
    series = [
        {e: factor * v for e, v in zip(run["epochs"], run[key], strict=True) if v is not None and not math.isnan(v)}
        for run in runs
    ]
    epochs = [epoch for epoch in runs[0]["epochs"] if all(epoch in values for values in series)]
    if len(runs) > 1:
        for values in series:
            panel.plot(list(values), list(values.values()), style, color=colour, alpha=0.35, linewidth=0.7)
    if epochs:
        panel.plot(epochs, [fmean(v[e] for v in series) for e in epochs], style, color=colour, linewidth=1.8, **_DOT)


def _draw_blocks(above: Axes, below: Axes, run: dict) -> None:
    """Gradient norm and learned step of each block of one run, from the first (dark) to the last block (light)."""
    _name(above, "gradient at the block points", f"one run: {drawn(run['name'])}")
    _name(below, r"learned block steps $\alpha_b$", f"one run: {drawn(run['name'])}")
    above.set(yscale="log", ylabel=r"mean of $\Vert\partial\,$CE$_i/\partial a_b\Vert_2$")
    below.set(ylabel=r"$\alpha_b$ (units of the activation)")
    below.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    count = len(run["points"])
    if not count:
        return
    shades = ListedColormap(colormaps["viridis"](np.linspace(0, 0.9, count)))
    for panel, key in ((above, "blocks"), (below, "alpha_blocks")):
        found = [(epoch, values) for epoch, values in zip(run["epochs"], run[key], strict=True) if values]
        for i in range(count if found else 0):
            panel.plot([e for e, _ in found], [v[i] for _, v in found], color=shades(i), linewidth=1.5, **_DOT)
    scale = ScalarMappable(BoundaryNorm(np.arange(count + 1) + 0.5, count), shades)
    bar = above.figure.colorbar(scale, ax=[above, below], ticks=range(1, count + 1), pad=0.01, aspect=40)
    bar.set_label("block (1: nearest to the input)")
    bar.ax.tick_params(length=0, labelsize=8)
