"""The data sets that lie in --data-dir, read as a training reads them."""

from pathlib import Path

from apart_fast.check.lines import Given, Line, first_line
from apart_fast.errors import UserError
from apart_fast.files import expanded
from apart_fast.loaders import DATASETS, load_dataset
from apart_fast.loaders.datasets.folder import has_folders


def check(given: Given) -> list[Line]:
    """A line for each data set by name."""
    if given.data_dir is None:
        return [Line("data sets", "not run", "no --data-dir given")]
    return [_look(name, given) for name in DATASETS]


def _look(name: str, given: Given) -> Line:
    try:
        data = load_dataset(name, given.data_dir or ".", download=False, progress=False, cache=given.cache_dir)
    except UserError as error:
        # folders of pictures may be those of another set: only "folder" takes any
        wrong = "damaged" in str(error) or (name == "folder" and has_folders(expanded(Path(given.data_dir or "."))))
        return Line(name, "fails" if wrong else "missing", first_line(error))
    except Exception as error:  # of a file that nobody expected
        return Line(name, "fails", first_line(error))
    shape = "x".join(map(str, data.train.shape[1:]))
    return Line(name, "ok", f"{len(data.train)} training and {len(data.test)} test images of {shape}")
