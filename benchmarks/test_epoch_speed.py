"""A whole epoch of the training loop, against the bare passes of all its steps."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from apart_fast.loaders import Dataset, Split
from apart_fast.measure.interleave import interleave
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.folder import RunFolder
from apart_fast.training.trainer import Trainer
from benchmarks.conftest import Rival
from benchmarks.steps import CLASSES, C, Floor, H, W, make_problem, prepared, settings

CUDA = torch.cuda.is_available()
IMAGES, WIDTH, ROUNDS = (50_000 // 128 * 128, 1.0, 3) if CUDA else (1024, 0.25, 5)
FLOOR = "bare passes of an epoch"
NAMES = {
    "apart, resident": (Rival(FLOOR, 1.0),),
    "apart, ffcv": (Rival("apart, resident"), Rival(FLOOR, 1.0)),
    "standard, resident": (Rival("apart, resident"),),
}
HERE = [name for name in NAMES if find_spec("ffcv") or "ffcv" not in name]


@pytest.fixture(scope="module")
def epochs(tmp_path_factory):
    setting = replace(settings()[0], width=WIDTH)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES + 16, H, W, C), dtype=torch.uint8, generator=generator)
    labels = torch.arange(IMAGES + 16) % CLASSES
    cache = tmp_path_factory.mktemp("data")
    train = Split(images, labels, "random", cache)
    data = Dataset("random", train, train.take(labels[:16].numpy()), [str(i) for i in range(CLASSES)], flip=True)
    trainers = {}
    for name in HERE:
        method, loader = name.split(", ")
        config = TrainConfig(
            method=method, loader=loader, width=WIDTH, batch_size=setting.batch, amp=setting.amp is not None,
            val_images=16, workers=1, progress=False, device=setting.device,
        )  # fmt: skip
        config.check()
        trainers[name] = Trainer(config, RunFolder(tmp_path_factory.mktemp("run")), data)

    def run(trainer: Trainer) -> None:
        trainer.model.train()
        for batch in trainer.loader.epoch(0):
            trainer.step(batch)
        loss, *_ = trainer.totals.values.tolist()
        assert loss == loss

    problem = make_problem(setting)
    floor = Floor(problem)
    bare = {"pass 1": floor.pass1, "pass 2": lambda: floor.pass2(train=True)}
    runs = {name: lambda trainer=trainer: run(trainer) for name, trainer in trainers.items()}
    runs |= prepared(bare, setting.device)
    timings = interleave(runs, rounds=ROUNDS, device=setting.device)
    for trainer in trainers.values():
        trainer.loader.close()
    steps = IMAGES // setting.batch
    return timings.with_sum(FLOOR, {"pass 1": steps, "pass 2": steps})


@pytest.mark.parametrize("name", NAMES)
def test_epoch(epochs, name, record):
    if name not in HERE:
        pytest.skip("ffcv is not installed")
    record(epochs, name, *NAMES[name], group=f"epoch of {IMAGES:,} images, width {round(64 * WIDTH)}, batch 128")
