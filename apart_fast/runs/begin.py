"""What a command refuses before torch is imported: values that make no sense, runs and checkpoints that are not there.

What needs torch, a device or data is checked where the work begins, with the same words.
"""

from collections.abc import Sequence
from copy import copy
from importlib.util import find_spec
from pathlib import Path

from apart_fast.errors import UserError
from apart_fast.files import expand_paths, expanded
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.folder import RunFolder
from apart_fast.runs.json_files import is_file
from apart_fast.step.methods import check_keeping, get_method
from apart_fast.units import parse_eps

AUTO = Path("auto")  # of --resume
PRETRAINED = Path("pretrained")  # of --init-from
WEIGHTS_OF = ("best.pt", "last.pt", "model.safetensors", "pytorch_model.bin")  # a folder: the first that is there


def begin(config: TrainConfig, processes: int = 1) -> tuple[RunFolder, TrainConfig, bool]:
    """Where a training run is recorded, its settings (those given, or those of the run it goes on with), and whether it
    goes on with one.

    Nothing is written yet (see `RunFolder.create`).

    Args:
        processes: that train together.

    Raises:
        UserError: a value that makes no sense, a folder that already holds a run, or none to go on with.
    """
    config = expand_paths(config)
    config.check()
    if config.resume == AUTO:
        if config.out is None:
            raise UserError("--resume auto needs --out, the folder of the run that it begins or goes on with")
        begun = is_file(config.out / "config.json")
        config = copy(config)  # with what was given
        config.resume = config.out if begun else None
    resumes = config.resume is not None
    if resumes and config.dry_run:
        raise UserError("--dry-run tries a run before it begins, and this one has begun: leave it out")
    if config.resume is None:
        if config.init_from is not None and config.init_from != PRETRAINED:
            find_origin(config.init_from)
        missing = next((name for name in config.log if find_spec(name) is None), None)
        if missing is not None:
            raise UserError(f"--log {missing} needs the package {missing}: pip install 'apart_fast[{missing}]'")
        folder = RunFolder.choose(config)
    else:
        folder, saved = RunFolder.open(config.resume)
        config = config.resumed(saved)
    parse_eps(config.eps)
    parse_eps(config.eval_eps)
    check_keeping(get_method(config.method), config.omega_dtype, config.omega_device, processes, flags=True)
    return folder, config, resumes


def find_checkpoint(path: Path) -> Path:
    """The file of a checkpoint, unread.

    Raises:
        UserError: it is not there, or may not be looked at.
    """
    path = expanded(path)
    if not is_file(path):
        raise UserError(f"no checkpoint at {path}: name a .pt file that a run has written")
    return path


def find_origin(path: Path) -> Path:
    """The file that `--init-from` names, unread: a file, or that of `WEIGHTS_OF` which is there in a folder.

    Raises:
        UserError: there is none.
    """
    path = expanded(path)
    if path.is_dir():
        file = next((path / name for name in WEIGHTS_OF if is_file(path / name)), None)
        if file is None:
            raise UserError(f"no weights in the folder {path} (no {', '.join(WEIGHTS_OF)}): name a file")
        return file
    if not is_file(path):
        raise UserError(f"no weights at {path}: name a run folder, a .pt or a .safetensors file, or 'pretrained'")
    return path


def find_runs(paths: Sequence[Path]) -> list[RunFolder]:
    """Folders of runs, finished or not.

    Raises:
        UserError: not a run, or damaged.
    """
    return [RunFolder.open(path)[0] for path in paths]


def find_finished(paths: Sequence[Path]) -> list[RunFolder]:
    """Folders of finished runs.

    Raises:
        UserError: not a run, not finished, or damaged.
    """
    folders = find_runs(paths)
    for folder in folders:
        folder.summary()  # refuses an unfinished run
    return folders
