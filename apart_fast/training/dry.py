"""`train.py --dry-run`: what a long run does, once each, in a folder that is removed again."""

import gc
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch

from apart_fast.errors import UserError
from apart_fast.evaluation.judge import describe
from apart_fast.files import TEMPORARY, lock, remove_abandoned, telling
from apart_fast.graphs import WARM_UP
from apart_fast.loaders import Dataset, subset
from apart_fast.loaders.datasets.derived import FOLDER
from apart_fast.parallel.world import World
from apart_fast.runs.begin import begin
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.folder import RunFolder
from apart_fast.training.execution import PLAIN_STEPS
from apart_fast.training.run import load_data, load_last, machine
from apart_fast.training.trainer import Trainer

NAME = ".dry-run."  # how names of its folders begin
JUDGED = 32  # images, on a CPU
LARGEST_GAP = 0.01  # between the weights after a step and the same step resumed, where bits may differ
ON_DISK = 3  # checkpoints, while one is written


def dry_run(asked: TrainConfig, us: World | None = None) -> None:
    """Take two steps of the training as configured, with a checkpoint between them, go on from that and take the second
    again, and judge a few validation images; says in lines how each went.

    Everything is of its real size (network, omega, batch, checkpoint). All of it lies in a temporary folder where the
    run's own would lie, and nothing is downloaded; files derived from the data are taken where they are there, and made
    in the temporary folder where they are not.

    Raises:
        UserError: what the run itself would refuse.
    """
    us = us or World()
    chosen, config, _ = us.of_first(lambda: begin(asked))
    with ExitStack() as stack:
        place = Path(us.of_first(lambda: str(stack.enter_context(_temporary(chosen.path.parent)))))
        cache = us.of_first(lambda: _cache(config, place / "cache"))
        config = replace(config, out=place / "run", cache_dir=cache, download=False, progress=False)
        stack.enter_context(machine(config, us))
        with us.first_alone("loading"):
            try:
                data = load_data(config, asked)
            except UserError as error:
                raise UserError(f"{error}; a dry run downloads nothing" if asked.download else str(error)) from error
        folder = RunFolder(place / "run")
        us.of_first(lambda: folder.path.mkdir())
        after = _begin(config, folder, data, us)
        _free()  # before the next trainer has as much
        _go_on(config, folder, data, us, after)
    print("nothing was left behind")


def _begin(config: TrainConfig, folder: RunFolder, data: Dataset, us: World) -> dict[str, torch.Tensor]:
    """The weights after the second step."""
    trainer = Trainer(config, folder, data, us=us)
    images, steps = len(trainer.parts.splits.train), len(trainer.loader)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    print(
        f"dry run: {config.method} on {config.dataset}, {images:,} images in {steps:,} steps an epoch; {config.model}, "
        f"{parameters / 1e6:,.3g} M parameters; on {trainer.device}"
    )
    with closing(trainer.loader), closing(trainer.execution):
        _first_step(trainer)
        _keep(trainer)
        seconds = _second_step(trainer)
        after = {name: tensor.cpu().clone() for name, tensor in trainer.model.state_dict().items()}
        _last_step(trainer)
    epoch = seconds * trainer.parts.updates
    print(
        f"step: {seconds:.3g} s; an epoch about {_said(epoch)}, {config.epochs} of them {_said(epoch * config.epochs)}"
    )
    return after


def _free() -> None:
    """What a trainer had, which refers to itself."""
    gc.collect()
    torch.cuda.empty_cache()


def _go_on(config: TrainConfig, folder: RunFolder, data: Dataset, us: World, after: dict[str, torch.Tensor]) -> None:
    """Take the second step again, from the checkpoint, and judge."""
    state, _ = load_last(folder, us)
    trainer = Trainer(config, folder, data, state, us)
    with closing(trainer.loader), closing(trainer.execution):
        _second_step(trainer)
    _compare(after, trainer)
    _judge(trainer, config)


def _first_step(trainer: Trainer) -> None:
    """As many as a CUDA graph needs before it is replayed, and a compiled model before it is compiled."""
    _steps(trainer, max(WARM_UP * trainer.execution.graphed, PLAIN_STEPS * trainer.execution.compiled) + 1)


def _second_step(trainer: Trainer) -> float:
    """Seconds that a step took."""
    began = time.perf_counter()
    _steps(trainer, 1)
    return time.perf_counter() - began


