"""What an analysis reads: runs on one data set, a reference, test images."""

from collections.abc import Sequence
from pathlib import Path

from apart_fast.analysis.settings import Common
from apart_fast.errors import UserError
from apart_fast.loaders import Dataset, Split, load_dataset, subset
from apart_fast.runs import checkpoint
from apart_fast.runs.reading import Run, read_runs


def open_runs(paths: Sequence[Path], *, weights: bool, unfinished: bool = False) -> list[Run]:
    """Read run folders.

    Args:
        paths: folders of runs, all on one data set.
        weights: whether the weights of epochs are needed (`--keep-weights`).
        unfinished: take runs that have not ended as far as they are; a line says how far.

    Raises:
        UserError: not a run, unfinished, no kept weights, or runs on different data sets.
    """
    runs = read_runs(paths, unfinished=unfinished)
    for path, run in zip(paths, runs, strict=True):
        if not run.finished:
            print(f"note: {run.name} is not finished: it ends at epoch {len(run.records)} of {run.config.epochs}")
        if weights and not run.weights:
            raise UserError(f"{path} kept no weights of its epochs: train it with --keep-weights 1")
        if run.config.dataset != runs[0].config.dataset:
            raise UserError(
                f"{run.name} was trained on {run.config.dataset}, {runs[0].name} on {runs[0].config.dataset}: "
                "compare runs on one data set"
            )
    return runs


def open_reference(path: Path, run: Run) -> tuple[Run, Path]:
    """A finished run to compare `run` with, and the file of its last kept weights, or best.pt if it kept none.

    Raises:
        UserError: not a finished run, or on another data set.
    """
    (reference,) = open_runs([path], weights=False)
    if reference.config.dataset != run.config.dataset:
        raise UserError(
            f"--reference {path} was trained on {reference.config.dataset}, {run.name} on {run.config.dataset}: "
            "choose a reference on the same data set"
        )
    return reference, list(reference.weights.values())[-1] if reference.weights else reference.folder.best


def judged_data(config: Common, runs: Sequence[Run]) -> tuple[Dataset, Split]:
    """(data set of the runs, a fixed subset of `config.images` of its test images); labels are those of the networks.

    Raises:
        UserError: missing or damaged data, a run whose network is for other classes or images, or runs that number
            the classes differently.
    """
    name = runs[0].config.dataset
    data = load_dataset(
        name,
        config.data_dir,
        download=config.download,
        progress=config.progress,
        cache=config.cache_dir,
        reading=runs[0].config.reading,
    )
    for i, run in enumerate(runs):
        if run.config.reading != runs[0].config.reading:
            raise UserError(
                f"{run.name} was trained on pictures resized or chosen otherwise than those of {runs[0].name}: "
                "look at them one by one"
            )
        network = _network(run)
        description = run.summary.get("model") if run.finished else network.get("description")
        known = checkpoint.check_data(description, data, name, run.folder.path, network.get("classes"))
        if i and known is not data:
            raise UserError(f"{run.name} numbers the classes otherwise than {runs[0].name}: look at them one by one")
        data = known
    return data, subset(data.test, min(config.images, len(data.test)))


def _network(run: Run) -> dict:
    """One of its checkpoints, which hold what network it is and the names of its classes; empty where it has none."""
    files = [*run.weights.values(), run.folder.best, run.folder.last]
    file = next((file for file in files if file.is_file()), None)
    return {} if file is None else checkpoint.load(file)


def every_nth(epochs: Sequence[int], n: int) -> list[int]:
    """Every `n`-th of these epochs (in order), counted from the last one back."""
    return list(epochs)[::-1][::n][::-1]
