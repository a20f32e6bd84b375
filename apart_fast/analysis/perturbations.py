"""What FGSM perturbations look like before and after a collapse, and numbers for what the eye sees.

The published pictures (arXiv 2010.08034): before the collapse they follow the object, after it they are noise.
"""

import math
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from apart_fast.analysis import output
from apart_fast.analysis.directions import fgsm_delta, input_gradient, noise_delta, pgd_delta
from apart_fast.analysis.inputs import judged_data, open_reference, open_runs
from apart_fast.analysis.pictures.perturbations import Picture, Row, draw
from apart_fast.analysis.settings import PerturbationsConfig
from apart_fast.device import pick_device
from apart_fast.errors import UserError
from apart_fast.evaluation.gradient import without_gradient
from apart_fast.evaluation.judge import Z_95, reproducible
from apart_fast.loaders import Split
from apart_fast.runs.checkpoint import load_network
from apart_fast.runs.reading import Run
from apart_fast.units import parse_eps

# ---- measures: float64 [B], one for each image; NaN where an image has none


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation of a and b [B, ...], for each of B; NaN where one of them is constant."""
    a, b = (v.double().flatten(1) for v in (a, b))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()


def edges(images: Tensor) -> Tensor:
    """Length of the grey image's gradient by finite differences: [B, H, W] from [B, H, W, C]."""
    down, across = torch.gradient(images.mean(3), dim=(1, 2))
    return (down.square() + across.square()).sqrt()


def basics(delta: Tensor, eps: float) -> dict[str, Tensor]:
    """at_bound, zero, across and down (see `PerturbationsConfig`) of perturbations [B, H, W, C]."""
    size, sign = delta.abs().flatten(1), delta.sign()
    return {
        "at_bound": (size >= 0.999 * eps).double().mean(1),
        "zero": (size == 0).double().mean(1),
        "across": correlation(sign[:, :, 1:], sign[:, :, :-1]),
        "down": correlation(sign[:, 1:], sign[:, :-1]),
    }


def follows_edges(gradient: Tensor, images: Tensor) -> Tensor:
    """Correlation over the pixels of |gradient| (mean of the channels) with `edges`; both [B, H, W, C]."""
    return correlation(gradient.abs().mean(3), edges(images))


def mean_interval(values: Tensor) -> dict[str, float | None]:
    """Mean over the images that have a value, and its normal 95 % interval; None where no image has one."""
    values = values[~values.isnan()]
    if not len(values):
        return {"mean": None, "low": None, "high": None}
    mean, half = values.mean().item(), Z_95 * values.std(correction=0).item() / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


# ---- numbers


class _Images:
    """The test images in batches, on the device."""

    def __init__(self, config: PerturbationsConfig, split: Split, networks: int):
        self._split, self.size, self.device = split, config.batch_size, pick_device(config.device)
        # None: only where somebody is watching a terminal
        self.bar = tqdm(
            total=networks * -(-len(split) // self.size),
            desc="perturbations",
            unit="batch",
            leave=False,
            disable=None if config.progress else True,
        )

    def measure(
        self, look: Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]
    ) -> tuple[dict[str, dict], Tensor]:
        """Means over all images of the values that look(images, labels) gives, and its perturbations [N, H, W, C] on
        the CPU."""
        found: dict[str, list[Tensor]] = {}
        deltas = []
        for x, y in zip(self._split.images.split(self.size), self._split.labels.split(self.size), strict=True):
            delta, values = look(x.to(self.device).float().div(255), y.to(self.device))
            deltas.append(delta.cpu())
            for name, value in values.items():
                found.setdefault(name, []).append(value.cpu())
            self.bar.update()
        return {name: mean_interval(torch.cat(parts)) for name, parts in found.items()}, torch.cat(deltas)


