"""What the perturbation generator receives over training: gradients at the input and in the blocks, and their worth.

All of it is measured on clean test images, a fixed set of them, for the kept weights of each epoch.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn
from tqdm import tqdm

from apart_fast.analysis import output
from apart_fast.analysis.cache import ResultCache, result_key
from apart_fast.analysis.directions import fgsm_delta, input_gradient, pgd_delta
from apart_fast.analysis.groups import group_colours, group_runs
from apart_fast.analysis.series import Series, judged_data, open_series
from apart_fast.analysis.settings import GradientsConfig
from apart_fast.device import pick_device
from apart_fast.errors import UserError
from apart_fast.evaluation.attacks import predict
from apart_fast.evaluation.judge import reproducible
from apart_fast.loaders import fingerprint
from apart_fast.models.default_points import default_points
from apart_fast.models.modes import frozen
from apart_fast.report.text import number
from apart_fast.step.points import match_points
from apart_fast.units import parse_eps

PGD_STEPS = 20
_MEASURES = ("fgsm_pgd_cosine", "gradient_alignment", "fgsm_gain", "pgd_gain", "input_gradient")


# ---- one network


@contextmanager
def _capturing(model: nn.Module, points: Sequence[tuple[str, str]]) -> Iterator[dict[tuple[str, str], Tensor]]:
    """Within: a forward leaves in the yielded dictionary what passes each (submodule, input | output).

    What is left is a view that goes into the submodule only: its gradient has no part of a shortcut, as APART's h_b.
    """
    passed: dict[tuple[str, str], Tensor] = {}
    modules = dict(model.named_modules())

    def keep(point: tuple[str, str], a: Tensor) -> Tensor:
        passed[point] = a.view_as(a)
        return passed[point]

    def hook(point: tuple[str, str]):
        module = modules[point[0]]
        if point[1] == "input":
            return module.register_forward_pre_hook(lambda _, args: (keep(point, args[0]), *args[1:]))
        return module.register_forward_hook(lambda _, _args, a: keep(point, a))

    handles = [hook(point) for point in points]
    try:
        yield passed
    finally:
        for handle in handles:
            handle.remove()


def gradient_norms(
    model: nn.Module, images: Tensor, labels: Tensor, points: Sequence[tuple[str, str]]
) -> tuple[Tensor, Tensor]:
    """L2 norms of the gradients of the summed cross-entropy, as the model is (eval or training mode).

    Args:
        model: takes NCHW, pixels in [0, 1]; nothing of it changes but running statistics in training mode, where the
            gradient at an image also holds its part in the batch's statistics.
        images: float [B, H, W, C] in [0, 1].
        labels: int64 [B].
        points: (submodule, input | output), see `apart_fast.step.points.match_points`.

    Returns:
        [B] at the input, and [B, len(points)] at the points.
    """
    leaf = images.detach().clone().requires_grad_()
    with frozen(model), _capturing(model, points) as passed, torch.enable_grad():
        loss = F.cross_entropy(predict(model, leaf), labels, reduction="sum")
        gradients = torch.autograd.grad(loss, [leaf, *(passed[point] for point in points)])
    norms = torch.stack([g.flatten(1).double().norm(dim=1) for g in gradients], dim=1)
    return norms[:, 0], norms[:, 1:]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """float64 [B]: cosine of the flattened rows of [B, ...]; NaN where one of them is zero."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def _losses(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(predict(model, images), labels, reduction="none")


