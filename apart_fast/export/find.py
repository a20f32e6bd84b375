"""Which file a network is read from. Imported without torch, so that a wrong path is told at once."""

import os
from pathlib import Path

from apart_fast.errors import UserError
from apart_fast.files import expanded
from apart_fast.runs.folder import RunFolder
from apart_fast.runs.json_files import is_file

WEIGHTS = "model.safetensors"  # in an exported folder
_OTHERS = {  # how to open what is not opened here
    ".onnx": "open it with ONNX Runtime",
    ".pt2": "open it with torch.export.load",
    ".pth": "name a run's best.pt or last.pt",
    ".bin": "name a run's best.pt or last.pt",
}


def find_network(path: Path) -> Path:
    """The file that holds the network, unread: of the folder of a run its best.pt, or else its last.pt (or the one
    before it), of an exported one its model.safetensors.

    Raises:
        UserError: there is none, or it may not be looked at.
    """
    path = expanded(path)
    if is_file(path):
        if path.suffix in _OTHERS:
            raise UserError(f"{path} is not read here: {_OTHERS[path.suffix]}")
        return path
    if not path.is_dir():
        what = "something other than a file or folder" if os.path.lexists(path) else "nothing"
        raise UserError(f"{what} at {path}: name the folder of a run, a .pt file of one, or an exported network")
    folder = RunFolder(path)
    for file in (path / WEIGHTS, folder.best, folder.last, folder.previous):
        if is_file(file):
            return file
    if is_file(path / "network.py"):
        raise UserError(f"{path} is a network for RobustBench: open it with load() of the network.py there")
    if is_file(path / "config.json"):
        raise UserError(f"the run in {path} has no checkpoint: go on with train.py --resume {path}")
    raise UserError(f"no run in {path}, nor an exported network: name the folder of one")
