"""The page itself: what is known of the runs, put into report.html.j2."""

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from apart_fast.report import facts
from apart_fast.report.charts import DARK_COLOURS, block_colours, count_blocks, make_charts, run_colour
from apart_fast.report.pictures import COLOURS
from apart_fast.report.text import number
from apart_fast.runs.reading import Run

_TEMPLATE = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,  # names of folders and classes may hold anything
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
).get_template("report.html.j2")


def render(runs: Sequence[Run]) -> str:
    """HTML of one run, or of several side by side."""
    changed, settings = facts.settings(runs)
    light, dark = block_colours(max(map(count_blocks, runs)))
    return _TEMPLATE.render(
        title=_title(runs),
        runs=runs,
        colours=[run_colour(i) for i in range(len(runs))],
        light=_properties(COLOURS, light),
        dark=_properties(DARK_COLOURS, dark),
        about=[_about(run) for run in runs],
        judgements=facts.judgements(runs[0]) if len(runs) == 1 else [],
        rows=facts.costs(runs) if len(runs) == 1 else facts.comparison(runs),
        tested=[text for text in dict.fromkeys(map(facts.tested, runs)) if text],
        collapsed=[bool(facts.collapses(run)) for run in runs],
        charts=make_charts(runs),
        epochs=[facts.epochs_table(run) for run in runs],
        pictures=[None if run.picture is None else base64.b64encode(run.picture).decode() for run in runs],
        changed=changed,
        settings=settings,
        evaluations=[facts.evaluation(run) for run in runs],
        cards=[facts.card(run) for run in runs],
        environment=facts.environments(runs),
        is_accuracy=lambda value: isinstance(value, facts.Accuracy),
    )


def _title(runs: Sequence[Run]) -> str:
    datasets = ", ".join(dict.fromkeys(run.config.dataset for run in runs))
    methods = ", ".join(dict.fromkeys(_method(run) for run in runs))
    return f"{methods} on {datasets}" if len(runs) == 1 else f"{len(runs)} runs on {datasets}: {methods}"


def _method(run: Run) -> str:
    return str(run.summary.get("method") or run.config.method)


def _about(run: Run) -> list[str]:
    """Method, data, network, length and date of a run, in a few words each."""
    config = run.config
    width = f", width {config.width:g}" if config.width != 1 else ""
    images = f" ({config.train_images:,} training images)" if config.train_images else ""
    epochs = number(run.summary, "epochs") or config.epochs
    date = run.environment.get("date")
    words = [_method(run), config.dataset + images, config.model + width, f"{epochs} epochs", f"seed {config.seed}"]
    return words + ([date.replace("T", " ")[:16]] if isinstance(date, str) else [])


def _properties(colours: Sequence[str], blocks: Sequence[str]) -> dict[str, str]:
    """Custom properties of the style sheet -> colours."""
    return {f"run-{i}": c for i, c in enumerate(colours)} | {f"block-{i}": c for i, c in enumerate(blocks)}
