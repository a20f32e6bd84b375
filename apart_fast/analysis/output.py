"""Where an analysis leaves its numbers and its picture."""

from pathlib import Path

from matplotlib.figure import Figure

from apart_fast.files import atomic_write, to_json
from apart_fast.report.pictures import save_figure
from apart_fast.runs.environment import environment


def save(out: Path, name: str, numbers: dict, figure: Figure) -> list[Path]:
    """Write `name`.json (with the environment), `name`.png and `name`.svg under `out`; returns their paths.

    Raises:
        UserError: full disk, or a folder that cannot be written.
    """
    paths = [out / f"{name}{ending}" for ending in (".json", ".png", ".svg")]
    atomic_write(paths[0], to_json({**numbers, "environment": environment()}))
    for path in paths[1:]:
        save_figure(figure, path)
    return paths
