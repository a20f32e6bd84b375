"""The main job at a size that two CPU cores finish in minutes: APART beside ordinary training on Fashion-MNIST."""

import importlib.util
import shutil
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from apart_fast.device import pick_device
from apart_fast.errors import UserError
from apart_fast.evaluation.judge import describe
from apart_fast.files import atomic_write, telling, to_json
from apart_fast.loaders import load_dataset
from apart_fast.precision import has_bfloat16
from apart_fast.process.owning import LOCK, owned
from apart_fast.report import pictures
from apart_fast.report.sparing import sparing
from apart_fast.runs.config import DemoConfig, TrainConfig
from apart_fast.runs.environment import environment
from apart_fast.runs.folder import RunFolder
from apart_fast.runs.json_files import Object, read_json
from apart_fast.step.methods import get_method
from apart_fast.training.run import train

METHODS = ("apart", "standard")
MADE = {*METHODS, "curves.png", "demo.json", LOCK}  # all that a demo leaves in its folder


def _is_demo(folder: Path) -> bool:
    """Whether a folder holds what a demo leaves, and nothing else."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    if names - MADE or names == {"curves.png"}:
        return False
    if LOCK in names:  # of one that was killed, perhaps while it removed an older one
        return True
    configs = [folder / method / "config.json" for method in METHODS if method in names]
    try:
        return all(read_json(config, Object, "").get("recipe") == "demo" for config in configs)
    except UserError:
        return False


def run(config: DemoConfig) -> None:
    """Train both networks, judge them, draw the pictures and say where everything lies.

    Raises:
        UserError: no data, or `out` holds something other than a demo.
    """
    loader = config.loader
    if loader == "ffcv" and importlib.util.find_spec("ffcv") is None:
        print("ffcv is not installed: going on with the resident loader")
        loader = "resident"
    if config.out.exists() and not _is_demo(config.out):
        raise UserError(f"{config.out} holds something other than a demo: choose another --out")
    base = TrainConfig.of(
        "demo",
        data_dir=config.data_dir,
        cache_dir=config.cache_dir,
        loader=loader,
        amp=has_bfloat16(pick_device(None)),
    )
    load_dataset(base.dataset, base.data_dir, cache=base.cache_dir)  # without data the old demo stays
    with owned(config.out):
        _remove_old(config.out)
        _run(base, config.out, loader)


def _remove_old(folder: Path) -> None:
    """Remove what an earlier demo has left.

    Raises:
        UserError: one of its runs is still trained, or it may not be removed.
    """
    runs = [folder / method for method in METHODS if (folder / method).exists()]
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(owned(run))
        for run in runs:
            with telling(run):
                shutil.rmtree(run)
    for name in MADE - {*METHODS, LOCK}:
        with telling(folder / name):
            (folder / name).unlink(missing_ok=True)


def _run(base: TrainConfig, folder: Path, loader: str) -> None:
    summaries, precision = {}, "bfloat16" if base.amp else "float32"
    for method in METHODS:
        # the same time for both: epochs in the inverse ratio of a step's passes, 5 and 3
        epochs = round(base.epochs * get_method("apart").passes / get_method(method).passes)
        print(f"\n{method}: {epochs} epochs of {base.train_images} images, {loader} loader, {precision}")
        out = folder / method
        summaries[method], _ = train(replace(base, method=method, epochs=epochs, cycle=epochs, out=out))

    records = {method: RunFolder(folder / method).metrics() for method in METHODS}
    with sparing("curves.png"):
        pictures.curves(records, folder / "curves.png")
    atomic_write(
        folder / "demo.json", to_json({"runs": summaries, "settings": asdict(base), "environment": environment()})
    )
    print(f"\nOn {base.test_images} test images, eps {base.eval_eps}, 95 % confidence intervals in brackets:")
    for method, summary in summaries.items():
        print(f"  {method:<9} {summary['train_seconds']:4.0f} s of training: {describe(summary['test']['last'])}")
    print(
        f"\nEverything lies in {folder} (curves.png, apart/perturbations.png, demo.json); "
        f"next: .venv/bin/python train.py{' --amp' if base.amp else ''}{' --ffcv' if loader == 'ffcv' else ''}"
    )
