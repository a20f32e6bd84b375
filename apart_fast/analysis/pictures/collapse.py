"""The picture of `apart-fast analyze collapse`."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from apart_fast.analysis.groups import group_colours
from apart_fast.analysis.published import comparable, published
from apart_fast.report.lettering import LONGEST_LABEL, drawn


def draw(numbers: dict) -> Figure:
    """Two panels over the epochs, from what `compute` returned: PGD-20 accuracy, and accuracy of the reference.

    The second is drawn as the distance from accuracy under random noise: so networks of every size, and the published
    curves that lie behind where data set and radius are theirs (CIFAR-10, 8/255), share one line.
    """
    figure = Figure(figsize=(12, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    if comparable(numbers["dataset"], numbers["eps"]):
        _draw_published(left, right)
    groups: dict[str, list[dict]] = {}
    for run in numbers["runs"]:
        groups.setdefault(run["group"], []).append(run)
    colours = group_colours(list(groups))
    for axes, name, value in ((left, "pgd20", "accuracy"), (right, "above_noise", "difference")):
        for label, runs in groups.items():
            _draw_group(axes, (name, value), label, runs, colours[label])
    _draw_reference(right, numbers["reference"])
    eps, method = f"{numbers['eps'] * 255:.3g}/255", numbers["reference"]["method"]
    left.set(title="robustness of the trained network", ylabel=f"PGD-20 accuracy at eps {eps} (%)")
    left.set_ylim(bottom=-0.02 * left.get_ylim()[1])
    right.set(
        title=f"its FGSM perturbations, given to a {method} network",
        ylabel=f"accuracy of the {method} network,\nabove that under random noise (points)",
    )
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        _legend(axes, numbers)
    return figure


def _draw_published(left: Axes, right: Axes) -> None:
    curve = published("fgsm_curve")
    noise = curve["random_noise_on_PGD10_final"]
    for axes, name, zero, style, label in (
        (left, "FGSM_PGD20_robust", 0, "-", "fgsm, published (full size)"),
        (left, "FGSMplus_PGD20_robust", 0, "-.", "fgsm+, published (full size)"),
        (right, "transfer_FGSM_i_on_PGD10_final", noise, "-", f"fgsm, published (full size; noise {noise:.1%})"),
    ):
        values = [100 * (value - zero) for value in curve[name]]
        axes.plot(curve["epoch"], values, style, color="0.65", linewidth=1, label=label, zorder=1)


def _draw_reference(axes: Axes, reference: dict) -> None:
    noise, clean = (reference[name]["accuracy"] for name in ("noise", "clean"))
    for value, style, label in ((noise, "--", "random noise, same size"), (clean, ":", "no perturbation")):
        height = 100 * (value - noise)
        axes.axhline(height, color="black", linestyle=style, linewidth=1.2, label=f"{label} ({value:.1%})")


def _draw_group(axes: Axes, value: tuple[str, str], label: str, runs: list[dict], colour: str) -> None:
    """Each seed faint and their mean; of a single run the 95 % intervals instead. value: keys of a point."""
    curves = [{p["epoch"]: 100 * p[value[0]][value[1]] for p in run["points"]} for run in runs]
    shared = [epoch for epoch in curves[0] if all(epoch in curve for curve in curves)]
    mean = [sum(curve[epoch] for curve in curves) / len(curves) for epoch in shared]
    words = drawn(label, LONGEST_LABEL) + (f" (mean of {len(runs)} seeds)" if len(runs) > 1 else " (95 % interval)")
    axes.plot(shared, mean, "o-", color=colour, linewidth=2, markersize=3, label=words, zorder=3)
    if len(runs) > 1:
        for curve in curves:
            axes.plot(list(curve), list(curve.values()), color=colour, linewidth=0.8, alpha=0.45, zorder=2)
    else:
        low, high = ([100 * p[value[0]][end] for p in runs[0]["points"]] for end in ("low", "high"))
        axes.fill_between(shared, low, high, color=colour, alpha=0.15, linewidth=0, zorder=2)
    for run, curve in zip(runs, curves, strict=True):
        epoch = run["summary"]["collapsed_at"]
        if epoch is not None:
            axes.plot([epoch], [curve[epoch]], "X", color=colour, markeredgecolor="white", markersize=10, zorder=4)


def _legend(axes: Axes, numbers: dict) -> None:
    handles = axes.get_legend_handles_labels()[0]
    if any(run["summary"]["collapsed_at"] is not None for run in numbers["runs"]):
        handles.append(Line2D([], [], color="0.3", marker="X", linestyle="", markersize=8, label="collapse"))
    # below the panel, where it covers no data
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, fontsize=8.5, frameon=False)
