"""Loaders: a pass over 50,000 images of 32x32 without training, and how long a training step waits for its batch."""

import os
import time
from importlib.util import find_spec

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from apart_fast.loaders import LOADERS, Split, make_loader
from apart_fast.measure.interleave import Timings, interleave
from benchmarks.conftest import Rival
from benchmarks.steps import C, H, W, engine_step, make_problem, settings

IMAGES, BATCH, CORES = 50_000, 128, os.cpu_count() or 1
PLAIN = "DataLoader, an image at a time"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ALONE = "dataloader, no workers"
NAMES = {
    "resident": (),
    "ffcv": (Rival(ALONE), Rival("dataloader", target=10.0), Rival(PLAIN, target=10.0)),
    ALONE: (Rival(PLAIN),),
    "dataloader": (Rival(PLAIN),),
    PLAIN: (),
}
WAITING_STEPS = 5
WAITING = ("ffcv", "dataloader")


@pytest.fixture(scope="module")
def split():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, H, W, C), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(0, 10, (IMAGES,), generator=generator), "random")


@pytest.fixture(scope="module")
def make(split, tmp_path_factory):
    """make(kind) builds a loader with as many workers as cores, or as told."""
    cache, made = tmp_path_factory.mktemp("beton"), []

    def make(kind: str, workers: int = CORES):
        options = {"cache": cache, "progress": False} if kind == "ffcv" else {}
        made.append(
            make_loader(
                kind, split, batch_size=BATCH, seed=0, device=DEVICE, padding=4, flip=True, workers=workers, **options
            )
        )
        return made[-1]

    if find_spec("ffcv") is None:
        pytest.skip("ffcv is not installed: nothing to compare the other loaders with")
    yield make
    for loader in made:
        loader.close()


class _Images(Dataset):
    """What most training scripts do, without any transform: one image, label and index at a time, torch's collate."""

    def __init__(self, split: Split):
        self.images, self.labels = split.images.numpy(), split.labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int):
        return self.images[i], self.labels[i], i


@pytest.fixture(scope="module")
def loaders(make):
    return {kind: make(kind) for kind in LOADERS} | {ALONE: make("dataloader", 0)}


@pytest.fixture(scope="module")
def passes(loaders, split):
    check_equal_batches(loaders)
    plain = DataLoader(
        _Images(split), batch_size=BATCH, shuffle=True, num_workers=CORES, persistent_workers=True,
        pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
    epochs = {name: 0 for name in loaders}

    def one_pass(name: str) -> None:
        epochs[name] += 1
        for _ in loaders[name].epoch(epochs[name]):
            pass

    def plain_pass() -> None:
        for images, labels in plain:  # the others deliver there
            images.to(DEVICE, non_blocking=True), labels.to(DEVICE, non_blocking=True)

    runs = {name: lambda name=name: one_pass(name) for name in loaders}
    return interleave(runs | {PLAIN: plain_pass}, rounds=9, device=DEVICE)


def check_equal_batches(loaders) -> None:
    """All loaders deliver the same images, labels, indices, crops and flips."""
    epochs = [loader.epoch(0) for loader in loaders.values()]
    for _, batches in zip(range(3), zip(*epochs, strict=False), strict=False):
        for batch in batches[1:]:
            assert torch.equal(batch.images[batch.rows], batches[0].images[batches[0].rows])
            for name in ("labels", "indices", "offsets", "flips"):
                assert torch.equal(getattr(batch, name), getattr(batches[0], name))
    for epoch in epochs:
        epoch.close()


@pytest.mark.parametrize("name", NAMES)
def test_loader(passes, name, record):
    record(passes, name, *NAMES[name], group=f"a pass over {IMAGES:,} images, batch {BATCH}, {CORES} workers")


@pytest.fixture(scope="module", params=settings()[:1], ids=str)
def waiting(request, loaders):
    """Seconds that `next` takes while an APART step runs after each."""
    setting = request.param
    step = engine_step(make_problem(setting), "apart")
    for _ in range(5 if setting.device == "cuda" else 0):  # until the graph is captured
        step()
    waits, seconds = {}, {}
    for kind in WAITING:
        batches = loaders[kind].epoch(0)
        waits[kind], seconds[kind] = [], []
        for i in range(WAITING_STEPS + 2):
            began = time.perf_counter()
            next(batches)
            waited = time.perf_counter()
            step()
            if setting.device == "cuda":
                torch.cuda.synchronize()
            if i >= 2:  # the first batches wait for ffcv's compilation and the workers' start
                waits[kind].append(waited - began)
                seconds[kind].append(time.perf_counter() - waited)
        batches.close()
    return Timings({f"wait for {k}": v for k, v in waits.items()} | {f"step after {k}": v for k, v in seconds.items()})


@pytest.mark.parametrize("kind", WAITING)
def test_waiting(waiting, kind, record, request):
    group = f"waiting for the loader, {request.node.callspec.params['waiting']}"
    record(waiting, f"wait for {kind}", Rival(f"step after {kind}", target=100.0), group=group)
