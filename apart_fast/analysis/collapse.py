"""Robustness over the epochs, and whether a method's perturbations still mean anything to another network.

The published figure (arXiv 2010.08034; `published.json`): when FGSM training collapses, PGD-20 accuracy falls to zero,
and FGSM perturbations made with the collapsed network move a PGD-10-trained one no more than random noise does.
"""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from apart_fast.analysis import output
from apart_fast.analysis.cache import ResultCache, result_key
from apart_fast.analysis.directions import fgsm_delta, input_gradient, noise_delta
from apart_fast.analysis.groups import group_runs
from apart_fast.analysis.inputs import every_nth, judged_data, open_reference, open_runs
from apart_fast.analysis.pictures.collapse import draw
from apart_fast.analysis.settings import CollapseConfig
from apart_fast.device import pick_device
from apart_fast.evaluation import attacks
from apart_fast.evaluation.gradient import without_gradient
from apart_fast.evaluation.judge import Z_95, evaluate, reproducible, wilson
from apart_fast.loaders import Split, fingerprint
from apart_fast.runs.checkpoint import load_network
from apart_fast.runs.reading import Run
from apart_fast.units import parse_eps

DRAWS = 5  # of the random noise
COLLAPSED_SHARE = 1 / 3  # of the best accuracy so far: a network under it has collapsed


# ---- numbers


class _Judge:
    """Right answers on the test images; whatever is found is kept in the cache."""

    def __init__(self, config: CollapseConfig, split: Split, reference: Path):
        self._config, self._split, self._eps = config, split, parse_eps(config.eps)
        self._device = pick_device(config.device)
        self._cache = ResultCache(config.out / "collapse-cache.json")
        self._settings = {"images": fingerprint(split), "eps": self._eps, "seed": config.seed}
        self._path, self._reference = reference, load_network(reference, self._device)
        self._key = result_key(reference, {})  # of its contents

    def checkpoint(self, one: Run, epoch: int) -> tuple[dict[str, int], Tensor]:
        """Number of right answers (clean, pgd-20) and of images without a gradient (no-gradient), and right answers of
        the reference on this checkpoint's FGSM images (bool [N])."""
        weights = one.weights[epoch]
        model = cache(lambda: load_network(weights, self._device))  # only read where something is missing
        names = ["clean", "pgd-20", "no-gradient"]
        counts = self._kept(weights, names, self._is_count, lambda: self._evaluate(model()))
        moved = self._kept(
            weights, ["transfer"], self._is_marks, lambda: {"transfer": self._fooled_by(model())}, reference=self._key
        )
        return counts, _from_marks(moved["transfer"])

    def reference(self) -> dict[str, Tensor]:
        """Right answers of the reference (bool [N]) on clean images, on its own FGSM images, and on draws of noise; and
        where it has no gradient (no-gradient)."""
        names = ["clean", "own-fgsm", "no-gradient", *(f"noise-{i}" for i in range(DRAWS))]
        kept = self._kept(self._path, names, self._is_marks, self._judge_reference)
        return {name: _from_marks(marks) for name, marks in kept.items()}

    def _kept(
        self, weights: Path, names: list[str], valid: Callable[[object], bool], make: Callable[[], dict], **more: str
    ) -> dict:
        """What the cache has under these names, made now if anything of it is missing or damaged."""

        def whole(value: object) -> bool:
            return isinstance(value, dict) and set(value) == set(names) and all(map(valid, value.values()))

        return self._cache.get_or_make(result_key(weights, {**self._settings, **more, "names": names}), whole, make)

    def _is_count(self, value: object) -> bool:
        return type(value) is int and 0 <= value <= len(self._split)

    def _is_marks(self, value: object) -> bool:
        return isinstance(value, str) and len(value) == len(self._split) and set(value) <= {"0", "1"}

    def _evaluate(self, model: nn.Module) -> dict[str, int]:
        report = evaluate(
            model,
            self._split.images,
            self._split.labels,
            eps=self._eps,
            attacks=("clean", "pgd-20"),
            batch_size=self._config.batch_size,
            seed=self._config.seed,
            device=self._device,
            progress=False,
        )
        # what the transfer is made of, and what PGD stood still at
        blind = max(self._blind(model).count("1"), report.attacks["pgd-20"].unsearched)
        return {name: result.correct for name, result in report.attacks.items()} | {"no-gradient": blind}

    def _blind(self, model: nn.Module) -> str:
        """For each image "1" where the network has no gradient, else "0"."""
        return self._marks(lambda x, y: without_gradient(input_gradient(model, x, y)))

    def _fooled_by(self, model: nn.Module) -> str:
        return self._right(lambda x, y: fgsm_delta(model, x, y, self._eps))

    def _judge_reference(self) -> dict[str, str]:
        generator = torch.Generator().manual_seed(self._config.seed)
        noise = [self._right(lambda x, y: noise_delta(x, self._eps, generator)) for _ in range(DRAWS)]
        return {
            "clean": self._right(lambda x, y: torch.zeros_like(x)),
            "own-fgsm": self._fooled_by(self._reference),
            "no-gradient": self._blind(self._reference),
            **{f"noise-{i}": marks for i, marks in enumerate(noise)},
        }

    def _right(self, delta: Callable[[Tensor, Tensor], Tensor]) -> str:
        """For each image "1" where the reference is right on images + delta(images, labels), else "0"."""
        size = self._config.batch_size
        return self._marks(lambda x, y: attacks.correct(self._reference, x + delta(x, y), y, size))

    def _marks(self, holds: Callable[[Tensor, Tensor], Tensor]) -> str:
        """For each image "1" where holds(images, labels), bool [B], else "0"."""
        marks, size = [], self._config.batch_size
        with reproducible():
            for images, labels in zip(self._split.images.split(size), self._split.labels.split(size), strict=True):
                x, y = images.to(self._device).float().div(255), labels.to(self._device)
                marks += ["1" if mark else "0" for mark in holds(x, y).tolist()]
        return "".join(marks)


