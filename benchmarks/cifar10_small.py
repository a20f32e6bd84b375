"""The robustness drop seen and beaten on real CIFAR-10 at a size that two CPU cores finish in a quarter of an hour.

    python benchmarks/cifar10_small.py --data-dir data

Trains FGSM and APART on 12,000 images with PreActResNet-18 of a quarter of the width for 30 epochs each, judges the
last weights with PGD-20 on 1,000 test images, and gathers curves and JSON in `--out`. A finished run is not repeated,
an unfinished one goes on where it was.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import tyro

from apart_fast import pictures
from apart_fast.config import TrainConfig
from apart_fast.files import atomic_write
from apart_fast.records import RunFolder, to_json
from apart_fast.trainer import train

KEPT = ("config.json", "environment.json", "metrics.jsonl", "summary.json", "perturbations.png")


@dataclass
class Config:
    """FGSM collapses, APART does not: both trained at a reduced size on CIFAR-10."""

    data_dir: Path = Path("data")
    """Where CIFAR-10 lies, or is downloaded to."""
    runs: Path = Path("runs/cifar10-small")
    """Folder of the runs."""
    out: Path = Path("benchmarks/results/cifar10-small")
    """Where what is worth keeping goes."""
    methods: tuple[str, ...] = ("apart", "fgsm")
    """Methods to train."""
    seeds: tuple[int, ...] = (0,)
    """Seeds to train each of them with."""


def main(config: Config) -> None:
    curves, table = {}, {}
    for method in config.methods:
        for seed in config.seeds:
            name = f"{method}-{seed}"
            folder = config.runs / name
            if not (folder / "summary.json").is_file():
                new = TrainConfig(
                    data_dir=config.data_dir,
                    method=method,
                    seed=seed,
                    amp=True,
                    width=0.25,
                    train_images=12_000,
                    test_images=1000,
                    val_every=3,
                    out=folder,
                )
                begun = (folder / "config.json").is_file()
                train(TrainConfig(data_dir=config.data_dir, resume=folder) if begun else new)
            curves[name] = RunFolder(folder).metrics()
            summary = json.loads((folder / "summary.json").read_text())
            last = summary["test"]["last"]["attacks"]
            table[name] = {
                "collapsed_at": summary["collapsed_at"],
                "best_val_pgd20": max(r["val_pgd20"] for r in curves[name] if "val_pgd20" in r),
                "test_clean": last["clean"],
                "test_pgd20": last["pgd-20"],
                "train_seconds": summary["train_seconds"],
            }
            (config.out / name).mkdir(parents=True, exist_ok=True)
            for file in KEPT:
                shutil.copyfile(folder / file, config.out / name / file)
    pictures.curves(curves, config.out / "curves.png")
    atomic_write(config.out / "summary.json", to_json(table))
    for name, row in table.items():
        print(f"{name}: clean {row['test_clean']['accuracy']:.1%}, PGD-20 {row['test_pgd20']['accuracy']:.1%}", end="")
        print(f", collapsed at epochs {row['collapsed_at']}" if row["collapsed_at"] else ", no collapse")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
