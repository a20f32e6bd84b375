"""Data larger than memory: what a training on it keeps in memory, and how long it waits for a cold disk.

    python benchmarks/large_data.py --data-dir data --work /tmp/large --out benchmarks/results/large-data/cpu.json

Pictures of several GB (as they are decoded) are made from those of a data set: enlarged, shifted and mirrored. A
process for each measurement: the conversion of the pictures, and a short training by each loader, with its file dropped
from the system's cache (`posix_fadvise`). Memory is sampled every 10 ms: `anonymous` is the process's own, `file` are
pages of mapped files, which the system takes back as it needs them. How much came from the disk is told by
`/proc/self/io`.
"""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a script finds only the files beside it

from apart_fast.device import keep_freed_memory  # noqa: E402
from apart_fast.files import atomic_write, expand_paths, to_json  # noqa: E402
from apart_fast.loaders import Split, load_dataset, make_loader, take_validation  # noqa: E402
from apart_fast.loaders.datasets.fingerprints import digest  # noqa: E402
from apart_fast.loaders.datasets.mapped import ImageFile  # noqa: E402
from apart_fast.loaders.datasets.splits import Kept  # noqa: E402
from apart_fast.measure.interleave import spread  # noqa: E402
from apart_fast.runs.config import TrainConfig  # noqa: E402
from apart_fast.runs.environment import environment  # noqa: E402
from apart_fast.runs.folder import RunFolder  # noqa: E402

TEST = 50  # one test picture for so many training pictures
MANY = (500_000, 2_000_000)  # images of one pixel, to see what each takes besides its pixels
FIRST = 3  # steps that are not counted: compilation, and the first batches


@dataclass
class Config:
    """Measure trainings on data of several GB."""

    out: Path
    """JSON file for the figures."""
    work: Path
    """Folder for what is made: pictures, decoded images, omega; it stays."""
    dataset: str = "cifar10"
    """The pictures that the large ones are made from."""
    data_dir: Path = Path("data")
    """Where they lie."""
    gigabytes: tuple[float, ...] = (1.5, 3.0)
    """Bytes of decoded training images, in GB, ascending."""
    size: int = 96
    """Height and width of the images made."""
    loaders: tuple[str, ...] = ("ffcv", "dataloader")
    """Those to measure."""
    method: str = "apart"
    """Of the training; omega lies on disk, as int8."""
    width: float = 0.25
    """Of PreActResNet-18."""
    batch_size: int = 32
    """Images in a step."""
    steps: int = 60
    """Steps that are counted."""


def root(config: Config, gigabytes: float) -> Path:
    """The folder of a data set of such a size."""
    return config.work / f"{gigabytes:g}GB-{config.size}"


