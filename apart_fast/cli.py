"""The command line: `apart-fast check | train | evaluate | analyze | report | demo`, and `python train.py`.

A command is imported after its words have been read: `--help`, a wrong flag and a wrong path do not wait for torch.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Annotated, Any, NamedTuple, Union

import tyro

from apart_fast.analysis.settings import CollapseConfig, CurvesConfig, GradientsConfig, PerturbationsConfig
from apart_fast.check.settings import CheckConfig
from apart_fast.errors import Stopped, UserError
from apart_fast.files import NO_ROOM
from apart_fast.report.settings import ReportConfig
from apart_fast.runs.begin import begin, find_checkpoint, find_finished
from apart_fast.runs.config import DemoConfig, EvaluateConfig, TrainConfig
from apart_fast.runs.recipes import RECIPES


class Command(NamedTuple):
    """A command.

    Attributes:
        settings: class of its settings; flags, defaults and help come from the fields.
        run: "module:function", called with the settings.
        look: called with them before `run` is imported; refuses what can be refused without torch.
    """

    settings: type
    run: str
    look: Callable[[Any], object] = lambda config: None

    def __call__(self, config: object) -> None:
        """Look, import, run.

        Raises:
            UserError, Stopped: as the command does.
        """
        self.look(config)
        module, _, function = self.run.partition(":")
        getattr(import_module(module), function)(config)


class Group(NamedTuple):
    """Commands under one name."""

    description: str
    commands: dict[str, Command]


def _look_at_checkpoint(config: EvaluateConfig) -> None:
    config.check()
    find_checkpoint(config.checkpoint)


def _look_at_runs(config: CurvesConfig | GradientsConfig | ReportConfig) -> None:
    find_finished(config.runs)


def _look_at_comparison(config: CollapseConfig | PerturbationsConfig) -> None:
    runs = config.runs if isinstance(config, CollapseConfig) else (config.run,)
    find_finished([*runs, *([] if config.reference is None else [config.reference])])


TRAIN = Command(TrainConfig, "apart_fast.commands.train:run", begin)
ANALYSES = {
    "collapse": Command(CollapseConfig, "apart_fast.analysis.collapse:run", _look_at_comparison),
    "perturbations": Command(PerturbationsConfig, "apart_fast.analysis.perturbations:run", _look_at_comparison),
    "curves": Command(CurvesConfig, "apart_fast.analysis.curves:run", _look_at_runs),
    "gradients": Command(GradientsConfig, "apart_fast.analysis.gradients:run", _look_at_runs),
}
COMMANDS: dict[str, Command | Group] = {
    "check": Command(CheckConfig, "apart_fast.commands.check:run", CheckConfig.check),
    "train": TRAIN,
    "evaluate": Command(EvaluateConfig, "apart_fast.commands.evaluate:run", _look_at_checkpoint),
    "analyze": Group("What happened in finished runs: pictures (PNG, SVG) and numbers (JSON).", ANALYSES),
    "report": Command(ReportConfig, "apart_fast.report.write:run", _look_at_runs),
    "demo": Command(DemoConfig, "apart_fast.commands.demo:run"),
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
    except RuntimeError as error:
        torch = sys.modules.get("torch")  # where it is not imported, nothing was allocated
        if torch is None or not isinstance(error, torch.OutOfMemoryError):
            raise
        print(f"error: out of GPU memory ({str(error).splitlines()[0]}): lower the batch size", file=sys.stderr)
        return 2
    return 0


def train_command(args: list[str] | None = None) -> None:
    """`python train.py`."""
    config = tyro.cli(TrainConfig, args=args, default=_train_defaults(args), prog="train.py" if args is None else None)
    sys.exit(guarded(lambda: TRAIN(config)))


def main(args: list[str] | None = None) -> None:
    """`apart-fast`."""
    kinds = _union(COMMANDS, _train_defaults(args))
    config = tyro.cli(kinds, args=args, prog="apart-fast", description="Fast adversarial training.")
    command = next(command for command in _leaves(COMMANDS) if isinstance(config, command.settings))
    sys.exit(guarded(lambda: command(config)))


def _train_defaults(args: list[str] | None) -> TrainConfig:
    """The settings that the recipe named in `args` starts from."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--recipe")
    try:
        recipe = parser.parse_known_args(args)[0].recipe
    except argparse.ArgumentError:  # tyro says what is wrong
        recipe = None
    return TrainConfig.of(recipe) if recipe in RECIPES else TrainConfig()


def _union(table: Mapping[str, Command | Group], default: TrainConfig) -> Any:
    """The type that tyro makes subcommands of."""
    kinds = []
    for name, entry in table.items():
        if isinstance(entry, Group):
            named = tyro.conf.subcommand(name, description=entry.description)
            kinds.append(Annotated[_union(entry.commands, default), named])
        elif entry.settings is TrainConfig:
            kinds.append(Annotated[TrainConfig, tyro.conf.subcommand(name, default=default)])
        else:
            kinds.append(Annotated[entry.settings, tyro.conf.subcommand(name)])
    return Union[tuple(kinds)]  # noqa: UP007  (made at run time)


def _leaves(table: Mapping[str, Command | Group]) -> Iterator[Command]:
    for entry in table.values():
        if isinstance(entry, Group):
            yield from _leaves(entry.commands)
        else:
            yield entry


if __name__ == "__main__":
    main()