def _last_step(trainer: Trainer) -> None:
    """That of an epoch's smaller last batch: a captured step keeps its memory, and this one needs some beside it."""
    loader = trainer.loader
    if len(loader.split) % trainer.config.batch_size:
        trainer.progress.step = len(loader) - 1
        with closing(loader.epoch(trainer.progress.epoch, start=trainer.progress.step)) as batches:
            for batch in batches:
                trainer.step(batch)
        trainer.totals.loss.item()  # waits for the device


def _steps(trainer: Trainer, count: int) -> None:
    """So many updates of the weights."""
    progress, loader = trainer.progress, trainer.loader
    trainer.model.train()
    while count > 0:
        trainer.start_epoch()
        with closing(loader.epoch(progress.epoch, start=progress.step)) as batches:
            for batch in batches:
                trainer.step(batch)
                progress.step, count = progress.step + 1, count - trainer.between_updates
                if count == 0:
                    break
        if progress.step == len(loader):
            progress.next_epoch(0.0)
    loss = trainer.totals.loss.item()  # waits for the device
    if not math.isfinite(loss):
        raise UserError(f"the loss is {loss} in the first steps: lower --lr, or use bfloat16 or float32")


def _keep(trainer: Trainer) -> None:
    began = time.perf_counter()
    with trainer.keeper as keeper:
        keeper.within_epoch(trainer.progress)
    trainer.us.meet()
    files = [file for file in trainer.folder.path.rglob("*.pt")]
    size, seconds = sum(file.stat().st_size for file in files), time.perf_counter() - began
    free = shutil.disk_usage(trainer.folder.path).free
    print(f"checkpoint: {size / 1e6:,.3g} MB in {seconds:.2g} s; {free / 1e9:,.3g} GB are free there")
    if free < ON_DISK * size:
        print(f"warning: up to {ON_DISK} checkpoints lie there at a time, which need {ON_DISK * size / 1e9:,.3g} GB")


def _compare(after: dict[str, torch.Tensor], resumed: Trainer) -> None:
    """Say whether the second step from the checkpoint gave what it gave before."""
    others = resumed.model.state_dict()
    gaps = [(others[name].cpu().double() - t.double()).norm() for name, t in after.items() if t.is_floating_point()]
    whole = torch.stack([t.double().norm() for t in after.values() if t.is_floating_point()]).norm()
    gap = (torch.stack(gaps).norm() / whole).item()
    compiled = "a compiled model, whose first step is plain"
    inexact = "a GPU" if resumed.device.type != "cpu" else compiled if resumed.execution.compiled else None
    if gap > (0 if inexact is None else LARGEST_GAP):
        print(f"warning: resume: the step after it gave other weights (relative difference {gap:.1g})")
    else:
        same = "the same bits" if not gap else f"the same weights up to {gap:.1g}, as can be on {inexact}"
        print(f"resume: went on from the checkpoint, and the step after it gave {same}")


def _judge(trainer: Trainer, config: TrainConfig) -> None:
    val = trainer.parts.splits.val
    # on a GPU as many as go through at a time: their captured step takes memory beside the training's
    count = trainer.judge.batch_size * trainer.us.size if trainer.device.type == "cuda" else JUDGED
    few, attacks = subset(val, min(count, len(val))), ("clean", "pgd-20")
    began = time.perf_counter()
    report = trainer.judge(few, attacks, torch.bfloat16 if config.amp else None)
    seconds = time.perf_counter() - began
    words = describe({"attacks": {name: vars(result) for name, result in report.attacks.items()}})
    print(
        f"evaluation: {words} on {len(few)} images in {seconds:.2g} s, {len(val):,} in about "
        f"{_said(seconds * len(val) / len(few))}"
    )


def _said(seconds: float) -> str:
    """A time in one word."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s"


@contextmanager
def _temporary(parent: Path) -> Iterator[Path]:
    """A folder in `parent`, which is made if need be; afterwards neither is there that was not before."""
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    with telling(parent):
        parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(parent, f"{NAME}*{TEMPORARY}")
        place = Path(tempfile.mkdtemp(prefix=NAME, suffix=TEMPORARY, dir=parent))
    handle = os.open(place, os.O_RDONLY)
    try:
        lock(handle, place)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        os.close(handle)
        for folder in made:
            with suppress(OSError):  # another process has put something there
                folder.rmdir()


def _cache(config: TrainConfig, place: Path) -> Path:
    """A folder for derived files in which those that are there already are found, and into which new ones go."""
    place.mkdir()
    usual = config.data_dir / FOLDER if config.cache_dir is None else config.cache_dir
    with suppress(OSError):  # there is none
        for file in usual.iterdir():
            if not file.name.startswith("."):
                (place / file.name).symlink_to(file.resolve())
    return place
