"""Runs that differ in nothing but the seed belong together; each group has its label and colour."""

from collections.abc import Sequence
from dataclasses import asdict

from apart_fast.errors import UserError
from apart_fast.report.pictures import COLOURS
from apart_fast.runs.config import MOVABLE
from apart_fast.runs.reading import Run

# what leaves the weights of a run as they are, apart from rounding; a recipe only names settings that stand beside it
_IDLE = {
    *MOVABLE,
    *("seed", "recipe", "config", "dry_run", "omega_device"),
    *("loader", "ffcv", "compile", "graph", "deterministic", "threads", "log", "log_every", "profile", "out", "resume"),
    *("eval_eps", "val_every", "probe_images", "test", "test_images", "checkpoint_every", "keep_weights"),
}


def group_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """label -> runs of one method and the same settings, by seed, in the order in which the groups first appear.

    The label is the method; where groups of one method differ, the settings in which they do so follow.

    Raises:
        UserError: the same settings and seed twice.
    """
    groups: dict[str, list[Run]] = {}
    for one in runs:
        groups.setdefault(repr(_settings(one)), []).append(one)
    for mine in groups.values():
        mine.sort(key=lambda one: one.config.seed)
        for a, b in zip(mine, mine[1:], strict=False):
            if a.config.seed == b.config.seed:
                raise UserError(f"{a.name} and {b.name} are one run twice (same settings and seed): name one of them")
    settings = [_settings(mine[0]) for mine in groups.values()]
    return {_label(own, settings): mine for own, mine in zip(settings, groups.values(), strict=True)}


def _settings(one: Run) -> dict:
    values = {name: value for name, value in asdict(one.config).items() if name not in _IDLE}
    if one.config.dataset == "folder":
        values["data_dir"] = one.config.data_dir  # the place is all that tells two of them apart
    return values | {"method": one.method}  # pgd is pgd-10


def _label(mine: dict, settings: list[dict]) -> str:
    rivals = [other for other in settings if other["method"] == mine["method"]]
    differing = [name for name in mine if any(other[name] != mine[name] for other in rivals)]
    words = ", ".join(f"{name.replace('_', ' ')} {mine[name]}" for name in differing)
    return f"{mine['method']} ({words})" if words else mine["method"]


def group_colours(labels: Sequence[str]) -> dict[str, str]:
    """label -> colour, in the order given; more than eight groups share colours."""
    unique = list(dict.fromkeys(labels))
    return {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(unique)}
