"""Judging the runs of a sweep: attacks on test images, judged.json, or on validation images, validation.json.

Both hold attack -> number of images -> result: what was judged on another number of images stays beside it. Judging
leaves evaluation.json (what `apart-fast evaluate` leaves) with the results on the most images, and card.json, as well.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Literal, NamedTuple, NotRequired, TypedDict

from apart_fast import evaluate
from apart_fast.device import pick_device
from apart_fast.evaluation.judge import describe
from apart_fast.loaders import load_dataset, subset
from apart_fast.runs.card import write_card
from apart_fast.runs.checkpoint import check_data, load, load_network, weights_of
from apart_fast.runs.environment import environment
from apart_fast.runs.json_files import read_if_there
from apart_fast.runs.judged import digest
from apart_fast.runs.reading import Run
from apart_fast.training.setup import split
from apart_fast.units import parse_eps
from benchmarks.sweep import Runs, Sweep, finished, judged_weights, some_finished

RESTARTS = 10  # of PGD-50
FILES = {"test": "judged.json", "val": "validation.json"}  # which images -> file in the folder of a run


class Result(TypedDict):
    """What was found under one attack."""

    accuracy: float
    n: int
    seconds: NotRequired[float]


class Judged(TypedDict):
    """judged.json and validation.json: of which weights, how, and attack -> number of images, as text -> result."""

    checkpoint: str
    eps: float
    results: NotRequired[dict[str, dict[str, Result]]]
    attacks: NotRequired[dict[str, Result]]  # in those of earlier versions: one result for each attack


Results = dict[str, dict[int, Result]]  # attack -> number of images -> result


class Job(NamedTuple):
    """Attacks on images.

    Attributes:
        images: so many of them; None: as many as the runs are tested on; 0: none.
    """

    attacks: tuple[str, ...]
    images: int | None = None
    restarts: int = 1


def usual_jobs(strong_images: int, autoattack_images: int) -> tuple[Job, ...]:
    """Clean and PGD-20, PGD-50 with restarts, AutoAttack."""
    return (
        Job(("clean", "pgd-20")),
        Job(("pgd-50",), strong_images, RESTARTS),
        Job(("autoattack",), autoattack_images),
    )


def judge(sweep: Sweep, jobs: Iterable[Job]) -> None:
    """Attack the weights of each finished run on test images. What was judged on as many before is not repeated.

    Raises:
        UserError: no run has ended, missing data, or a damaged file.
    """
    some_finished(sweep)
    for job in jobs:
        for run, known in _attack(sweep, job, "test"):
            _leave_evaluation(run, known)


def validate(sweep: Sweep, job: Job) -> dict[tuple[str, int], dict[str, Result]]:
    """The same on all validation images; returns attack -> result for each finished run."""
    for _ in _attack(sweep, job, "val"):
        pass
    return {key: _on_most_images(results(run, "val")) for key, run in finished(sweep).items()}


def _attack(sweep: Sweep, job: Job, which: Literal["test", "val"]) -> Iterator[tuple[Run, Results]]:
    """(run, all results) of each finished run that lacked some of the job."""
    device = pick_device(sweep.device)
    for (name, seed), run in finished(sweep).items() if job.images != 0 else ():
        data = load_dataset(run.config.dataset, sweep.data_dir)
        shown = getattr(split(run.config, data), which)
        if job.images is not None:  # fewer or more than the run is tested on
            whole = data.test if which == "test" else shown
            shown = subset(whole, min(len(whole), job.images))
        n, known = len(shown), results(run, which)
        if all(n in known.get(attack, {}) for attack in job.attacks):
            continue
        path = getattr(run.folder, judged_weights(run.config))
        state = load(path)
        check_data(state["description"], data, run.config.dataset, path, state.get("classes"))
        report = evaluate(
            load_network(state, device, name=path),
            shown.images,
            shown.labels,
            eps=run.config.eval_eps,
            attacks=job.attacks,
            restarts=job.restarts,
            batch_size=256,
            device=device,
        )
        print(f"{name}, seed {seed}, {n} {which} images: {describe(asdict(report))}", flush=True)
        for attack, result in asdict(report)["attacks"].items():
            known.setdefault(attack, {})[n] = result
        run.folder.write(FILES[which], _about(run) | {"results": known})
        yield run, known


def _about(run: Run) -> dict:
    return {
        "checkpoint": getattr(run.folder, judged_weights(run.config)).name,
        "eps": parse_eps(run.config.eval_eps),
        "restarts of pgd-50": RESTARTS,
    }


def _of_these_weights(run: Run, found: dict) -> bool:
    return all(found.get(name) == value for name, value in _about(run).items())


def results(run: Run, which: Literal["test", "val"] = "test") -> Results:
    """What the run was judged by.

    Raises:
        UserError: the file is damaged.
    """
    file = run.folder.path / FILES[which]
    found = read_if_there(file, Judged, "remove it, and the run is judged again")
    if found is None:  # earlier versions had evaluation.json alone
        found = run.evaluation if which == "test" else {}
    if not _of_these_weights(run, found):
        return {}
    by_images = {a: {r["n"]: r} for a, r in found.get("attacks", {}).items() if "n" in r and "accuracy" in r}
    by_images = found.get("results", by_images)
    return {attack: {int(n): result for n, result in of.items()} for attack, of in by_images.items()}


def _leave_evaluation(run: Run, known: Results) -> None:
    """evaluation.json and card.json, unless somebody else has evaluated the run."""
    if run.evaluation and not _of_these_weights(run, run.evaluation):
        print(f"note: {run.folder.path}/evaluation.json is of another evaluation and stays; see judged.json beside it")
        return
    weights = digest(weights_of(load(getattr(run.folder, judged_weights(run.config)))))
    about = {"weights": weights, "dataset": run.config.dataset}
    about |= {"attacks": _on_most_images(known), "environment": environment()}
    run.folder.write("evaluation.json", _about(run) | about)
    write_card(run.folder, run.config)


def _on_most_images(known: Results) -> dict[str, Result]:
    return {attack: by_images[max(by_images)] for attack, by_images in known.items()}


def on_alike_images(runs: Runs, jobs: Iterable[Job]) -> dict[tuple[str, int], dict[str, Result]]:
    """For each run attack -> result, of an attack all on one number of images: that of its job if any run was judged on
    it, else that on which most were (of several, the largest)."""
    found = {key: results(run) for key, run in runs.items()}
    asked = {attack: job.images for job in jobs for attack in job.attacks}
    chosen = {}
    for attack in {attack: None for of in found.values() for attack in of}:
        counts = Counter(n for of in found.values() for n in of.get(attack, {}))
        n = asked.get(attack)
        chosen[attack] = n if n in counts else max(counts, key=lambda n: (counts[n], n))
    return {key: {a: of[a][n] for a, n in chosen.items() if n in of.get(a, {})} for key, of in found.items()}