def _measure(images: _Images, model: nn.Module, eps: float, reference: Tensor | None) -> tuple[dict[str, dict], Tensor]:
    """Numbers of a network (see `PerturbationsConfig`), and its FGSM perturbations.

    reference: PGD-20 perturbations of the reference network, [N, H, W, C] on the CPU.
    """
    targets = iter(()) if reference is None else iter(reference.split(images.size))

    def look(x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        delta = fgsm_delta(model, x, y, eps)
        gradient = input_gradient(model, x, y)
        values = basics(delta, eps) | {"like_pgd": correlation(delta, pgd_delta(model, x, y, eps))}
        for target in islice(targets, 1):
            values["like_reference"] = correlation(delta, target.to(delta))
        values["no_gradient"] = without_gradient(gradient).double()
        return delta, values | {"follows_edges": follows_edges(gradient, x)}

    return images.measure(look)


def _measure_reference(images: _Images, model: nn.Module, eps: float) -> tuple[dict[str, dict], Tensor]:
    """Numbers of the reference's PGD-20 perturbations, and these."""

    def look(x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        delta = pgd_delta(model, x, y, eps)
        gradient = input_gradient(model, x, y)
        values = basics(delta, eps) | {"no_gradient": without_gradient(gradient).double()}
        return delta, values | {"follows_edges": follows_edges(gradient, x)}

    return images.measure(look)


def compute(config: PerturbationsConfig) -> tuple[dict, Picture]:
    """Measure the perturbations of each epoch.

    Returns:
        numbers: settings; `epochs`, one {epoch, collapsed, <name>: {mean, low, high}} for each (names: see
        `PerturbationsConfig`; `collapsed`: what the run's own probe said, None without one); `noise` and `reference`:
        the same names for random signs and for the reference's PGD-20 perturbation, as far as they have them. And what
        `draw` needs.

    Raises:
        UserError: not a finished run (without unfinished), an epoch that was not kept, different data sets, missing
            data.
    """
    (one,) = open_runs([config.run], weights=True, unfinished=config.unfinished)
    compared = open_reference(config.reference, one) if config.reference else None
    epochs = choose_epochs(one, config.epochs)
    data, split = judged_data(config, [one, *([compared[0]] if compared else [])])
    eps, shown = parse_eps(config.eps), spread(split.labels, config.shown)
    rows, images = [], _Images(config, split, len(epochs) + (compared is not None))
    numbers: dict[str, Any] = {
        **{"run": one.name, "method": one.method, "dataset": one.config.dataset},
        **{"images": len(split), "eps": eps, "seed": config.seed, "epochs": []},
        "noise": _measure_noise(split, eps, config.seed),
        "reference": None,
    }
    with images.bar, reproducible():
        target, last = None, []
        if compared:
            reference, path = compared
            found, target = _measure_reference(images, load_network(path, images.device), eps)
            numbers["reference"] = {"name": reference.name, "method": reference.method, "weights": path.name, **found}
            last = [Row(f"PGD-20, {reference.method} network", _words(found), target[shown])]
        # earlier versions wrote False where nobody looked
        watched = [record for record in one.records if "probe_pgd10" in record]
        collapsed = {record["epoch"]: record.get("collapsed") for record in watched}
        for epoch in epochs:
            found, delta = _measure(images, load_network(one.weights[epoch], images.device), eps, target)
            numbers["epochs"].append({"epoch": epoch, "collapsed": collapsed.get(epoch), **found})
            rows.append(Row(_title(epoch, collapsed.get(epoch)), _words(found), delta[shown]))
    picture = split.images[shown].float() / 255, [data.classes[i] for i in split.labels[shown].tolist()]
    return numbers, Picture(*picture, rows + last, eps)


def _measure_noise(split: Split, eps: float, seed: int) -> dict[str, dict]:
    """What chance gives: a perturbation of random signs, and a random gradient."""
    images, generator = split.images.float() / 255, torch.Generator().manual_seed(seed)
    delta = noise_delta(images, eps, generator)
    values = basics(delta, eps) | {
        "follows_edges": follows_edges(torch.rand(images.shape, generator=generator), images)
    }
    return {name: mean_interval(value) for name, value in values.items()}


def choose_epochs(one: Run, wanted: tuple[int, ...]) -> list[int]:
    """The epochs asked for; none: before and after the collapse, or the middle and the last one (see the config).

    Raises:
        UserError: the weights of an epoch asked for were not kept.
    """
    kept = list(one.weights)
    for epoch in wanted:
        if epoch not in one.weights:
            raise UserError(f"--epochs {epoch}: {one.name} kept no weights of it; it kept {', '.join(map(str, kept))}")
    if wanted:
        return list(dict.fromkeys(wanted))
    fall = one.collapsed_epochs[:1]
    before = [epoch for epoch in kept if fall and epoch < fall[0]]
    if before and before[-1] != kept[-1]:
        return [before[-1], kept[-1]]
    return list(dict.fromkeys([kept[(len(kept) - 1) // 2], kept[-1]]))


def spread(labels: Tensor, count: int) -> list[int]:
    """Positions of `count` images (or all of them) of as many classes as possible: the first of each class, then the
    second of each, and so on."""
    seen: dict[int, int] = {}
    order = []
    for i, label in enumerate(labels.tolist()):
        seen[label] = seen.get(label, 0) + 1
        order.append((seen[label], i))
    return sorted(i for _, i in sorted(order)[:count])


# ---- words of the picture


def _title(epoch: int, collapsed: bool | None) -> str:
    said = {None: "", True: "\n(collapsed)", False: "\n(not collapsed)"}
    return f"FGSM, epoch {epoch}" + said[collapsed]


def _words(found: dict) -> tuple[str, ...]:
    """The key numbers of a row, one for each line."""
    lines = {
        "at_bound": "moved by eps {:.0%}",
        "across": "neighbour across r = {:.2f}",
        "down": "neighbour down r = {:.2f}",
        "like_pgd": "own PGD-20 r = {:.2f}",
        "like_reference": "reference r = {:.2f}",
    }
    means = {name: found[name]["mean"] for name in lines if name in found}
    return tuple(lines[name].format(mean) for name, mean in means.items() if mean is not None)


# ---- command


def _describe(name: str, found: dict) -> str:
    means = {key: value["mean"] for key, value in found.items() if isinstance(value, dict)}
    return f"{name}: " + ", ".join(f"{key} {mean:.3f}" for key, mean in means.items() if mean is not None)


def run(config: PerturbationsConfig) -> None:
    """`apart-fast analyze perturbations`: measure, save numbers and picture, and say what was found.

    Raises:
        UserError: bad settings; see `compute`.
    """
    config.check()
    output.check(config.out, "perturbations")
    numbers, picture = compute(config)
    paths = output.save(config.out, "perturbations", numbers, lambda: draw(picture))
    for found in numbers["epochs"]:
        print(_describe(f"{numbers['run']}, epoch {found['epoch']}", found))
    if numbers["reference"]:
        print(_describe(f"{numbers['reference']['name']}, PGD-20", numbers["reference"]))
    print(_describe("random noise", numbers["noise"]))
    print("written: " + ", ".join(str(path) for path in paths))