def alignment(model: nn.Module, images: Tensor, labels: Tensor, noise: Tensor, eps: float) -> dict[str, Tensor]:
    """How far one gradient tells what PGD-20 finds, for each image: dictionary of [B].

    `fgsm_pgd_cosine`: between the perturbations of FGSM and PGD-20 from the image, without a random start.
    `gradient_alignment`: between the gradients at x and at x + noise, the measure of GradAlign (Andriushchenko &
    Flammarion, arXiv 2007.02617, eq. 5, as a cosine, not one minus it).
    `fgsm_gain`, `pgd_gain`: cross-entropy at x + delta less that at x.

    Args:
        model: in eval mode.
        images, noise: float [B, H, W, C]; images in [0, 1], noise from uniform(-eps, eps), added without clipping.
        labels: int64 [B].
    """
    fgsm = fgsm_delta(model, images, labels, eps)
    pgd = pgd_delta(model, images, labels, eps, PGD_STEPS)
    here, beside = (input_gradient(model, x, labels) for x in (images, images + noise))
    clean = _losses(model, images, labels)
    return {
        "fgsm_pgd_cosine": cosine(fgsm, pgd),
        "gradient_alignment": cosine(here, beside),
        "fgsm_gain": _losses(model, images + fgsm, labels) - clean,
        "pgd_gain": _losses(model, images + pgd, labels) - clean,
    }


def measure_network(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    points: Sequence[tuple[str, str]],
    *,
    eps: float,
    batch_size: int,
    seed: int,
) -> dict:
    """Means over the images of `alignment` (eval mode) and `gradient_norms` (BatchNorm on batch statistics).

    Args:
        model: in eval mode; it stays as it is.
        images: float [N, H, W, C] in [0, 1], on the model's device.
        batch_size: at most so many images at a time, in batches of nearly equal size.
        seed: of GradAlign's noise; an image's noise does not depend on the batch size.

    Returns:
        the keys of `alignment` and `input_gradient`: numbers, NaN where no image has one; `blocks`: a number for each
        point.
    """
    noise = torch.empty(images.shape).uniform_(-eps, eps, generator=torch.Generator().manual_seed(seed)).to(images)
    training = copy.deepcopy(model).train()
    found: dict[str, list[Tensor]] = {}
    # equal parts: a rest of one image has no batch statistics
    parts = (t.tensor_split(-(-len(images) // batch_size)) for t in (images, labels, noise))
    for x, y, eta in zip(*parts, strict=True):
        values = alignment(model, x, y, eta, eps)
        values["input_gradient"], values["blocks"] = gradient_norms(training, x, y, points)
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: torch.cat(values).double().nanmean(0).tolist() for name, values in found.items()}


# ---- runs


def block_points(one: Series, model: nn.Module) -> list[tuple[str, str]]:
    """The run's block points, or those that APART would have there; none on a model without known blocks."""
    if one.config.points is not None:
        return match_points(model, one.config.points)
    try:
        return match_points(model, default_points(model))
    except UserError:
        return []


def measured_epochs(kept: Sequence[int], every: int) -> list[int]:
    """Each `every`-th of the kept epochs, counted back from the last one."""
    return sorted(kept)[::-1][::every][::-1]


def measure(config: GradientsConfig) -> dict:
    """The numbers: `runs`, a dictionary for each run with `name`, `method` (its label), `seed`, `best_epoch` and lists.

    `points` names the block points; the other lists have an entry for each of `epochs`: the keys of `measure_network`,
    and `alpha`, `alpha_omega`, `alpha_blocks` as recorded at the end of the epoch (None where the method learns none).
    Results are kept in gradients-cache.json under `config.out`: a stopped call goes on where it was.

    Raises:
        UserError: a run that is not finished or kept no weights, no data, or a damaged checkpoint.
    """
    series = open_series(config.runs, weights=True)
    groups = group_runs(series)
    device, (_, split) = pick_device(config.device), judged_data(config, series)
    images = split.images.to(device).float() / 255
    labels = split.labels.to(device)
    cache = ResultCache(config.out / "gradients-cache.json")
    settings = dict(eps=parse_eps(config.eps), batch_size=config.batch_size, seed=config.seed)
    key_settings = {**settings, "images": fingerprint(split), "pgd_steps": PGD_STEPS}
    chosen = [
        (label, one, measured_epochs(list(one.weights), config.every)) for label, g in groups.items() for one in g
    ]
    runs, total = [], sum(len(epochs) for _, _, epochs in chosen)
    with (
        tqdm(total=total, desc="gradients", unit="epoch", disable=None if config.progress else True) as bar,
        reproducible(),
    ):
        for label, one, epochs in chosen:
            points = block_points(one, one.model(epochs[0], device))
            rows = []
            for epoch in epochs:
                key = result_key(one.weights[epoch], {**key_settings, "points": points})
                row = cache.get(key)
                if not _is_row(row, len(points)):
                    row = measure_network(one.model(epoch, device), images, labels, points, **settings)
                    cache.put(key, row)
                rows.append(row)
                bar.update()
            runs.append(_gather(label, one, points, epochs, rows))
    return {
        "dataset": series[0].config.dataset,
        "eps": parse_eps(config.eps),
        "train_eps": sorted({parse_eps(one.config.eps) for one in series}),
        "images": len(split),
        "batch_size": config.batch_size,
        "runs": runs,
    }


def _is_row(value: object, points: int) -> bool:
    """Whether a value of the cache is what `measure_network` returns."""
    if not isinstance(value, dict) or value.keys() != {*_MEASURES, "blocks"}:
        return False
    blocks = value["blocks"]
    numbers = [value[name] for name in _MEASURES] + (blocks if isinstance(blocks, list) else [None])
    return len(numbers) == len(_MEASURES) + points and all(isinstance(v, int | float) for v in numbers)


def _gather(label: str, one: Series, points: list[tuple[str, str]], epochs: list[int], rows: list[dict]) -> dict:
    records = {record["epoch"]: record for record in one.records}
    learned = ("alpha", "alpha_omega", "alpha_blocks")
    return {
        "name": one.name,
        "method": label,
        "seed": one.config.seed,
        "best_epoch": number(one.folder.summary(), "best", "epoch"),
        "points": [name if side == "input" else f"{name}:{side}" for name, side in points],
        "epochs": epochs,
        **{name: [row[name] for row in rows] for name in rows[0]},
        **{name: [records.get(epoch, {}).get(name) for epoch in epochs] for name in learned},
    }


# ---- picture

_DOT = dict(marker=".", markersize=4)  # one epoch alone is seen too
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
    names = [f"{label} ({n} seeds)" if n > 1 else label for label, n in counts.items()]
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(labels), 7), frameon=False)
    return figure


