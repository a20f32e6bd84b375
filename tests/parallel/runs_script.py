"""Whole trainings on two gloo ranks, run by `test_runs.py`: as a script with RANK, WORLD_SIZE, ... set."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from apart_fast.errors import SaidElsewhere, Stopped, UserError
from apart_fast.parallel.world import World, world
from apart_fast.runs.config import TrainConfig
from apart_fast.training import execution
from apart_fast.training.run import train
from apart_fast.training.trainer import Trainer

SETTINGS = dict(
    dataset="folder", width=0.0625, batch_size=8, val_images=12, probe_images=6, epochs=2, lr=0.05, device="cpu",
    progress=False, checkpoint_every=1,
)  # fmt: skip
STOPPED_AT = 7  # of 5 + 5 steps
VARIANTS = {
    "float16": dict(amp=True, amp_dtype="float16", epochs=1),
    "ema": dict(amp=True, ema=0.9, epochs=1, omega_device="host"),
    "compiled": dict(compile=True),
    "accumulated": dict(grad_accum=2, epochs=1),
    "disk": dict(epochs=1, omega_device="disk", loader="dataloader", workers=0, method="atta-1"),
}


def stopped(config: TrainConfig, us: World) -> None:
    """Let rank 1 alone be asked to stop in mid-epoch."""
    step = Trainer.step

    def told(trainer: Trainer, batch) -> None:
        step(trainer, batch)
        if trainer.global_step + 1 == STOPPED_AT and us.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    Trainer.step = told
    try:
        train(config, us)
    except Stopped as stop:
        assert stop.code == 128 + signal.SIGTERM
    else:
        raise AssertionError("went on")
    finally:
        Trainer.step = step


def compile_without_a_compiler() -> None:
    """The same graphs as with inductor, run as they are."""
    compile_ = nn.Module.compile
    nn.Module.compile = lambda self, **options: compile_(self, backend="aot_eager", **options)
    execution.compiler_fault = lambda device: None


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    compile_without_a_compiler()
    with world("cpu") as us:
        config = TrainConfig(data_dir=folder / "images", **SETTINGS)
        train(replace(config, out=folder / "whole"), us)
        stopped(replace(config, out=folder / "stopped"), us)
        us.meet()
        if us.first:
            (folder / "stopped-at.txt").write_text(str(torch.load(folder / "stopped/last.pt")["progress"]["step"]))
        us.meet()
        train(replace(config, out=folder / "stopped", resume=Path("auto")), us)
        for name, settings in VARIANTS.items():
            train(replace(config, out=folder / name, **settings), us)
        try:
            train(replace(config, out=folder / "whole"), us)
        except UserError as error:
            assert us.first and "already holds a run" in str(error)
        except SaidElsewhere:
            assert not us.first
        else:
            raise AssertionError("a second run in one folder")
        with us.one_line():
            raise UserError("all ranks find the same")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except UserError as error:
        print(f"line: {error}", file=sys.stderr)
    except SaidElsewhere:
        pass
