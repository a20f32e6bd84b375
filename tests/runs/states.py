"""States of checkpoints, and files of runs, without a training."""

import json

import torch

from apart_fast.files import to_json
from apart_fast.models import build_model
from apart_fast.runs.config import TrainConfig

DESCRIPTION = {
    "name": "preact_resnet18",
    "num_classes": 3,
    "in_channels": 3,
    "image_size": (12, 12),
    "width": 0.0625,
    "normalize": None,
}
ABOUT = {"description": DESCRIPTION, "classes": ["circle", "cross", "square"], "dataset": "folder", "method": "apart"}


def weights(**model):
    """As best.pt; `model`: tensors in place of a network's."""
    return {"kind": "weights", "model": model or build_model(**DESCRIPTION).state_dict(), **ABOUT, "epoch": 1}


def training(**model):
    """As last.pt."""
    progress = {"epoch": 1, "step": 0, "seconds": 1.5, "best_accuracy": 0.5, "best_epoch": 1, "best_by": "probe"}
    return {
        **weights(**model),
        "kind": "training",
        "average": None,
        "optimizer": [torch.ones(3)],
        "apart": {"step_sizes": torch.ones(3), "memory": torch.zeros(4, 2, 2, 3, dtype=torch.float16)},
        "scaler": None,
        "progress": {**progress, "epoch_seconds": 0.0, "epoch_joules": 0.0, "peak_gpu_bytes": 0},
        "watch": {"best": 0.5, "collapsed": False, "epochs": []},
        "totals": torch.zeros(4, dtype=torch.float64),
        "threads": 1,
        "data": "0123",
        "rng": {"cpu": torch.get_rng_state(), "cuda": None},
    }


def write_run(folder):
    """The JSON files of a finished run that never was."""
    folder.mkdir()
    (folder / "config.json").write_text(to_json(TrainConfig(out=folder, dataset="folder")))
    attacks = {"clean": {"accuracy": 0.5, "low": 0.4, "high": 0.6, "n": 10, "correct": 5}}
    judged = {"n": 10, "eps": 0.03, "attacks": attacks}
    summary = {
        "method": "apart",
        "epochs": 2,
        "parameters": 7,
        "collapsed_at": [],
        "test": {"last": judged, "best": judged},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = [{"epoch": i, "loss": 1.0, "alpha_blocks": [0.1, 0.2]} for i in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "evaluation.json").write_text(json.dumps({"checkpoint": "best.pt", "dataset": "folder", **judged}))
    for name in ("environment.json", "card.json"):
        (folder / name).write_text('{"a": {"b": [1, "c"]}}')
    return folder
