"""A whole run from its settings: what `train.py` does."""

from pathlib import Path

import torch

from apart_fast.device import keep_freed_memory, pick_device
from apart_fast.loaders import load_dataset
from apart_fast.measure import profiling
from apart_fast.runs import checkpoint
from apart_fast.runs.begin import begin
from apart_fast.runs.config import TrainConfig
from apart_fast.training.algorithms import algorithms
from apart_fast.training.trainer import Trainer


def train(config: TrainConfig) -> tuple[dict, Path]:
    """Train as configured, or go on with `config.resume`; returns (summary, run folder). With `config.profile`:
    only measure, and return an empty summary.

    Raises:
        UserError, Stopped: see `Trainer.run`.
    """
    state, resumed = None, config.resume is not None
    folder, config = begin(config)
    if resumed and folder.last.exists():  # killed before the first checkpoint: from the beginning
        state = checkpoint.load(folder.last)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = pick_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    with algorithms(device, deterministic=config.deterministic):
        data = load_dataset(
            config.dataset,
            config.data_dir,
            download=config.download,
            progress=config.progress,
            cache=config.cache_dir,
        )
        trainer = Trainer(config, folder, data, state)
        state = None  # its omega would stay in memory
        if not resumed:
            folder.create(config)  # last: what cannot run leaves no folder
        if config.profile:
            profiling.run(trainer)
            return {}, folder.path
        return trainer.run(), folder.path
