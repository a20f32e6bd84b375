"""Curves of runs as SVG inside the page: text in its font, colours from its style sheet (light and dark)."""

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from apart_fast.report.facts import collapses
from apart_fast.report.pictures import COLOURS, PANELS, Curve, Panel, dress
from apart_fast.report.text import count, percent
from apart_fast.runs.reading import Run, points

DARK_COLOURS = (
    "#3b94d9",
    "#f0743e",
    "#1fb88b",
    "#dd8fbf",
    "#efb02e",
    "#8accf5",
    "#e8e8e8",
    "#8c8c8c",
)  # COLOURS on a dark page
DASHES = {"solid": "-", "dashed": (0, (5, 2)), "dotted": (0, (1, 1.5))}  # class of the style sheet -> of matplotlib
SPEED = Panel("speed", (Curve("images_per_second", "images/s"),), from_zero=True)
ENERGY = Panel("GPU energy of an epoch", (Curve("joules", "joules"),), from_zero=True)
BLOCKS = Panel("learned step sizes of the blocks, alpha_b", (), from_zero=True)

_INK = "#010000"  # stands for the page's text colour
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "apart_fast",
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), _INK),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 2),
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.5,
    "lines.markersize": 2.5,
}


@dataclass(frozen=True)
class Line:
    """A line of a chart and its entry in the key.

    Attributes:
        colour: a custom property of the style sheet, without its leading dashes.
        dash: key of `DASHES`.
        points: (epoch, value), not empty.
        last: the last value in words.
    """

    label: str
    colour: str
    dash: str
    points: list[tuple[int, float]]
    last: str


@dataclass(frozen=True)
class Chart:
    """Lines over the epochs.

    Attributes:
        name: what its ids begin with.
        epochs: where the axis ends.
        marks: (epoch, colour) of collapses.
    """

    name: str
    epochs: int
    title: str
    panel: Panel
    lines: tuple[Line, ...]
    marks: tuple[tuple[int, str], ...] = ()

    @property
    def description(self) -> str:
        """What a screen reader says instead of the chart."""
        first, last = min(line.points[0][0] for line in self.lines), max(line.points[-1][0] for line in self.lines)
        ends = ", ".join(f"{line.label} {line.last}" for line in self.lines)
        return f"Line chart: {self.title}, epochs {first} to {last}. At the end: {ends}."

    @property
    def svg(self) -> Markup:
        """An <svg> element without a name of its own; its text is numbers and "epoch"."""
        stand_ins = {"ink": _INK}  # colour of the page -> a colour that matplotlib takes
        for colour in (*(line.colour for line in self.lines), *(colour for _, colour in self.marks)):
            stand_ins.setdefault(colour, f"#01{len(stand_ins):04x}")
        with matplotlib.rc_context(_STYLE):
            figure = Figure(figsize=(4.4, 2.4))
            self._draw(figure, stand_ins)
            text, unsaid = io.StringIO(), ("Date", "Creator", "Format", "Type")
            figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(unsaid))
        return _inline(text.getvalue(), self.name, stand_ins)

    def _draw(self, figure: Figure, stand_ins: dict[str, str]) -> None:
        axes = figure.subplots()
        for epoch, colour in self.marks:
            axes.axvline(epoch, color=stand_ins[colour], linestyle=(0, (2, 2)), linewidth=0.8)
        for line in self.lines:
            epochs, values = zip(*line.points, strict=True)
            sparse = len(epochs) < 3 or epochs[-1] - epochs[0] >= len(epochs)  # not of every epoch: show which
            style: dict[str, Any] = {"linestyle": DASHES[line.dash], "marker": "o" if sparse else ""}
            axes.plot(epochs, values, color=stand_ins[line.colour], clip_on=False, zorder=3, **style)
        dress(axes, self.panel)
        axes.grid(alpha=0.15)
        if self.panel in (SPEED, ENERGY):
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        margin = max(0.3, 0.03 * self.epochs)
        axes.set_xlim(1 - margin, self.epochs + margin)
        figure.subplots_adjust(left=0.12, right=0.985, top=0.96, bottom=0.17)


