"""What the page says of runs in words and figures: accuracies, costs, settings, environment."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from apart_fast.evaluation.caution import mark
from apart_fast.report.text import NOTHING, count, duration, number, percent, plain, scaled
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.reading import Run, points
from apart_fast.units import eps_words, parse_eps

PLACES = ("out", "resume")  # settings that say nothing of the training


@dataclass(frozen=True)
class Accuracy:
    """A share of images with its 95 % interval, if it has one; `note` says of what, `caution` why it must not be
    quoted."""

    text: str
    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""
    caution: str = ""

    @property
    def interval(self) -> str:
        """Such as [66.4, 72.1], in per cent; empty if there is none."""
        return "" if self.low is None or self.high is None else f"[{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class Judgement:
    """Accuracies under one attack."""

    title: str
    shown: tuple[Accuracy, ...]


def accuracy(result: object, note: str = "") -> Accuracy | None:
    """Of a result as `evaluate` writes it; None if it is none."""
    if not isinstance(result, dict) or (value := number(result, "accuracy")) is None:
        return None
    return Accuracy(percent(value), value, number(result, "low"), number(result, "high"), note, mark(result))


def attack_title(name: str) -> str:
    """A name of `apart_fast.evaluation.judge.ATTACKS` as a title."""
    return "AutoAttack" if name == "autoattack" else name.capitalize() if name == "clean" else name.upper()


def judgements(run: Run) -> list[Judgement]:
    """For each attack of the test its accuracies for the last and the best weights; without a test: validation's."""
    test = run.summary.get("test")
    if not isinstance(test, dict):
        final = {"Clean": "val_clean", "PGD-20": "val_pgd20"}
        found = {title: number(run.summary, "final", key) for title, key in final.items()}
        return [
            Judgement(f"{title} validation accuracy", (Accuracy(percent(value), value, note="last weights"),))
            for title, value in found.items()
            if value is not None
        ]
    reports = {which: _attacks(test.get(which)) for which in ("last", "best")}
    epoch = number(run.summary, "best", "epoch")
    same = reports["last"] == reports["best"]
    notes = {"last": "last weights", "best": f"best weights (epoch {epoch})" if epoch else "best weights"}
    if same:
        notes = {"last": "last weights, also the best"}
    shown = []
    for name in {**reports["last"], **reports["best"]}:
        results = [accuracy(reports[which].get(name), note) for which, note in notes.items()]
        shown.append(Judgement(f"{attack_title(name)} test accuracy", tuple(r for r in results if r)))
    return [judgement for judgement in shown if judgement.shown]


def _attacks(report: object) -> dict:
    attacks = report.get("attacks") if isinstance(report, dict) else None
    return attacks if isinstance(attacks, dict) else {}


def tested(run: Run) -> str:
    """On what the test was made, in a sentence; empty without a test."""
    images, eps = number(run.summary, "test", "last", "n"), number(run.summary, "test", "last", "eps")
    if images is None or eps is None:
        return ""
    return (
        f"Judged on {images:,} test images; attacks of radius {run.config.eval_eps} ({eps:.4f}); "
        "95 % Wilson intervals in brackets."
    )


# ---- costs


def _time(run: Run) -> str | None:
    seconds = number(run.summary, "train_seconds")
    return None if seconds is None else duration(seconds)


def _speed(run: Run) -> str | None:
    speeds = [value for _, value in points(run.records, "images_per_second")]
    return f"{count(median(speeds))} images/s" if speeds else None


def _memory(run: Run) -> str | None:
    size = number(run.summary, "memory_bytes")
    return scaled(size, "B") if size else None


def _gpu_memory(run: Run) -> str | None:
    size = number(run.summary, "peak_gpu_bytes")
    return scaled(size, "B") if size else None


def _energy(run: Run) -> str | None:
    joules = sum(value for _, value in points(run.records, "joules"))
    return f"{scaled(joules, 'J')} ({scaled(joules / 3600, 'Wh')})" if joules else None


def _parameters(run: Run) -> str | None:
    weights = number(run.summary, "parameters")
    return None if weights is None else f"{weights:,}"


def collapses(run: Run) -> list[int]:
    """Epochs (from 1) at which a collapse began."""
    epochs = run.summary.get("collapsed_at")
    return [epoch for epoch in epochs if isinstance(epoch, int)] if isinstance(epochs, list) else []


def _collapse(run: Run) -> str | None:
    if epochs := collapses(run):
        return f"at epoch {', '.join(map(str, epochs))}"
    return "none" if points(run.records, "probe_pgd10") else "not watched"


# name -> (text of a run, what the figure means)
COSTS: dict[str, tuple[Callable[[Run], str | None], str]] = {
    "Collapse": (_collapse, "sudden loss of robustness"),
    "Training time": (_time, "without validation and test"),
    "Speed": (_speed, "median of the epochs"),
    "Memory of omega": (_memory, "remembered directions or perturbations"),
    "Peak GPU memory": (_gpu_memory, "allocated by torch"),
    "GPU energy": (_energy, "whole device, training only"),
    "Parameters": (_parameters, "of the network"),
}


@dataclass(frozen=True)
class Row:
    """A line of the comparison: a text, or an accuracy, for each run."""

    title: str
    note: str
    cells: tuple[str | Accuracy, ...]