def _name_panels(panels, numbers: dict) -> None:
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
            panel.plot(values.keys(), values.values(), style, color=colour, alpha=0.35, linewidth=0.7)
    if epochs:
        panel.plot(epochs, [fmean(v[e] for v in series) for e in epochs], style, color=colour, linewidth=1.8, **_DOT)


def _draw_blocks(above: Axes, below: Axes, run: dict) -> None:
    """Gradient norm and learned step of each block of one run, from the first (dark) to the last block (light)."""
    _name(above, "gradient at the block points", f"one run: {run['name']}")
    _name(below, r"learned block steps $\alpha_b$", f"one run: {run['name']}")
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


# ---- command


def describe(run: dict) -> str:
    """One line for a run: alignment and gains at the epoch nearest to its best one, and at its last one."""
    epochs = run["epochs"]
    best = run["best_epoch"] or epochs[-1]
    at = min(range(len(epochs)), key=lambda i: abs(epochs[i] - best))
    words = []
    for name, i in (("best", at), ("last", len(epochs) - 1)):
        cosines = (
            f"cos(FGSM, PGD-{PGD_STEPS}) {run['fgsm_pgd_cosine'][i]:.2f}, GradAlign {run['gradient_alignment'][i]:.2f}"
        )
        gains = f"gain {run['fgsm_gain'][i]:.2f} of {run['pgd_gain'][i]:.2f}"
        words.append(f"{name} epoch {epochs[i]}: {cosines}, {gains}")
    return f"{run['name']}: {'; '.join(words)}"


def run(config: GradientsConfig) -> None:
    """Measure, draw, write gradients.{json,png,svg} under `config.out`, and print a line for each run.

    Raises:
        UserError: settings, runs or data that make no sense (one line says what to do).
    """
    config.check()
    numbers = measure(config)
    for one in numbers["runs"]:
        print(describe(one))
    for path in output.save(config.out, "gradients", numbers, draw(numbers)):
        print(path)
