"""Runs with a checkpoint and a card, without a training."""

import json

import torch

from apart_fast.models import build_model
from apart_fast.runs import checkpoint
from apart_fast.runs.card import write_card
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.folder import RunFolder
from tests.runs.states import DESCRIPTION, training, weights, write_run

STATISTICS = ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def trained(seed=0, **description):
    """State of a network whose statistics are not those of a new one."""
    torch.manual_seed(seed)
    model = build_model(**{**DESCRIPTION, **description})
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return model.state_dict()


def judged(clean, pgd, n=200):
    def result(accuracy):
        low, high = accuracy - 0.05, accuracy + 0.05
        return {"accuracy": accuracy, "correct": round(accuracy * n), "n": n, "low": low, "high": high}

    return {"n": n, "eps": 8 / 255, "attacks": {"clean": result(clean), "pgd-20": result(pgd)}}


def make_run(folder, data_dir, dataset="folder", classes=("circle", "cross", "square"), **description):
    """The folder of a finished run: best.pt and last.pt of different weights, and a card of both."""
    description = {**DESCRIPTION, "normalize": STATISTICS, **description, "num_classes": len(classes)}
    about = {"description": description, "dataset": dataset, "classes": list(classes)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_run(folder)
    config = TrainConfig(out=folder, dataset=dataset, data_dir=data_dir)
    (folder / "config.json").write_text(json.dumps(vars(config), default=str))
    best = {**weights(**trained(**description)), **about}
    last = {**training(**trained(1, **description)), **about}
    last["average"] = trained(2, **description)
    checkpoint.save(folder / "best.pt", best)
    checkpoint.save(folder / "last.pt", last)
    summary = json.loads((folder / "summary.json").read_text())
    summary |= {"model": description, "train_seconds": 1.5, "memory_bytes": 8, "best": {"epoch": 1, "by": "probe"}}
    summary["test"] = {"last": judged(0.8, 0.4), "best": judged(0.75, 0.5)}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "evaluation.json").unlink()
    (folder / "environment.json").write_text(json.dumps({"command": "python train.py --data-dir /home/me/secret"}))
    write_card(RunFolder(folder), config)
    return folder


def pixels(n=5, size=(12, 12), channels=3, seed=0):
    return torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(seed))


def listing(folder):
    """All that lies in a folder, hidden things too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