def costs(runs: Sequence[Run]) -> list[Row]:
    """The figures of `COSTS` that one of the runs has."""
    found = {title: [text(run) for run in runs] for title, (text, _) in COSTS.items()}
    return [
        Row(title, COSTS[title][1], tuple(c or NOTHING for c in cells)) for title, cells in found.items() if any(cells)
    ]


def comparison(runs: Sequence[Run]) -> list[Row]:
    """Accuracies and costs of the runs, a line each; accuracies within different radii have lines of their own."""
    found: dict[tuple[str, str], list[str | Accuracy]] = {}
    alike = len({parse_eps(run.config.eval_eps) for run in runs}) == 1
    for i, run in enumerate(runs):
        for judgement in judgements(run):
            title = judgement.title
            if not alike and not title.startswith("Clean"):
                title += f" at {eps_words(parse_eps(run.config.eval_eps))}"
            shown = {"last weights": judgement.shown[0]}
            if isinstance(run.summary.get("test"), dict):  # validation's figures are of the last weights alone
                shown["best weights"] = judgement.shown[-1]
            for which, value in shown.items():
                row = found.setdefault((title, which), [NOTHING] * len(runs))
                epoch = number(run.summary, "best", "epoch") if which == "best weights" else None
                row[i] = dataclasses.replace(value, note=f"epoch {epoch}" if epoch else "")
    return [Row(*key, tuple(cells)) for key, cells in found.items()] + costs(runs)


# ---- settings, environment, other files


@dataclass(frozen=True)
class Setting:
    """A flag, its default and its value in each run."""

    flag: str
    default: str
    values: tuple[str, ...]

    @property
    def changed(self) -> tuple[bool, ...]:
        """For each run whether it has another value than the default."""
        return tuple(value != self.default for value in self.values)

    @property
    def varies(self) -> bool:
        """Whether the runs differ in it."""
        return len(set(self.values)) > 1


def settings(runs: Sequence[Run]) -> tuple[list[Setting], list[Setting]]:
    """(settings in which a run differs from the defaults, those that vary among the runs first; all settings)."""
    fresh, every, differing = TrainConfig(), [], []
    for field in dataclasses.fields(TrainConfig):
        values = [getattr(run.config, field.name) for run in runs]
        default = getattr(fresh, field.name)
        flag = "--" + field.name.replace("_", "-")
        every.append(Setting(flag, plain(default), tuple(map(plain, values))))
        if field.name not in PLACES and any(value != default for value in values):
            differing.append(every[-1])
    return sorted(differing, key=lambda setting: not setting.varies), every


def environments(runs: Sequence[Run]) -> list[Row]:
    """What environment.json says, a line for each entry."""
    keys = {key: None for run in runs for key in run.environment}
    return [
        Row(
            key, "", tuple(NOTHING if run.environment.get(key) is None else plain(run.environment[key]) for run in runs)
        )
        for key in keys
    ]


@dataclass(frozen=True)
class Evaluation:
    """A further evaluation: settings as (name, value), and a line for each attack."""

    settings: list[tuple[str, str]]
    attacks: list[tuple[str, Accuracy, str]]


def evaluation(run: Run) -> Evaluation | None:
    """What evaluation.json says; None if the run has none."""
    if not run.evaluation:
        return None
    lines = []
    for name, result in _attacks(run.evaluation).items():
        if (found := accuracy(result)) is not None:
            correct, images = number(result, "correct"), number(result, "n")
            of = NOTHING if correct is None or images is None else f"{correct:,} of {images:,}"
            lines.append((attack_title(name), found, of))
    rest = [(key, plain(v)) for key, v in run.evaluation.items() if v is not None and not isinstance(v, dict)]
    return Evaluation(rest, lines)


def card(run: Run) -> dict:
    """What card.json says that the page does not show elsewhere; results of attacks as text."""
    elsewhere = [shown for shown in (run.environment, run.evaluation, run.summary.get("test")) if shown]
    return {key: _in_short(item, elsewhere) for key, item in run.card.items() if item not in elsewhere}


def _in_short(value: object, without: Sequence[object]) -> object:
    if (found := accuracy(value)) is not None and found.interval:
        return f"{found.text} {found.interval}" + (f" ({found.caution})" if found.caution else "")
    if isinstance(value, dict):
        return {key: _in_short(item, without) for key, item in value.items() if item not in without}
    if isinstance(value, list) and any(isinstance(item, dict | list | str) for item in value):
        return [_in_short(item, without) for item in value]
    return plain(value)


def epochs_table(run: Run) -> tuple[list[str], list[list[str]]]:
    """(heads, lines) of metrics.jsonl; a list becomes a column for each of its entries."""
    lines = [_flat(record) for record in run.records]
    heads = list({key: None for line in lines for key in line})
    heads.sort(key=lambda head: (head != "epoch", head.startswith("alpha_blocks")))
    return heads, [[line.get(head, "") for head in heads] for line in lines]


def _flat(record: dict) -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in record.items():
        if isinstance(value, list):
            flat |= {f"{key} {i}": _short(v) for i, v in enumerate(value, 1)}
        else:
            flat[key] = _short(value)
    return flat


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else plain(value)
