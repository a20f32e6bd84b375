"""Finished runs as series of checkpoints: what every analysis reads."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from apart_fast.analysis.settings import Common
from apart_fast.errors import UserError
from apart_fast.loaders import Dataset, Split, load_dataset, subset
from apart_fast.models import build_model
from apart_fast.runs import checkpoint
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.folder import RunFolder


@dataclass(frozen=True)
class Series:
    """A finished run.

    Attributes:
        name: of the folder, unique among the runs read together.
        config: its settings.
        records: lines of metrics.jsonl, one for each epoch.
        weights: epoch (from 1) -> file, for the kept epochs, in order.
    """

    name: str
    folder: RunFolder
    config: TrainConfig
    records: list[dict]
    weights: dict[int, Path] = field(default_factory=dict)

    def model(self, epoch: int, device: torch.device) -> nn.Module:
        """The network after `epoch`, in eval mode, channels-last."""
        return load_network(self.weights[epoch], device)


def load_network(path: Path, device: torch.device) -> nn.Module:
    """The network of a checkpoint (averaged weights where it has them), in eval mode, channels-last.

    Raises:
        UserError: missing or damaged file.
    """
    state = checkpoint.load(path)
    model = build_model(**state["description"]).to(device, memory_format=torch.channels_last)
    checkpoint.load_model(model, state.get("average") or state["model"], path)
    return model.eval()


def open_series(paths: Sequence[Path], *, weights: bool) -> list[Series]:
    """Read run folders.

    Args:
        paths: folders of finished runs, all on one data set.
        weights: whether the weights of epochs are needed (`--keep-weights`).

    Raises:
        UserError: not a run, unfinished, no kept weights, or runs on different data sets.
    """
    if not paths:
        raise UserError("no runs: name one or more run folders")
    series = []
    for path in paths:
        folder, config = RunFolder.open(path)
        folder.summary()  # refuses an unfinished run
        kept = folder.kept_weights()
        if weights and not kept:
            raise UserError(f"{path} kept no weights of its epochs: train it with --keep-weights 1")
        series.append(Series(path.name or str(path), folder, config, folder.metrics(), kept))
    names = [one.name for one in series]
    if len(set(names)) < len(names):  # same folder name in different places
        series = [Series(str(p), s.folder, s.config, s.records, s.weights) for p, s in zip(paths, series, strict=True)]
    for one in series[1:]:
        if one.config.dataset != series[0].config.dataset:
            raise UserError(
                f"{one.name} was trained on {one.config.dataset}, {series[0].name} on {series[0].config.dataset}: "
                "compare runs on one data set"
            )
    return series


def judged_data(config: Common, series: Sequence[Series]) -> tuple[Dataset, Split]:
    """(data set of the runs, a fixed subset of `config.images` of its test images).

    Raises:
        UserError: missing or damaged data, or a run whose network is for other classes or images.
    """
    name = series[0].config.dataset
    data = load_dataset(name, config.data_dir, download=config.download, progress=config.progress)
    for one in series:
        checkpoint.check_data(one.folder.summary().get("model"), data, name, one.folder.path)
    return data, subset(data.test, min(config.images, len(data.test)))
