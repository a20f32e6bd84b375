"""What the perturbation generator receives over training: gradients at the input and in the blocks, and their worth.

All of it is measured on clean test images, a fixed set of them, for the kept weights of each epoch.
"""

from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from apart_fast.analysis import output
from apart_fast.analysis.cache import ResultCache, result_key
from apart_fast.analysis.groups import group_runs
from apart_fast.analysis.inputs import every_nth, judged_data, open_runs
from apart_fast.analysis.network_gradients import PGD_STEPS, block_points, measure_network
from apart_fast.analysis.pictures.gradients import draw
from apart_fast.analysis.settings import GradientsConfig
from apart_fast.device import pick_device
from apart_fast.evaluation.judge import reproducible
from apart_fast.loaders import fingerprint
from apart_fast.report.text import number
from apart_fast.runs.checkpoint import load_network
from apart_fast.runs.reading import Run
from apart_fast.units import parse_eps

_MEASURES = ("fgsm_pgd_cosine", "gradient_alignment", "fgsm_gain", "pgd_gain", "no_gradient", "input_gradient")


# ---- runs


def measure(config: GradientsConfig) -> dict:
    """The numbers: `runs`, a dictionary for each run with `name`, `method` (its label), `seed`, `best_epoch` and lists.

    `points` names the block points; the other lists have an entry for each of `epochs`: the keys of `measure_network`,
    and `alpha`, `alpha_omega`, `alpha_blocks` as recorded at the end of the epoch (None where the method learns none).
    Results are kept in gradients-cache.json under `config.out`: a stopped call goes on where it was.

    Raises:
        UserError: a run that is not finished (without unfinished) or kept no weights, no data, or a damaged checkpoint.
    """
    opened = open_runs(config.runs, weights=True, unfinished=config.unfinished)
    groups = group_runs(opened)
    device, (_, split) = pick_device(config.device), judged_data(config, opened)
    images = split.images.to(device).float() / 255
    labels = split.labels.to(device)
    cache = ResultCache(config.out / "gradients-cache.json")
    settings: dict[str, Any] = dict(eps=parse_eps(config.eps), batch_size=config.batch_size, seed=config.seed)
    key_settings = {**settings, "images": fingerprint(split), "pgd_steps": PGD_STEPS}

    def look(file: Path, points: list[tuple[str, str]]) -> dict:
        return measure_network(load_network(file, device), images, labels, points, **settings)

    chosen = [
        (label, one, every_nth(list(one.weights), config.every)) for label, mine in groups.items() for one in mine
    ]
    runs, total = [], sum(len(epochs) for _, _, epochs in chosen)
    with (
        tqdm(total=total, desc="gradients", unit="epoch", disable=None if config.progress else True) as bar,
        reproducible(),
    ):
        for label, one, epochs in chosen:
            points = block_points(load_network(one.weights[epochs[0]], device), one.config.points)
            rows = []
            for epoch in epochs:
                file = one.weights[epoch]
                key, valid = result_key(file, {**key_settings, "points": points}), partial(_is_row, points=len(points))
                rows.append(cache.get_or_make(key, valid, partial(look, file, points)))
                bar.update()
            runs.append(_gather(label, one, points, epochs, rows))
    return {
        "dataset": opened[0].config.dataset,
        "eps": parse_eps(config.eps),
        "train_eps": sorted({parse_eps(one.config.eps) for one in opened}),
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


def _gather(label: str, one: Run, points: list[tuple[str, str]], epochs: list[int], rows: list[dict]) -> dict:
    records = {record["epoch"]: record for record in one.records}
    learned = ("alpha", "alpha_omega", "alpha_blocks")
    return {
        "name": one.name,
        "method": label,
        "seed": one.config.seed,
        "best_epoch": number(one.summary, "best", "epoch"),
        "points": [name if side == "input" else f"{name}:{side}" for name, side in points],
        "epochs": epochs,
        **{name: [row[name] for row in rows] for name in rows[0]},
        **{name: [records.get(epoch, {}).get(name) for epoch in epochs] for name in learned},
    }


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
    output.check(config.out, "gradients")
    numbers = measure(config)
    for one in numbers["runs"]:
        print(describe(one))
        counts = [round(share * numbers["images"]) for share in one["no_gradient"]]
        epochs = [f"epoch {epoch}" for epoch in one["epochs"]]
        output.say_blind(one["name"], dict(zip(epochs, counts, strict=True)), numbers["images"])
    for path in output.save(config.out, "gradients", numbers, lambda: draw(numbers)):
        print(path)
