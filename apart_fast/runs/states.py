"""What checkpoints hold, and whether their tensors are sound."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import torch
from torch import Tensor

from apart_fast.runs.schema import Rule, between, misfit

FORMAT = 1
EXPORTED = "apart_fast"  # of the metadata of exported files: what says what they are
MANY = 10**9  # more epochs, steps or images than any run has
_DTYPES = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool),
}

Count = Annotated[int, between(0, MANY)]
Size = Annotated[int, between(1, 65535)]
Tensors = dict[str, Tensor]


def _like(dtype: torch.dtype, *shape: int) -> Rule:
    def wrong(tensor: Tensor) -> str | None:
        if tensor.dtype == dtype and (tensor.shape == shape or not shape and tensor.ndim == 1):
            return None
        return f"is {_shown(tensor)} instead of {dtype} {list(shape) if shape else '[n]'}"

    return Rule(wrong)


def _no_random_state(state: Tensor) -> str | None:
    try:
        torch.Generator().set_state(state.cpu())
    except (RuntimeError, TypeError) as error:
        return f"is no state of a random generator ({str(error).splitlines()[0]})"
    return None


def _odd_generator(apart: dict[str, Tensor]) -> str | None:
    return misfit(apart.get("generator"), Annotated[Tensor, _like(torch.uint8)] | None, "generator")


def _no_name(name: str) -> str | None:
    return None if re.fullmatch(r"[\w-][\w.-]*", name) else "is no name of a folder"


class Pictured(TypedDict):
    """What a network takes and gives."""

    num_classes: Annotated[int, between(2, 10**6)]
    in_channels: Annotated[int, between(1, 1000)]
    image_size: tuple[Size, Size]


@dataclass
class Description:
    """Arguments of `build_model`."""

    name: str
    num_classes: Annotated[int, between(2, 10**6)]
    in_channels: Annotated[int, between(1, 1000)]
    image_size: tuple[Size, Size]
    width: Annotated[float, between(1e-3, 1e3)] = 1.0
    normalize: tuple[tuple[float, ...], tuple[float, ...]] | None = None


class Named(TypedDict):
    """What is said of its network in an exported file, as far as another training asks."""

    classes: list[str]


class Ours(TypedDict):
    """What tells a checkpoint of this program from others."""

    format: Literal[1]
    model: Any
    description: Any
    dataset: Any


class Resizing(TypedDict):
    """How pictures were brought to one size."""

    size: Size
    how: Literal["crop", "pad", "squash"]


class Reading(TypedDict):
    """How the training data was read (`apart_fast.loaders.datasets.reading.reading_of`)."""

    resizing: Resizing | None
    image_column: str | None
    label_column: str | None
    train_split: str | None
    test_split: str | None


class Weights(TypedDict):
    """A checkpoint of a network: best.pt, weights/epoch-0001.pt; `averaged`: whether `model` is the average."""

    format: Literal[1]
    kind: Literal["weights", "training"]
    model: Tensors
    description: Description
    classes: NotRequired[list[str]]
    dataset: str
    reading: NotRequired[Reading]
    method: NotRequired[str]
    epoch: Count
    averaged: NotRequired[bool]


@dataclass
class Progress:
    """Where a run stands; what older versions did not know has a default."""

    epoch: Count
    step: Count
    seconds: Annotated[float, between(0, 1e12)]
    best_accuracy: Annotated[float, between(-1, 1)]
    best_epoch: Count
    best_by: str
    epoch_seconds: float = 0.0
    epoch_joules: float = 0.0
    peak_gpu_bytes: Annotated[int, between(0, 2**60)] = 0


@dataclass
class Watch:
    """What is known of collapses."""

    best: Annotated[float, between(0, 1)]
    collapsed: bool
    epochs: list[Count] = field(default_factory=list)


@dataclass
class Random:
    """States of torch's generators."""

    cpu: Annotated[Tensor, _like(torch.uint8), Rule(_no_random_state)]
    cuda: Annotated[Tensor, _like(torch.uint8)] | None = None


class Ranks(TypedDict):
    """Of several processes: under which `name` they keep the rest, how many they were, and of how many examples."""

    name: Annotated[str, Rule(_no_name)]
    size: Annotated[int, between(1, 10**6)]
    total: Count


class Rank(TypedDict):
    """What one of several processes keeps: its examples, their omega, its running statistics and random state."""

    format: Literal[1]
    kind: Literal["rank"]
    examples: Annotated[Tensor, _like(torch.int64)]
    memory: Tensor | None
    buffers: Tensors
    average: Tensors | None
    rng: Random


class Scaler(TypedDict):
    """State of a `torch.amp.GradScaler`."""

    scale: float
    growth_factor: float
    backoff_factor: float
    growth_interval: int
    _growth_tracker: int


class Training(Weights):
    """last.pt: all that a run needs to go on."""

    average: Tensors | None
    optimizer: list[Tensor]
    apart: Annotated[Tensors, Rule(_odd_generator)]
    scaler: Scaler | None
    progress: Progress
    watch: Watch
    totals: Annotated[Tensor, _like(torch.float64, 4)]
    threads: Annotated[int, between(1, 4096)]
    data: str
    rng: Random
    ranks: NotRequired[Ranks]


def unfit_rank(state: dict) -> str | None:
    """As `unfit`, of the file of a rank."""
    return misfit(state, Rank)


def unfit(state: dict) -> str | None:
    """What of a checkpoint is not what a run writes, in words that begin with its name; None: nothing."""
    if (wrong := misfit(state, Training if state.get("kind") == "training" else Weights)) is not None:
        return wrong
    classes, known = state["description"]["num_classes"], len(state.get("classes", ()))
    return None if known in (0, classes) else f"classes has {known} names for {classes} classes"


def unsound(state: object) -> str | None:
    """The first tensor in nested dicts, lists and tuples that no run writes, and why; None: there is none.

    Runs write dense tensors of numbers of their own, all of which are finite.
    """
    for name, tensor in _tensors(state, ""):
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.dtype not in _DTYPES or tensor.is_meta:
            return f"{name} is {_shown(tensor)}, which no run writes"
        if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            return f"{name} is {_shown(tensor)}, in fewer bytes than that"
        # aminmax hands on NaN, and reads each number once
        if tensor.is_floating_point() and tensor.numel() and not all(v.isfinite() for v in torch.aminmax(tensor)):
            return f"{name} has numbers that are not finite"
    return None


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value.detach()
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in items:
        yield from _tensors(item, f"{name}.{key}" if name else str(key))


def _shown(tensor: Tensor) -> str:
    kind = "" if tensor.layout == torch.strided else f" ({tensor.layout})"
    return f"{tensor.dtype} {list(tensor.shape)}{kind}"
