"""Weights of any origin, for `--init-from`: runs and checkpoints of this program, state dicts of others, safetensors.

Nothing is unpickled but tensors and plain values.
"""

import pickle
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apart_fast.errors import UserError
from apart_fast.runs import checkpoint
from apart_fast.runs.begin import find_origin
from apart_fast.runs.json_files import parse, reading
from apart_fast.runs.schema import misfit
from apart_fast.runs.states import EXPORTED, Named, Ours, unsound

# where programs keep a state dict within a checkpoint, in the order in which they are looked at
ENTRIES = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params", "ema")
_BY_THE_WAY = ("module", "_orig_mod")  # of DataParallel and torch.compile, wherever they stand in a name
_COPIES = "attacker"  # of MadryLab's robustness: the network and its statistics once more
_STATISTICS = ("mean", "std", "mu", "sigma", "new_mean", "new_std")  # last names of a layer that normalises pixels
_SIZES = ("alpha", "alpha_omega")  # last names of the learned step sizes of the released APART script
MOST_CHANNELS = 16


@dataclass
class Origin:
    """What was found.

    Attributes:
        path: the file.
        weights: tensors by their plain names (see `plain_names`).
        classes: names of the classes, where they are known.
        step_sizes: alpha, alpha_omega and alpha_b in the order of the blocks, where there are any.
        normalised: the file has the statistics of a layer that normalises pixels, which are not among the weights.
    """

    path: Path | str
    weights: dict[str, Tensor]
    classes: list[str] | None = None
    step_sizes: list[float] = field(default_factory=list)
    normalised: bool = False


def read_origin(path: Path) -> Origin:
    """The weights in a file, or in a folder (see `find_origin`); averaged ones where there are any.

    Raises:
        UserError: nothing there, damaged, or no weights in it.
    """
    file = find_origin(path)
    if file.suffix == ".safetensors":
        found = origin_of(file, _read_safetensors(file))
        found.classes = _exported_classes(file)
        return found
    value = _read_torch(file)
    if isinstance(value, dict) and misfit(value, Ours) is None:
        state = checkpoint.load(file)
        found = origin_of(file, checkpoint.weights_of(state))
        found.classes = state.get("classes")
        sizes = state.get("apart", {}).get("step_sizes")
        found.step_sizes = [] if sizes is None or not sizes.any() else sizes.double().tolist()
        return found
    weights = next(_state_dicts(value), None)
    if weights is None:
        raise UserError(f"{file} holds no weights (tensors by name): save the network's state_dict()")
    if (wrong := unsound(weights)) is not None:
        raise UserError(f"{file} holds what no network trains on ({wrong}): use another one")
    return origin_of(file, weights)


def origin_of(path: Path | str, weights: dict[str, Tensor]) -> Origin:
    """Tensors as a file has them, sorted into what they are."""
    kept: dict[str, Tensor] = {}
    sizes: dict[str, Tensor] = {}
    normalised = False
    learned = any(name.split(".")[-1] == _SIZES[1] for name in weights)
    for name, tensor in weights.items():
        parts = name.split(".")
        if parts[-1] in _STATISTICS and tensor.numel() <= MOST_CHANNELS:
            normalised = True
        elif learned and parts[-1] in _SIZES and tensor.numel() == 1:
            sizes[name] = tensor
        elif _COPIES not in parts:
            kept[name] = tensor
    own = sorted(sizes, key=lambda name: (name.count("."), list(sizes).index(name)))  # the network's before its blocks'
    return Origin(path, plain_names(kept), None, [sizes[name].item() for name in own], normalised)


def plain_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same by names without wrappers: `module` and `_orig_mod` are left out wherever they stand, and then a first
    name that all of them share (`model.conv1.weight` and `model.bn.bias` are conv1.weight and bn.bias)."""
    split = {name: [part for part in name.split(".") if part not in _BY_THE_WAY] for name in weights}
    while len({parts[0] for parts in split.values()}) == 1 and all(len(parts) > 1 for parts in split.values()):
        split = {name: parts[1:] for name, parts in split.items()}
    return {".".join(parts): weights[name] for name, parts in split.items()}


def _state_dicts(value: Any, depth: int = 2) -> Iterator[dict[str, Tensor]]:
    """Dictionaries of tensors by name, in `value` and its entries."""
    if not isinstance(value, dict):
        return
    if depth:  # first: beside them may lie tensors too, such as accuracies
        for name in (name for name in ENTRIES if name in value):
            yield from _state_dicts(value[name], depth - 1)
    tensors = {name: item for name, item in value.items() if isinstance(name, str) and isinstance(item, Tensor)}
    if len(tensors) > 1 or (tensors and len(value) == 1):
        yield tensors


def _read_torch(file: Path) -> Any:
    try:
        with reading(file), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that torch did not write
            return torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{file} does not fit into the memory: free some") from error
    except pickle.UnpicklingError as error:
        kind = re.search(r"(?:GLOBAL|global|Unsupported class) ([\w.]+)", str(error))
        if kind is None:
            raise UserError(f"{file} is damaged or no file of torch.save: use another one") from error
        raise UserError(
            f"{file} holds more than tensors ({kind[1]}), which would be run as a program: load it where it was made, "
            "and save the network's state_dict() alone"
        ) from error
    except Exception as error:  # zip, tar and pickle each have their own
        raise UserError(f"{file} is damaged or no file of torch.save: use another one") from error


def _exported_classes(file: Path) -> list[str] | None:
    """The names of the classes, in a safetensors file that `apart-fast export` has written."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        said = (opened.metadata() or {}).get(EXPORTED)
    try:
        return None if said is None else parse(said.encode(), Named)["classes"]
    except ValueError:
        return None


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(f"{file} needs the package safetensors: pip install safetensors") from error
    try:
        with reading(file):
            weights = load_file(file)
    except UserError:
        raise
    except Exception as error:  # its own, and torch's
        raise UserError(f"{file} is damaged or no safetensors file: use another one") from error
    if (wrong := unsound(weights)) is not None or not weights:
        raise UserError(f"{file} holds what no network trains on ({wrong or 'it is empty'}): use another one")
    return weights
