"""Models by name. Pixels stay in [0, 1] outside; normalisation, if any, is inside the model."""

import difflib
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from apart_fast.errors import UserError
from apart_fast.models import external
from apart_fast.models.default_points import default_points
from apart_fast.models.normalize import MeanStd, Normalize
from apart_fast.models.preact_resnet import BasicBlock, Bottleneck, PreActResNet
from apart_fast.models.size import parameter_bytes, refuse_too_large
from apart_fast.models.wide_resnet import WideResNet
from apart_fast.units import Bounds, check_number

__all__ = ["MODELS", "SOURCES", "Normalize", "build_model", "default_points"]

MIN_SIZE = 8

MODELS: dict[str, Callable[..., nn.Module]] = {
    "preact_resnet18": partial(PreActResNet, BasicBlock, (2, 2, 2, 2)),
    "preact_resnet34": partial(PreActResNet, BasicBlock, (3, 4, 6, 3)),
    "preact_resnet50": partial(PreActResNet, Bottleneck, (3, 4, 6, 3)),
    "wide_resnet28_10": partial(WideResNet, 28, 10),
    "wide_resnet34_10": partial(WideResNet, 34, 10),
}

SOURCES = {"torchvision": external.TORCHVISION, "timm": external.TIMM}  # of "source/name"


def build_model(
    name: str,
    num_classes: int,
    *,
    in_channels: int = 3,
    image_size: tuple[int, int] = (32, 32),
    width: float = 1.0,
    normalize: MeanStd | None = None,
) -> nn.Module:
    """A new model with random weights (torch's global generator), float32, on the CPU, channels-last, in training mode.

    Args:
        name: a key of `MODELS`, or "torchvision/NAME", or "timm/NAME".
        num_classes: number of logits, at least 2.
        in_channels: channels of the images.
        image_size: (height, width) of the images, each at least 8. A model of timm that takes one size only is made for
            this one, where it can be.
        width: factor on the channel counts; only for `MODELS`.
        normalize: (mean, std), one number for each channel, in pixels of [0, 1].

    Raises:
        UserError: unknown name (close matches are shown), a value that does not fit, more parameters than memory has
            room for, or timm is not installed.
    """
    check_number("num_classes", num_classes, Bounds(2, 10**9, whole=True))
    check_number("in_channels", in_channels, Bounds(1, 10**6, whole=True))
    check_number("width", width, Bounds(0, 1e12))
    if min(image_size) < MIN_SIZE:
        raise UserError(f"images of {image_size[0]}x{image_size[1]} are too small: each side needs at least {MIN_SIZE}")
    if width == 0:
        raise UserError(f"width {width} is not a positive factor")
    source, slash, inner = name.partition("/")
    if name in MODELS:
        make = partial(MODELS[name], num_classes, in_channels=in_channels, width=width, normalize=normalize)
        if width > 1 and torch.get_default_device().type != "meta":  # else it takes no memory
            refuse_too_large(parameter_bytes(make), f"{name} of width {width:g}")
        model = make()
    elif slash and source in SOURCES:
        known = SOURCES[source].names()
        if inner not in known:
            raise _unknown(name, [f"{source}/{n}" for n in known])
        if width != 1.0:
            raise UserError(f"{name} has no width factor: leave width at 1, or use one of {', '.join(MODELS)}")
        model = SOURCES[source].build(inner, num_classes, in_channels, image_size, normalize)
    else:
        raise _unknown(name, [*MODELS, *(f"torchvision/{n}" for n in external.torchvision_names())])
    return model.to(memory_format=torch.channels_last)


def _unknown(name: str, known: list[str]) -> UserError:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(MODELS)}, torchvision/NAME, timm/NAME"
    return UserError(f"unknown model {name!r}: {hint}")
