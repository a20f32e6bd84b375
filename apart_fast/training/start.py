"""How the network of a new run begins: with random weights, or with `--init-from`."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from apart_fast.errors import UserError
from apart_fast.models import SOURCES
from apart_fast.runs.begin import PRETRAINED
from apart_fast.runs.foreign import Origin, origin_of, read_origin
from apart_fast.step.apart import Apart

NAMED = 4  # tensors in a line


@dataclass
class Fit:
    """What of an origin fits a network.

    Attributes:
        taken: names in the network and the tensors for them.
        anew: of the layer of logits, which stays as the network was made; `why`: in words.
        missing: in the network only, or of another shape there.
        left: in the origin only, or of another shape there.
    """

    taken: dict[str, Tensor] = field(default_factory=dict)
    anew: list[str] = field(default_factory=list)
    why: str = ""
    missing: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def find_start(source: Path, name: str, in_channels: int, image_size: tuple[int, int]) -> Origin:
    """What `--init-from` names, for the network `name`.

    Raises:
        UserError: see `read_origin`; or there are no pretrained weights, or they cannot be had.
    """
    if source != PRETRAINED:
        return read_origin(source)
    place, _, inner = name.partition("/")
    if place not in SOURCES:
        raise UserError(
            f"there are no pretrained weights of {name}: name a file, or a model torchvision/... or timm/..."
        )
    found = origin_of(f"the pretrained weights of {name}", SOURCES[place].pretrained(inner, in_channels, image_size))
    return replace(found, normalised=True)  # torchvision and timm do so outside of their networks


def start_from(model: nn.Module, origin: Origin, classes: Sequence[str]) -> None:
    """Copy into a new network what fits of an origin, by plain names (see `plain_names`) and shapes, and say what did
    not.

    Raises:
        UserError: no weight fits; the network stays as it was.
    """
    mine = model.state_dict()
    fit = find_fit(model, origin, list(classes))
    weights = [name for name, tensor in fit.taken.items() if tensor.ndim > 1]
    if not weights:
        ours = _shapes({name: t for name, t in mine.items() if t.ndim > 1})
        theirs = _shapes({name: t for name, t in origin.weights.items() if t.ndim > 1})
        raise UserError(
            f"nothing in {origin.path} fits the network: it has {theirs or 'no weights'}, the network {ours}; choose "
            "the --model (and --width) that it was made with"
        )
    with torch.no_grad():
        for name, tensor in fit.taken.items():
            mine[name].copy_(tensor)
    tqdm.write(f"init: {len(fit.taken)} of {len(mine)} tensors are those of {origin.path}")
    if fit.anew:
        tqdm.write(f"init: the head ({', '.join(fit.anew)}) is made anew: {fit.why}")
    if fit.missing or fit.left:
        parts = (("the network keeps its own", fit.missing), ("not taken", fit.left))
        tqdm.write("init: did not fit: " + "; ".join(f"{words} {_few(names)}" for words, names in parts if names))
    if origin.normalised and not any(name.rpartition(".")[0].endswith("normalize") for name in mine):
        tqdm.write(
            "init: the pixels were normalised there, and are not here: --normalize does so with the data's statistics"
        )


def find_fit(model: nn.Module, origin: Origin, classes: list[str]) -> Fit:
    """What of an origin fits; nothing is copied."""
    mine = model.state_dict()
    plain = origin_of("", mine).weights  # without the statistics of its own normalisation
    names = {id(tensor): name for name, tensor in mine.items()}
    fit, head = Fit(), _head(model, len(classes))
    known = origin.classes
    other = known is not None and sorted(known) != sorted(classes)
    for short, tensor in plain.items():
        name, theirs = names[id(tensor)], origin.weights.get(short)
        of_head = name.rpartition(".")[0] == head
        if theirs is None:
            fit.missing.append(name)
        elif of_head and theirs.shape[1:] == tensor.shape[1:] and (theirs.shape != tensor.shape or other):
            fit.anew.append(name)
            fit.why = (
                f"it knew {theirs.shape[0]} classes, the data has {len(classes)}"
                if theirs.shape != tensor.shape
                else f"it knew other classes ({_few(known or [])})"
            )
        elif theirs.shape != tensor.shape:
            fit.missing.append(f"{name} {list(tensor.shape)}")
            fit.left.append(f"{short} {list(theirs.shape)}")
        elif of_head and known is not None:
            fit.taken[name] = theirs[[known.index(label) for label in classes]]
        else:
            fit.taken[name] = theirs
    fit.left += [short for short in origin.weights if short not in plain]
    return fit


def take_step_sizes(apart: Apart, origin: Origin) -> None:
    """Begin with the learned step sizes of an origin, where it has any that fit."""
    sizes = apart.step_sizes
    if not origin.step_sizes or not apart.method.learned:
        return
    if len(origin.step_sizes) != len(sizes):
        tqdm.write(f"init: {len(origin.step_sizes)} learned step sizes there, {len(sizes)} here: they begin anew")
        return
    sizes.copy_(torch.tensor(origin.step_sizes, dtype=sizes.dtype))
    alpha, alpha_omega = origin.step_sizes[:2]
    tqdm.write(f"init: the learned step sizes too: alpha {alpha:.5f}, alpha_omega {alpha_omega:.5f}; omega begins anew")


def _head(model: nn.Module, classes: int) -> str | None:
    """Name of the layer that makes the logits: the last with so many outputs."""
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.shape[0] == classes
    ]
    return layers[-1] if layers else None


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _shapes(tensors: dict[str, Tensor]) -> str:
    return _few([f"{name} {list(t.shape)}" for name, t in list(tensors.items())[:2]])