def run_colour(number: int) -> tuple[str, str]:
    """(colour, dash) of a run, or of a curve where there is one run; the colours repeat after eight."""
    dashes = list(DASHES)
    return f"run-{number % len(COLOURS)}", dashes[number // len(COLOURS) % len(dashes)]


def block_colours(blocks: int) -> tuple[list[str], list[str]]:
    """Colours of the blocks from the first to the last on a (light, dark) page, a part of viridis."""
    viridis, places = matplotlib.colormaps["viridis"], [i / max(1, blocks - 1) for i in range(blocks)]
    return [to_hex(viridis(0.85 * place)) for place in places], [to_hex(viridis(0.4 + 0.6 * place)) for place in places]


def make_charts(runs: Sequence[Run]) -> list[Chart]:
    """Charts of what the runs have recorded.

    One run: a chart for each panel, a colour for each curve. Several: a chart for each curve, a colour for each run.
    The step sizes of the blocks have a chart for each run.
    """
    of_panels = _of_several if len(runs) > 1 else _of_one
    drawn = [*of_panels(runs, PANELS), *_of_blocks(runs), *of_panels(runs, (SPEED, ENERGY))]
    epochs = max((record["epoch"] for run in runs for record in run.records), default=1)
    return [
        Chart(f"chart-{i}", epochs, title[:1].upper() + title[1:], panel, lines, marks)
        for i, (title, panel, lines, marks) in enumerate(drawn)
        if lines
    ]


_Parts = tuple[str, Panel, tuple[Line, ...], tuple[tuple[int, str], ...]]  # title, panel, lines, marks of a Chart


def _of_one(runs: Sequence[Run], panels: Sequence[Panel]) -> Iterator[_Parts]:
    (run,) = runs
    for panel in panels:
        lines = [_line(run, panel, curve, curve.label, i) for i, curve in enumerate(panel.curves)]
        marks = tuple((epoch, "ink") for epoch in collapses(run)) if panel.shares else ()
        yield panel.title, panel, tuple(line for line in lines if line), marks


def _of_several(runs: Sequence[Run], panels: Sequence[Panel]) -> Iterator[_Parts]:
    for panel in panels:
        for curve in panel.curves:
            lines = [_line(run, panel, curve, run.name, i) for i, run in enumerate(runs)]
            marks = tuple((e, run_colour(i)[0]) for i, run in enumerate(runs) for e in collapses(run))
            title = panel.title if len(panel.curves) == 1 else f"{panel.title}: {curve.label}"
            yield title, panel, tuple(line for line in lines if line), marks if panel.shares else ()


def _line(run: Run, panel: Panel, curve: Curve, label: str, number: int) -> Line | None:
    line = points(run.records, curve.key)
    if not line:
        return None
    value = line[-1][1]
    last = percent(value) if panel.shares else count(value) if panel in (SPEED, ENERGY) else f"{value:.4g}"
    return Line(label, *run_colour(number), line, last)


def _of_blocks(runs: Sequence[Run]) -> Iterator[_Parts]:
    for run in runs:
        lines = [_block_line(run, block) for block in range(count_blocks(run))]
        title = BLOCKS.title if len(runs) == 1 else f"{BLOCKS.title}: {run.name}"
        yield title, BLOCKS, tuple(line for line in lines if line), ()


def _block_line(run: Run, block: int) -> Line | None:
    sizes = [(record["epoch"], record["alpha_blocks"][block]) for record in _with_blocks(run)]
    line = [(epoch, size) for epoch, size in sizes if size is not None]
    return Line(f"block {block + 1}", f"block-{block}", "solid", line, f"{line[-1][1]:.3g}") if line else None


def _with_blocks(run: Run) -> list[dict]:
    return [record for record in run.records if isinstance(record.get("alpha_blocks"), list)]


def count_blocks(run: Run) -> int:
    """Number of learned block steps."""
    return min((len(record["alpha_blocks"]) for record in _with_blocks(run)), default=0)


def _inline(svg: str, name: str, stand_ins: dict[str, str]) -> Markup:
    """A file of matplotlib as an element: ids begin with `name`, size, fonts and colours are left to the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg \1 aria-hidden="true">', svg, count=1)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # would hold for the whole page
    svg = re.sub(r' font-family: [^;"]*;', "", svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", svg)
    for colour, stand_in in stand_ins.items():
        svg = svg.replace(stand_in, f"var(--{colour})")
    return Markup(re.sub(r"\s*\n\s*", " ", svg))
