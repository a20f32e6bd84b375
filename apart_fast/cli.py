"""The command line: `apart-fast train | evaluate | analyze | report | demo`, and `python train.py`."""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Union

import torch
import tyro

from apart_fast import evaluate as judge
from apart_fast import report
from apart_fast.analysis import collapse, curves, gradients, perturbations
from apart_fast.demo import DemoConfig
from apart_fast.demo import run as demo
from apart_fast.device import keep_freed_memory, pick_device
from apart_fast.errors import UserError
from apart_fast.evaluation.judge import describe
from apart_fast.files import NO_ROOM, atomic_write, check_writable, to_json
from apart_fast.loaders import load_dataset, subset
from apart_fast.models import build_model
from apart_fast.runs import checkpoint
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.environment import environment
from apart_fast.runs.recipes import RECIPES
from apart_fast.training import trainer
from apart_fast.training.trainer import Stopped
from apart_fast.units import parse_eps


@dataclass
class EvaluateConfig:
    """Judge a checkpoint: accuracy on clean and attacked test images, with confidence intervals."""

    checkpoint: tyro.conf.Positional[Path]
    """A best.pt or last.pt of a run."""
    dataset: str | None = None
    """Data set to judge on. None: the one it was trained on."""
    data_dir: Path = Path("data")
    """Where the data lies, or is downloaded to."""
    download: bool = True
    """Download a missing data set."""
    images: int | None = None
    """Judge on a fixed subset of so many test images. None: all of them."""
    attacks: tuple[str, ...] = ("clean", "pgd-20")
    """Any of clean, fgsm, pgd-K, autoattack (needs the extra `autoattack`)."""
    eps: str = "8/255"
    """Radius of the L-inf ball, a fraction of the pixel range; the step is a quarter of it."""
    restarts: int = 1
    """Random starts of PGD."""
    batch_size: int = 256
    """Images attacked at a time."""
    average: bool = True
    """Judge the averaged weights where the checkpoint has them."""
    amp: bool = False
    """Search with fgsm and pgd in bfloat16 (quicker; what holds is still decided in float32)."""
    seed: int = 0
    """Of the random starts."""
    device: str | None = None
    """cuda, cuda:1, cpu, ... None: a GPU if there is one."""
    out: Path | None = None
    """JSON file for the report. None: evaluation.json beside the checkpoint."""
    progress: bool = True
    """Show a progress bar (never shown where the output is not a terminal)."""


def train(config: TrainConfig) -> None:
    summary, folder = trainer.train(config)
    for name, judged in summary.get("test", {}).items():
        print(f"test, {name} weights: {describe(judged)}")
    print(f"run folder: {folder}")


def evaluate(config: EvaluateConfig) -> None:
    if config.images is not None and config.images < 1:
        raise UserError(f"--images {config.images} is too small: give at least 1")
    eps, device = parse_eps(config.eps), pick_device(config.device)
    out = config.out or config.checkpoint.parent / "evaluation.json"
    state = checkpoint.load(config.checkpoint)
    name = config.dataset or state["dataset"]
    data = load_dataset(name, config.data_dir, download=config.download, progress=config.progress)
    checkpoint.check_data(state["description"], data, name, config.checkpoint)
    check_writable(out)
    if device.type == "cpu":
        keep_freed_memory()
    model = build_model(**state["description"]).to(device, memory_format=torch.channels_last)
    weights = (config.average and state.get("average")) or state["model"]
    checkpoint.load_model(model, weights, config.checkpoint)
    test = subset(data.test, config.images) if config.images else data.test
    report = judge(
        model,
        test.images,
        test.labels,
        eps=eps,
        attacks=config.attacks,
        restarts=config.restarts,
        batch_size=config.batch_size,
        seed=config.seed,
        device=device,
        amp=torch.bfloat16 if config.amp else None,
        progress=config.progress,
    )
    print(f"{config.checkpoint}: {describe(asdict(report))}")
    atomic_write(
        out, to_json({"checkpoint": config.checkpoint, "dataset": name, **asdict(report), "environment": environment()})
    )
    print(f"report: {out}")


# name -> (settings, what runs with them), or a group of them: (help, such a table)
ANALYSES: dict[str, tuple] = {
    "collapse": (collapse.CollapseConfig, collapse.run),
    "perturbations": (perturbations.PerturbationsConfig, perturbations.run),
    "curves": (curves.CurvesConfig, curves.run),
    "gradients": (gradients.GradientsConfig, gradients.run),
}
COMMANDS: dict[str, tuple] = {
    "train": (TrainConfig, train),
    "evaluate": (EvaluateConfig, evaluate),
    "analyze": ("What happened in finished runs: pictures (PNG, SVG) and numbers (JSON).", ANALYSES),
    "report": (report.ReportConfig, report.run),
    "demo": (DemoConfig, demo),
}


def guarded(command: Callable[[], None]) -> int:
    """Run a command; bad input becomes one line on stderr and exit code 2."""
    try:
        command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        print(f"error: no space left ({error}): free some space or choose another --out", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError as error:
        print(f"error: out of GPU memory ({str(error).splitlines()[0]}): lower the batch size", file=sys.stderr)
        return 2
    return 0


def train_command(args: list[str] | None = None) -> None:
    """`python train.py`."""
    config = tyro.cli(TrainConfig, args=args, default=_train_defaults(args), prog="train.py" if args is None else None)
    sys.exit(guarded(lambda: train(config)))


def main(args: list[str] | None = None) -> None:
    """`apart-fast`."""
    kinds = _union(COMMANDS, _train_defaults(args))
    config = tyro.cli(kinds, args=args, prog="apart-fast", description="Fast adversarial training.")
    run = next(run for kind, run in _leaves(COMMANDS) if isinstance(config, kind))
    sys.exit(guarded(lambda: run(config)))


def _train_defaults(args: list[str] | None) -> TrainConfig:
    """The settings that the recipe named in `args` starts from."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--recipe")
    try:
        recipe = parser.parse_known_args(args)[0].recipe
    except argparse.ArgumentError:  # tyro says what is wrong
        recipe = None
    return TrainConfig.of(recipe) if recipe in RECIPES else TrainConfig()


def _union(table: dict[str, tuple], default: TrainConfig):
    """The type that tyro makes subcommands of."""
    kinds = []
    for name, (first, second) in table.items():
        if isinstance(second, dict):
            kinds.append(Annotated[_union(second, default), tyro.conf.subcommand(name, description=first)])
        elif first is TrainConfig:
            kinds.append(Annotated[first, tyro.conf.subcommand(name, default=default)])
        else:
            kinds.append(Annotated[first, tyro.conf.subcommand(name)])
    return Union[tuple(kinds)]  # noqa: UP007  (made at run time)


def _leaves(table: dict[str, tuple]) -> Iterator[tuple[type, Callable]]:
    for first, second in table.values():
        if isinstance(second, dict):
            yield from _leaves(second)
        else:
            yield first, second


if __name__ == "__main__":
    main()