def _from_marks(marks: str) -> Tensor:
    return torch.tensor([mark == "1" for mark in marks])


def compute(config: CollapseConfig) -> dict:
    """Judge every kept epoch; see `CollapseConfig` for what is measured.

    Returns:
        settings; `reference` (accuracies: clean, noise averaged over draws, own FGSM); `runs`, each with `points`, one
        an epoch (see `_point`), and `summary` (see `summarise`).

    Raises:
        UserError: not a finished run (without unfinished), no kept weights, different data sets, missing data, a
            full disk.
    """
    opened = open_runs(config.runs, weights=True, unfinished=config.unfinished)
    reference, path = open_reference(config.reference, opened[0])
    groups = group_runs(opened)
    _, split = judged_data(config, [*opened, reference])
    judge = _Judge(config, split, path)
    todo = [
        (label, one, epoch)
        for label, mine in groups.items()
        for one in mine
        for epoch in every_nth(list(one.weights), config.every)
    ]
    runs: dict[str, dict] = {}
    # None: only where somebody is watching a terminal
    disable = None if config.progress else True
    with tqdm(todo, desc="collapse", unit="checkpoint", leave=False, disable=disable) as bar:
        right = judge.reference()
        known = _known(reference, path, right)
        for label, one, epoch in bar:
            bar.set_postfix_str(f"{one.name}, epoch {epoch}")
            run = runs.setdefault(one.name, {"name": one.name, "group": label, "seed": one.config.seed, "points": []})
            counts, moved = judge.checkpoint(one, epoch)
            run["points"].append(_point(epoch, counts, moved, right, known))
    for run in runs.values():
        run["summary"] = summarise(run["points"])
    return {
        "dataset": opened[0].config.dataset,
        "images": len(split),
        "eps": parse_eps(config.eps),
        "seed": config.seed,
        "reference": known,
        "runs": list(runs.values()),
    }


def _proportion(correct: float, n: int) -> dict[str, float]:
    low, high = wilson(correct, n)
    return {"accuracy": correct / n, "low": low, "high": high}


def _noise(right: dict[str, Tensor]) -> Tensor:
    """float64 [N]: share of the draws of noise under which each image is right."""
    return torch.stack([right[f"noise-{i}"] for i in range(DRAWS)]).double().mean(0)


def _known(reference: Run, path: Path, right: dict[str, Tensor]) -> dict:
    noise, n = _noise(right), len(right["clean"])
    draws = [right[f"noise-{i}"].double().mean().item() for i in range(DRAWS)]
    return {
        "name": reference.name,
        "method": reference.method,
        "weights": path.name,
        "clean": _proportion(int(right["clean"].sum()), n),
        "own_fgsm": _proportion(int(right["own-fgsm"].sum()), n),
        "no_gradient": int(right["no-gradient"].sum()),
        # the draws share their images: the interval is that of n images
        "noise": {**_proportion(noise.sum().item(), n), "draws": draws},
    }


