"""Where an analysis leaves its numbers and its picture."""

from collections.abc import Callable, Mapping
from pathlib import Path

from matplotlib.figure import Figure

from apart_fast.errors import UserError
from apart_fast.files import atomic_write, to_json
from apart_fast.report.pictures import save_figure
from apart_fast.report.sparing import sparing
from apart_fast.runs.environment import environment
from apart_fast.runs.json_files import reading
from apart_fast.runs.outputs import NUMBERS, PNG, SVG, check_output


def check_folder(out: Path) -> None:
    """Refuse the folder of a run.

    Raises:
        UserError: it is one, or may not be looked into.
    """
    with reading(out):
        if (out / "config.json").exists():
            raise UserError(f"{out} is the folder of a run, whose pictures would be replaced: choose another --out")


def check(out: Path, name: str) -> None:
    """Refuse a folder where the files of `save` would fall on others, before hours of work go into them.

    Raises:
        UserError: the folder of a run, files that no such analysis has written, or it cannot be written.
    """
    check_folder(out)
    with reading(out):
        numbers = out / f"{name}.json"
        for ending, kind in (("json", NUMBERS), ("png", PNG), ("svg", SVG)):
            path = out / f"{name}.{ending}"
            if path.exists() and not numbers.exists():
                raise UserError(f"{path} is of no analysis ({numbers.name} is not beside it): choose another --out")
            check_output(path, kind)


def say_blind(name: str, counts: Mapping[str, int], images: int) -> None:
    """Print a line where images had no gradient (not finite, or zero everywhere) to measure or to attack with.

    Args:
        name: of the run; counts: of such images among `images`, for each epoch (or other name of the weights).
    """
    worst = max(counts, key=lambda epoch: counts[epoch], default=None)
    if worst is not None and counts[worst]:
        print(
            f"{name}: up to {counts[worst]} of {images} images have no gradient ({worst}): what stands there is no "
            "measure of robustness"
        )


def save(out: Path, name: str, numbers: dict, draw: Callable[[], Figure]) -> list[Path]:
    """Write `name`.json (with the environment), `name`.png and `name`.svg under `out`; returns their paths.

    A picture that fails is left out, and a line says so.

    Raises:
        UserError: full disk, or a folder that cannot be written.
    """
    paths = [out / f"{name}.json"]
    atomic_write(paths[0], to_json({**numbers, "environment": environment()}))
    with sparing(f"picture of {paths[0]}"):
        figure = draw()
        for path in (out / f"{name}.png", out / f"{name}.svg"):
            save_figure(figure, path)
            paths.append(path)
    return paths