def make(config: Config, gigabytes: float, whole: Path | None) -> None:
    """Make the pictures, each class with as many; what `whole` has already is linked."""
    folder = root(config, gigabytes)
    if (folder / "done").exists():
        return
    source = load_dataset(config.dataset, config.data_dir, cache=config.work / "source")
    count = int(gigabytes * 1e9) // (config.size**2 * 3)
    for part, split, number in (("train", source.train, count), ("test", source.test, count // TEST)):
        order = np.argsort(split.labels.numpy(), kind="stable").reshape(len(source.classes), -1).T.reshape(-1)
        for label in source.classes:
            (folder / part / label).mkdir(parents=True, exist_ok=True)
        for i in range(number):
            row = int(order[i % len(order)])
            name = Path(part, source.classes[int(split.labels[row])], f"{i:07}.jpg")
            if whole is not None:
                os.link(whole / name, folder / name)
            else:
                _variant(split.images[row].numpy(), i, config.size).save(folder / name, quality=90)
    (folder / "done").touch()


def _variant(pixels: np.ndarray, number: int, size: int) -> Image.Image:
    """The picture enlarged, shifted by up to an eighth (mirrored at its edges); every other one is mirrored."""
    random = np.random.default_rng(number)
    edge = size // 8
    large = np.asarray(Image.fromarray(pixels.squeeze()).convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
    padded = np.pad(large, ((edge, edge), (edge, edge), (0, 0)), mode="reflect")
    top, left = random.integers(0, 2 * edge + 1, 2)
    shifted = padded[top : top + size, left : left + size]
    return Image.fromarray(shifted[:, ::-1] if number % 2 else shifted)


# ---------------------------------------------------------------------------------------------------------------------
# in a process of its own


class Memory:
    """The most that this process and those it started had in memory since `clear`, in bytes."""

    def __init__(self) -> None:
        self.clear()
        self._mine = _read(Path("/proc/self/cmdline"))
        threading.Thread(target=self._run, daemon=True).start()

    def clear(self) -> None:
        """Forget what was."""
        self.anonymous = self.file = self.helpers = 0

    def _run(self) -> None:
        while True:
            now = _status(os.getpid())
            self.anonymous, self.file = max(self.anonymous, now["RssAnon"]), max(self.file, now["RssFile"])
            # of threads too; a child that has not become another program yet still shares this one's pages
            children = [c for t in Path("/proc/self/task").iterdir() for c in _read(t / "children").split()]
            others = [int(child) for child in children if _read(Path("/proc", child, "cmdline")) != self._mine]
            self.helpers = max(self.helpers, sum(_status(child).get("RssAnon", 0) for child in others))
            time.sleep(0.01)

    def found(self) -> dict[str, int]:
        """For the report."""
        return {"anonymous": self.anonymous, "file": self.file, "anonymous_of_helpers": self.helpers}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the process has ended
        return ""


def _status(process: int) -> dict[str, int]:
    lines = _read(Path(f"/proc/{process}/status")).splitlines()
    return {
        name: 1024 * int(value.split()[0])
        for name, _, value in (line.partition(":") for line in lines)
        if "Rss" in name
    }


def _read_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


@contextmanager
def _timed(into: dict, name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    into[name] = time.perf_counter() - began


def convert(config: Config, gigabytes: str) -> dict:
    """Decode the pictures, and convert them for FFCV."""
    memory, found = Memory(), {}
    with _timed(found, "decoding_seconds"):
        data = load_dataset("folder", root(config, float(gigabytes)))
    found |= {"images": len(data.train), "image_bytes": data.train.nbytes, "decoding": memory.found()}
    if "ffcv" in config.loaders:
        memory.clear()
        train, _ = take_validation(data.train, TrainConfig.val_images)
        with _timed(found, "ffcv_seconds"):
            make_loader("ffcv", train, batch_size=config.batch_size, seed=0).close()
        found["ffcv"] = memory.found()
    return found


def train(config: Config, gigabytes: str, loader: str) -> dict:
    """Some steps, as `train.py` does them."""
    from apart_fast.training.trainer import Trainer  # after the settings are read

    memory, found = Memory(), {}
    keep_freed_memory()  # as a training does
    time.sleep(0.1)
    before = memory.found()["anonymous"]
    settings = TrainConfig(
        dataset="folder", data_dir=root(config, float(gigabytes)), loader=loader, method=config.method,
        width=config.width, batch_size=config.batch_size, omega_device="disk", omega_dtype="int8", device="cpu",
        progress=False, out=config.work / "run",
    )  # fmt: skip
    with _timed(found, "start_seconds"):
        data = load_dataset(settings.dataset, settings.data_dir)
        trainer = Trainer(settings, RunFolder(settings.out), data)
    trainer.model.train()
    found |= {"images": len(data.train), "anonymous_before": before, "until_the_first_step": memory.found()}
    memory.clear()
    waits, steps, begun = [], [], 0
    with closing(trainer.loader.epoch(0)) as batches:
        for i in range(FIRST + config.steps):
            if i == FIRST:
                begun = _read_bytes()
            began = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter()
            trainer.step(batch)
            waits.append(waited - began)
            steps.append(time.perf_counter() - waited)
    trainer.loader.close()
    needed = config.steps * config.batch_size * data.train.store[0].nbytes
    return found | {
        "training": memory.found(),
        "first_wait_seconds": waits[0],
        "wait_seconds": asdict(spread(waits[FIRST:])),
        "longest_wait_seconds": max(waits[FIRST:]),
        "step_seconds": asdict(spread(steps[FIRST:])),
        "wait_share": sum(waits[FIRST:]) / sum(waits[FIRST:] + steps[FIRST:]),
        "bytes_of_batches": needed,
        "bytes_from_disk": _read_bytes() - begun,  # omega's rows among them
    }


def count(config: Config, images: str, loader: str) -> dict:
    """What is kept of each image besides its pixels, with images of one pixel."""
    folder, memory, n = config.work / "many", Memory(), int(images)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{n}.npy", np.zeros((n, 1, 1, 1), np.uint8))
    file, labels = ImageFile(folder / f"{n}.npy"), torch.arange(n) % 10
    known = Kept(f"{n:032}", digest(labels.numpy()))
    time.sleep(0.1)
    before = memory.anonymous
    split, _ = take_validation(Split(file.images, labels, "many", folder, None, file, known), TrainConfig.val_images)
    options = dict(batch_size=128, seed=0, padding=0, flip=True, progress=False)
    make_loader(loader, split, **options).close()  # converts
    memory.clear()
    with make_loader(loader, split, **options) as made, closing(made.epoch(0)) as batches:
        for _ in range(FIRST):
            next(batches)
        time.sleep(0.1)
    return {"images": n, "anonymous": memory.anonymous - before}


# ---------------------------------------------------------------------------------------------------------------------


def drop(folder: Path) -> None:
    """Take decoded images out of the system's cache."""
    os.sync()
    for path in [*folder.glob("*.npy"), *folder.glob("*.beton")]:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(config: Config, *words: str) -> dict:
    """What `convert` or `train` finds in a process of its own."""
    settings = json.dumps(asdict(config), default=str)
    done = subprocess.run([sys.executable, __file__, "--inner", settings, *words], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{words} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def inner(settings: str, what: str, *rest: str) -> dict:
    """The work of such a process."""
    values = json.loads(settings)
    for name in ("out", "work", "data_dir"):
        values[name] = Path(values[name])
    return {"convert": convert, "train": train, "count": count}[what](Config(**values), *rest)


def main(config: Config) -> dict:
    """Make, measure, write and return the figures."""
    sizes = sorted(config.gigabytes)
    for gigabytes in reversed(sizes):
        make(config, gigabytes, None if gigabytes == sizes[-1] else root(config, sizes[-1]))
    found: dict = {"settings": asdict(config), "conversions": {}, "trainings": {}, "bytes_for_each_image": {}}
    for gigabytes in sizes:
        found["conversions"][f"{gigabytes:g} GB"] = measure(config, "convert", str(gigabytes))
    for gigabytes, loader in itertools.product(sizes, config.loaders):
        drop(root(config, gigabytes) / ".apart_fast")
        found["trainings"][f"{gigabytes:g} GB, {loader}"] = measure(config, "train", str(gigabytes), loader)
    for loader in config.loaders:
        few, many = (measure(config, "count", str(n), loader) for n in MANY)
        found["bytes_for_each_image"][loader] = (many["anonymous"] - few["anonymous"]) / (
            many["images"] - few["images"]
        )
    found["environment"] = environment()
    atomic_write(config.out, to_json(found))
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inner"]:
        print(json.dumps(inner(*sys.argv[2:])))
    else:
        print(to_json(main(expand_paths(tyro.cli(Config, description=__doc__)))))
