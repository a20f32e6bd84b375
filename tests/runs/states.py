"""States of checkpoints, without a training."""

import torch

from apart_fast.models import build_model

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
