"""`apart-fast evaluate`: accuracy of a checkpoint on clean and attacked test images."""

from dataclasses import asdict, replace

import torch

from apart_fast.device import keep_freed_memory, pick_device
from apart_fast.evaluation.judge import describe, evaluate
from apart_fast.files import atomic_write, to_json
from apart_fast.loaders import load_dataset, subset
from apart_fast.loaders.datasets.reading import Reading, reading_of
from apart_fast.runs import checkpoint
from apart_fast.runs.config import EvaluateConfig
from apart_fast.runs.environment import environment
from apart_fast.runs.judged import digest
from apart_fast.runs.outputs import EVALUATION, check_output
from apart_fast.units import parse_eps


def as_trained(config: EvaluateConfig, state: dict) -> Reading:
    """How the data is read: as that of the training was, unless flags say otherwise.

    Args:
        state: the checkpoint.
    """
    asked, known = config.reading, reading_of(state)
    if asked.resizing is not None:
        known = replace(known, resizing=asked.resizing)
    if config.dataset not in (None, state["dataset"]):  # columns are those of one data set
        return replace(asked, resizing=known.resizing)
    return replace(known, **asked.columns)


def run(config: EvaluateConfig) -> None:
    """Judge a checkpoint, print a line and write the report.

    Raises:
        UserError: settings that make no sense, a missing or damaged checkpoint, missing data or other data than it was
            trained on, or a report that cannot be written.
    """
    config.check()
    device = pick_device(config.device)
    out = config.out or config.checkpoint.parent / "evaluation.json"
    state = checkpoint.load(config.checkpoint)
    name = config.dataset or state["dataset"]
    data = load_dataset(
        name,
        config.data_dir,
        download=config.download,
        progress=config.progress,
        cache=config.cache_dir,
        reading=as_trained(config, state),
    )
    data = checkpoint.check_data(state["description"], data, name, config.checkpoint, state.get("classes"))
    check_output(out, EVALUATION, [config.checkpoint])
    if device.type == "cpu":
        keep_freed_memory()
    model = checkpoint.load_network(state, device, config.average, name=config.checkpoint)
    weights = digest(checkpoint.weights_of(state, config.average))
    test = subset(data.test, config.images) if config.images else data.test
    report = evaluate(
        model,
        test.images,
        test.labels,
        eps=parse_eps(config.eps),
        attacks=config.attacks,
        restarts=config.restarts,
        batch_size=config.batch_size,
        seed=config.seed,
        device=device,
        amp=torch.bfloat16 if config.amp else None,
        progress=config.progress,
    )
    print(f"{config.checkpoint}: {describe(asdict(report))}")
    found = {"checkpoint": config.checkpoint, "weights": weights, "dataset": name}
    found |= {**asdict(report), "cautions": report.cautions}
    atomic_write(out, to_json({**found, "environment": environment()}))
    print(f"report: {out}")
