"""A whole run from its settings: what `train.py` does."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from apart_fast.device import keep_freed_memory, pick_device
from apart_fast.errors import Interrupted, Stopped, UserError
from apart_fast.files import check_writable, held
from apart_fast.loaders import Dataset, load_dataset
from apart_fast.measure import profiling
from apart_fast.parallel.world import World
from apart_fast.process.owning import without_trace
from apart_fast.runs import checkpoint
from apart_fast.runs.begin import begin
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.folder import RunFolder
from apart_fast.runs.shards import whole
from apart_fast.training.algorithms import algorithms
from apart_fast.training.trainer import Trainer


def train(asked: TrainConfig, us: World | None = None) -> tuple[dict, Path]:
    """Train as configured, or go on with `resume`; returns (summary, run folder). With `profile`: only measure, and
    return an empty summary.

    Args:
        us: this process among those of the training, in each of which it is called; None: there are no others.

    Raises:
        UserError, Stopped: see `Trainer.run`.
    """
    us, state = us or World(), None
    folder, config, resumed = us.of_first(lambda: _begin(asked, us.size))
    if config.profile and us.size > 1:
        raise UserError("--profile measures one process: start it without torchrun")
    config = replace(config, progress=config.progress and us.first)
    newest = folder.last
    with ExitStack() as stack:
        stack.enter_context(_told_how_to_go_on(folder))
        if resumed:
            with us.first_alone("owning"):
                if us.first:
                    stack.enter_context(folder.owned())
                    folder.complete()
            state, newest = load_last(folder, us)
        stack.enter_context(machine(config, us))
        stack.enter_context(without_trace(folder.path))  # omega's file may lie there first
        with us.first_alone("loading"):
            data = load_data(config, asked)
        trainer = Trainer(config, folder, data, state, us)
        stack.callback(trainer.execution.close)
        state = None  # its omega would stay in memory
        us.meet()
        if us.first and not resumed:
            stack.enter_context(folder.owned())
            folder.create(config)  # last: what cannot run leaves no folder
        elif us.first:
            folder.put_last(newest)
        us.meet()
        if not us.first and folder.path.exists():  # it owns nothing, and makes no folder anew either
            stack.enter_context(held(folder.path))
        if config.profile:
            profiling.run(trainer)
            return {}, folder.path
        return trainer.run(), folder.path


def _begin(asked: TrainConfig, processes: int) -> tuple[RunFolder, TrainConfig, bool]:
    folder, config, resumed = begin(asked, processes)
    if not resumed:  # before data is decoded for hours
        check_writable(folder.path / "config.json" if folder.path.exists() else folder.path)
    return folder, config, resumed


@contextmanager
def machine(config: TrainConfig, us: World) -> Iterator[torch.device]:
    """Within: threads, memory and algorithms are as the settings want them; gives this process's device. Afterwards
    threads and algorithms are as before.

    Raises:
        UserError: there is no such device.
    """
    threads = torch.get_num_threads()
    try:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        device = pick_device(us.device(config.device))
        if device.type == "cpu":
            keep_freed_memory()
        with algorithms(device, deterministic=config.deterministic):
            yield device
    finally:
        torch.set_num_threads(threads)  # a checkpoint brings its own


def load_last(folder: RunFolder, us: World) -> tuple[dict | None, Path]:
    """The newest checkpoint that is whole, the same on all ranks, and its file."""
    mine: list[dict | None] = []

    def find() -> tuple[bool, Path]:
        state, newest = checkpoint.load_last(folder, whole)
        mine.append(state)
        return state is not None, newest

    there, newest = us.of_first(find)
    return (mine[0] if mine else checkpoint.load(newest) if there else None), newest


def load_data(config: TrainConfig, asked: TrainConfig) -> Dataset:
    """The data set of a run.

    Raises:
        UserError: it cannot be loaded; of a resumed run the line says how to name another place.
    """
    try:
        return load_dataset(
            config.dataset,
            config.data_dir,
            download=config.download,
            progress=config.progress,
            cache=config.cache_dir,
            reading=config.reading,
        )
    except UserError as error:
        if asked.resume is None or "data_dir" in asked.given or asked.data_dir != TrainConfig.data_dir:
            raise
        raise UserError(
            f"{error}; the run was begun with --data-dir {config.data_dir}: where its data lies elsewhere, "
            "as seen from here, name the folder with --data-dir"
        ) from error


@contextmanager
def _told_how_to_go_on(folder: RunFolder) -> Iterator[None]:
    """A signal that comes while a run is there, but not in its loop, ends it like one in the loop.

    Raises:
        Stopped: it came.
    """
    try:
        yield
    except Interrupted as stop:
        if (folder.path / "config.json").is_file():
            raise Stopped(stop.signum, folder.path) from stop
        raise
