"""The picture of `apart-fast analyze curves`."""

from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from apart_fast.analysis.groups import group_colours
from apart_fast.report.lettering import LONGEST_LABEL, drawn

# measure -> what the axis says
_NAMES = {"val_pgd20": "PGD-20 accuracy", "probe_pgd10": "PGD-10 accuracy", "test_pgd20": "PGD-20 accuracy"}
_FAINT = 0.45


def draw(numbers: dict) -> Figure:
    """The figure of what `measure` returned: curves (mean, range over seeds), and best and last of every seed."""
    methods = numbers["methods"]
    colours = group_colours(list(methods))
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    over_epochs, ends = figure.subplots(1, 2, width_ratios=(1.35, 1))
    for label in methods:
        _draw_curve(over_epochs, _runs_of(numbers, label), label, colours[label])
    longest = max(epoch for run in numbers["runs"] for epoch in run["epochs"])
    if numbers["published"]:  # they show where an unfinished run should go
        longest = max(longest, *(run["of_epochs"] for run in numbers["runs"] if not run["finished"]), 0)
    for method, curve in (numbers["published"] or {}).items():
        _draw_published(over_epochs, method, curve, longest, colours.get(method, "0.3"))
    what = _axis_label(numbers)
    over_epochs.set(xlabel="epoch", ylabel=what, ylim=(-1, None), title="robust accuracy (mean and range over seeds)")
    over_epochs.set_xlim(1 - 0.02 * longest, longest * 1.02)
    over_epochs.xaxis.set_major_locator(MaxNLocator(integer=True))
    over_epochs.grid(alpha=0.3)
    _draw_ends(ends, numbers, colours)
    ends.set(xlabel=what, title="best (open) and last epoch (filled)")
    entries = len(over_epochs.get_legend_handles_labels()[1])
    figure.legend(loc="outside lower center", ncols=min(entries, 4), frameon=False, fontsize=9)
    return figure


def _runs_of(numbers: dict, label: str) -> list[dict]:
    return [run for run in numbers["runs"] if run["method"] == label]


def _axis_label(numbers: dict) -> str:
    part = "test" if numbers["measure"] == "test_pgd20" else "validation"
    what = _NAMES[numbers["measure"]]
    images = {run["images"] for run in numbers["runs"]}
    return f"{what} on {images.pop():,} {part} images (%)" if len(images) == 1 else f"{what}, {part} images (%)"


def _draw_curve(axes: Axes, runs: list[dict], label: str, colour: str) -> None:
    by_epoch = [dict(zip(run["epochs"], run["robust"], strict=True)) for run in runs]
    epochs = [epoch for epoch in runs[0]["epochs"] if all(epoch in values for values in by_epoch)]
    rows = [[100 * values[epoch] for values in by_epoch] for epoch in epochs]
    name = drawn(label, LONGEST_LABEL) + (f" ({len(runs)} seeds)" if len(runs) > 1 else "")
    if not all(run["finished"] for run in runs):
        name += f", to epoch {epochs[-1] if epochs else 0} of {runs[0]['of_epochs']}"
    axes.plot(epochs, [fmean(row) for row in rows], ".-", color=colour, label=name, linewidth=1.8, markersize=4)
    if len(runs) > 1:
        axes.fill_between(
            epochs, [min(row) for row in rows], [max(row) for row in rows], color=colour, alpha=0.18, lw=0
        )
    for run, values in zip(runs, by_epoch, strict=True):
        best = run["best"]["epoch"], 100 * run["best"]["value"]
        axes.plot(*best, "o", markersize=4.5, markerfacecolor="white", markeredgecolor=colour, markeredgewidth=1.3)
        if len(runs) > 1:
            axes.plot(list(values), [100 * value for value in values.values()], color=colour, alpha=_FAINT, lw=0.6)


def _draw_published(axes: Axes, method: str, curve: dict, longest: int, colour: str) -> None:
    points = [(e, 100 * v) for e, v in zip(curve["epochs"], curve["robust"], strict=True) if e <= longest]
    label = f"{method}, published, full size"
    axes.plot(*zip(*points, strict=True), ":", color=colour, alpha=_FAINT, linewidth=1.8, label=label, zorder=1)


def _draw_ends(axes: Axes, numbers: dict, colours: dict[str, str]) -> None:
    methods = numbers["methods"]
    for row, label in enumerate(methods):
        runs, colour = _runs_of(numbers, label), colours[label]
        for i, run in enumerate(runs):
            y = row + 0.44 * ((i + 0.5) / len(runs) - 0.5)
            best, last = 100 * run["best"]["value"], 100 * run["last"]
            arrow = dict(arrowstyle="-|>", color=colour, alpha=0.6, linewidth=1.2, shrinkA=3, shrinkB=2)
            if best - last > 0.5:  # percent: shorter than its own head
                axes.annotate("", (last, y), (best, y), arrowprops=arrow)
            axes.plot(best, y, "o", markersize=7, markerfacecolor="white", markeredgecolor=colour, markeredgewidth=1.5)
            axes.plot(last, y, "o", markersize=4.5, color=colour)
        axes.text(1.02, row, _drop_text(methods[label]), transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.text(1.02, 1.01, "drop (points)", transform=axes.transAxes, va="bottom", fontsize=9)
    axes.set_yticks(range(len(methods)), [drawn(label) for label in methods])
    axes.set(ylim=(len(methods) - 0.5, -0.5))
    highest = max(run["best"]["value"] for run in numbers["runs"])
    axes.set_xlim(-2, max(5.0, 108 * highest))
    axes.grid(axis="x", alpha=0.3)


def _drop_text(summary: dict) -> str:
    drop = {key: 100 * value for key, value in summary["drop"].items()}
    if summary["seeds"] == 1:
        return f"{drop['mean']:.1f}"
    return f"{drop['mean']:.1f} ({drop['min']:.1f} to {drop['max']:.1f})"
