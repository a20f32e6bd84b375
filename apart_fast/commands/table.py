"""The commands by name, and the reading of their words: nothing heavy is imported until a command runs."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Union

import tyro

from apart_fast.analysis.settings import CollapseConfig, CurvesConfig, GradientsConfig, PerturbationsConfig
from apart_fast.check.settings import CheckConfig
from apart_fast.errors import UserError
from apart_fast.export.settings import ExportConfig, PredictConfig
from apart_fast.files import expand_paths
from apart_fast.plan.settings import PlanConfig
from apart_fast.process.stopping import EXIT, StopSignals
from apart_fast.report.settings import ReportConfig
from apart_fast.runs.begin import begin, find_checkpoint, find_finished, find_runs
from apart_fast.runs.config import DemoConfig, EvaluateConfig, TrainConfig
from apart_fast.runs.recipes import RECIPES
from apart_fast.units import check_settings


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
        """Look, import, run; a `~` in a path is the home folder.

        Raises:
            UserError, Stopped, Interrupted: as the command does.
        """
        config = expand_paths(config)
        self.look(config)
        module, _, function = self.run.partition(":")
        with StopSignals(EXIT):  # an exception within an import may be swallowed there
            run = getattr(import_module(module), function)
        run(config)


class Group(NamedTuple):
    """Commands under one name."""

    description: str
    commands: dict[str, Command]


def _look_at_checkpoint(config: EvaluateConfig) -> None:
    config.check()
    find_checkpoint(config.checkpoint)


def _look_at_report(config: ReportConfig) -> None:
    check_settings(config)
    find_finished(config.runs)


def _look_at_analysis(config: CollapseConfig | PerturbationsConfig | CurvesConfig | GradientsConfig) -> None:
    check_settings(config)
    runs = (config.run,) if isinstance(config, PerturbationsConfig) else config.runs
    find_runs(runs) if config.unfinished else find_finished(runs)
    if isinstance(config, CollapseConfig | PerturbationsConfig) and config.reference is not None:
        find_finished([config.reference])


TRAIN = Command(TrainConfig, "apart_fast.commands.train:run", begin)
ANALYSES = {
    "collapse": Command(CollapseConfig, "apart_fast.analysis.collapse:run", _look_at_analysis),
    "perturbations": Command(PerturbationsConfig, "apart_fast.analysis.perturbations:run", _look_at_analysis),
    "curves": Command(CurvesConfig, "apart_fast.analysis.curves:run", _look_at_analysis),
    "gradients": Command(GradientsConfig, "apart_fast.analysis.gradients:run", _look_at_analysis),
}
COMMANDS: dict[str, Command | Group] = {
    "check": Command(CheckConfig, "apart_fast.commands.check:run", CheckConfig.check),
    "plan": Command(PlanConfig, "apart_fast.commands.plan:run", PlanConfig.check),
    "train": TRAIN,
    "evaluate": Command(EvaluateConfig, "apart_fast.commands.evaluate:run", _look_at_checkpoint),
    "export": Command(ExportConfig, "apart_fast.commands.export:run", ExportConfig.check),
    "predict": Command(PredictConfig, "apart_fast.commands.predict:run", PredictConfig.check),
    "analyze": Group("What happened in finished runs: pictures (PNG, SVG) and numbers (JSON).", ANALYSES),
    "report": Command(ReportConfig, "apart_fast.report.write:run", _look_at_report),
    "demo": Command(DemoConfig, "apart_fast.commands.demo:run"),
}


def read_words(args: Sequence[str] | None) -> Callable[[], None]:
    """What `apart-fast` is asked to do by these words; None: those of the process.

    Raises:
        UserError: a word is empty.
        SystemExit: the words are wrong, or ask for help.
    """
    _refuse_empty(args)
    defaults = _train_defaults(args)
    config = tyro.cli(
        _union(COMMANDS, defaults), args=args, prog="apart-fast", description="Fast adversarial training."
    )
    _note_given(config, args, defaults)
    command = next(command for command in _leaves(COMMANDS) if isinstance(config, command.settings))
    return lambda: command(config)


def read_train_words(args: Sequence[str] | None) -> Callable[[], None]:
    """The same for `python train.py`."""
    _refuse_empty(args)
    defaults = _train_defaults(args)
    config = tyro.cli(TrainConfig, args=args, default=defaults, prog="train.py" if args is None else None)
    _note_given(config, args, defaults)
    return lambda: TRAIN(config)


def _note_given(config: object, args: Sequence[str] | None, defaults: TrainConfig) -> None:
    """Let the settings of a training say which of them words, or the file of `defaults`, named: a default value may be
    meant too."""
    if isinstance(config, TrainConfig):
        words = {
            word.partition("=")[0].removeprefix("--").replace("-", "_") for word in _words(args) if word[:2] == "--"
        }
        named = words | {word.removeprefix("no_") for word in words}
        vars(config)["given"] = defaults.given | {field.name for field in fields(config) if field.name in named}


def _words(args: Sequence[str] | None) -> Sequence[str]:
    return sys.argv[1:] if args is None else args


def _refuse_empty(args: Sequence[str] | None) -> None:
    """An empty path would be the working directory."""
    flag = ""
    for word in _words(args):
        name, equals, value = word.partition("=")
        if not word or (name.startswith("--") and equals and not value):
            where = f"{name or flag} has an empty value" if name or flag else "one of the words is empty"
            raise UserError(f"{where} (a shell variable that is not set?): give one, or leave it out")
        flag = name if name.startswith("-") else flag


def _train_defaults(args: Sequence[str] | None) -> TrainConfig:
    """The settings that the recipe and the file named in `args` start from.

    Raises:
        UserError: see `read_settings`; or both name a recipe.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--recipe")
    parser.add_argument("--config", type=Path)
    try:
        found = parser.parse_known_args(args)[0]
    except argparse.ArgumentError:  # tyro says what is wrong
        return TrainConfig()
    values = {}
    if found.config is not None:
        from apart_fast.runs.config_file import read_settings  # most command lines do without YAML

        values = read_settings(found.config)
    named = values.pop("recipe", None)
    if None not in (found.recipe, named) and found.recipe != named:
        raise UserError(
            f"--recipe {found.recipe} and the recipe {named} of {found.config} contradict each other: leave one out"
        )
    recipe = found.recipe or named
    config = TrainConfig.of(recipe if recipe in RECIPES else "paper", **values)
    vars(config)["given"] = frozenset(values)
    return config


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
