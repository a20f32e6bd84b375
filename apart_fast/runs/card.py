"""The model card of a run (Mitchell et al. 2019, arXiv 1810.03993): what the weights are, and how far to trust them."""

import hashlib
from dataclasses import asdict
from pathlib import Path

from apart_fast.evaluation.caution import cautions
from apart_fast.runs import checkpoint
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.folder import RunFolder
from apart_fast.runs.judged import fitting
from apart_fast.runs.reading import Run
from apart_fast.runs.unused import unused
from apart_fast.step.methods import get_method

SETTINGS = (
    *("recipe", "epochs", "cycle", "schedule", "batch_size", "grad_accum", "lr", "weight_decay", "label_smoothing"),
    *("ema", "amp", "seed"),
)


def write_card(folder: RunFolder, config: TrainConfig) -> Path:
    """Write card.json of a finished run, with the figures of evaluation.json where there is one.

    Raises:
        UserError: the run is not finished, one of its files is damaged, or the folder cannot be written.
    """
    run = Run.of(folder, config)
    summary = run.summary
    further = _further(folder, config.dataset) if run.evaluation else None
    method, idle = get_method(config.method), unused(config)
    card = {
        "model": {
            "architecture": summary["model"],
            "parameters": summary["parameters"],
            "input": "pixels in [0, 1], float [B, C, H, W]; any normalisation is inside the model",
            "files": {file.name: _sha256(file) for file in (folder.last, folder.best) if file.is_file()},
        },
        "intended_use": "research on adversarial robustness; not a safety component",
        "training": {
            "dataset": config.dataset,
            "images": config.train_images,
            "method": asdict(method),
            # where it lay is nobody's business
            "init_from": None if config.init_from is None else config.init_from.name,
            "eps": config.eps if method.steps else None,
            "passes_per_step": method.passes,
            "seconds": summary["train_seconds"],
            "omega_bytes": summary["memory_bytes"],
            "collapsed_at_epochs": summary["collapsed_at"] if config.probe_images else None,  # None: nobody looked
            **{name: getattr(config, name) for name in SETTINGS if name not in idle},
        },
        "evaluation": {
            "threat_model": f"L-inf ball of radius {config.eval_eps}, white-box",
            "selection": f"best.pt: epoch {summary['best']['epoch']}, chosen by {summary['best']['by']}",
            "test": summary.get("test", {}),
            "further": further,
        },
        "caveats": [
            *_cautions(summary.get("test"), further or {}),
            "accuracy under PGD is an upper bound of the robust accuracy; AutoAttack is tighter where it was run",
            "nothing is known about other norms, larger radii or other data",
        ],
        "environment": run.environment or None,
    }
    return folder.write("card.json", card)


def _further(folder: RunFolder, dataset: str) -> dict | None:
    """evaluation.json, if it is of weights that are there."""
    states = [checkpoint.load(file) for file in (folder.last, folder.best) if file.is_file()]
    networks = [weights for state in states for weights in (state["model"], state.get("average")) if weights]
    return fitting(folder, networks, dataset)


def _cautions(test: object, evaluation: dict) -> list[str]:
    """A line for each figure that must not be quoted."""
    named = {f"test, {which} weights": report for which, report in test.items()} if isinstance(test, dict) else {}
    lines = [
        f"{name}: {line}" for name, report in {**named, "evaluation": evaluation}.items() for line in cautions(report)
    ]
    return lines


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