def _point(epoch: int, counts: dict[str, int], moved: Tensor, right: dict[str, Tensor], reference: dict) -> dict:
    """What is known of an epoch.

    clean, pgd20: of the checkpoint; transfer: of the reference on the checkpoint's FGSM images; each {accuracy, low,
    high} with the 95 % Wilson interval. above_noise: transfer minus accuracy under random noise, {difference, low,
    high} with the normal 95 % interval of the paired difference (both are of the same images). way_to_noise: share of
    the way from the reference's own FGSM (0) to random noise (1), None where noise does as much harm. no_gradient: at
    so many images the checkpoint, or its PGD-20, had no gradient: they stand, and their FGSM images are clean.
    """
    n = len(moved)
    paired = moved.double() - _noise(right)
    difference, half = paired.mean().item(), Z_95 * paired.std(correction=0).item() / math.sqrt(n)
    own, noise = reference["own_fgsm"]["accuracy"], reference["noise"]["accuracy"]
    transfer = _proportion(int(moved.sum()), n)
    return {
        "epoch": epoch,
        "clean": _proportion(counts["clean"], n),
        "pgd20": _proportion(counts["pgd-20"], n),
        "transfer": transfer,
        "above_noise": {"difference": difference, "low": difference - half, "high": difference + half},
        "way_to_noise": (transfer["accuracy"] - own) / (noise - own) if noise > own else None,
        "no_gradient": counts["no-gradient"],
    }


def summarise(points: list[dict]) -> dict:
    """What happened in a run, from its points in the order of the epochs.

    `collapsed_at` is the first epoch whose PGD-20 accuracy is under a third of the best so far, if the two 95 %
    intervals do not touch (a few images among a hundred prove nothing); else None. Transfer and way_to_noise are given
    for the epoch before it and for it.
    """
    best, fall = points[0], None
    for before, point in zip(points, points[1:], strict=False):
        if point["pgd20"]["accuracy"] < COLLAPSED_SHARE * best["pgd20"]["accuracy"] and (
            point["pgd20"]["high"] < best["pgd20"]["low"]
        ):
            fall = (before, point)
            break
        best = max(best, point, key=lambda p: p["pgd20"]["accuracy"])
    peak, last = max(points, key=lambda p: p["pgd20"]["accuracy"]), points[-1]
    summary = {
        "peak_pgd20": peak["pgd20"]["accuracy"],
        "peak_epoch": peak["epoch"],
        "last_pgd20": last["pgd20"]["accuracy"],
        "last_transfer": last["transfer"]["accuracy"],
        "collapsed_at": fall[1]["epoch"] if fall else None,
    }
    for name, i in (("before", 0), ("after", 1)):
        summary[f"transfer_{name}"] = fall[i]["transfer"]["accuracy"] if fall else None
        summary[f"way_to_noise_{name}"] = fall[i]["way_to_noise"] if fall else None
    return summary


# ---- command


def describe(run: dict, reference: dict) -> str:
    """One line for a run of `compute`'s numbers."""
    found, noise = run["summary"], f"random noise {reference['noise']['accuracy']:.1%}"
    line = f"{run['name']}: PGD-20 peak {found['peak_pgd20']:.1%} (epoch {found['peak_epoch']}), "
    if found["collapsed_at"] is None:
        return line + f"no collapse, last {found['last_pgd20']:.1%}; transfer {found['last_transfer']:.1%} ({noise})"
    return line + (
        f"collapsed at epoch {found['collapsed_at']}, last {found['last_pgd20']:.1%}; transfer "
        f"{found['transfer_before']:.1%} before, {found['transfer_after']:.1%} after ({noise})"
    )


def run(config: CollapseConfig) -> None:
    """`apart-fast analyze collapse`: judge, save numbers and picture, and say what was found.

    Raises:
        UserError: bad settings; see `compute`.
    """
    config.check()
    output.check(config.out, "collapse")
    numbers = compute(config)
    paths = output.save(config.out, "collapse", numbers, lambda: draw(numbers))
    for one in numbers["runs"]:
        print(describe(one, numbers["reference"]))
        counts = {f"epoch {point['epoch']}": point["no_gradient"] for point in one["points"]}
        output.say_blind(one["name"], counts, numbers["images"])
    reference = numbers["reference"]
    output.say_blind(reference["name"], {reference["weights"]: reference["no_gradient"]}, numbers["images"])
    print("written: " + ", ".join(str(path) for path in paths))
