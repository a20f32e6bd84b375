"""What evaluation refuses of images, labels and counts: one line each, before anything is computed."""

from numbers import Integral

import torch
from torch import Tensor, nn

from apart_fast.errors import UserError


def check_counts(**counts: object) -> None:
    """Refuse what is no integer of at least 1; the keywords name the values.

    Raises:
        UserError: one line with the name and the value.
    """
    for name, value in counts.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise UserError(f"{name.replace('_', ' ')} must be at least 1, an integer, got {value}")


def check_model(model: object) -> None:
    """Refuse what is no `torch.nn.Module`.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"the model is a {type(model).__name__}: give a torch.nn.Module that takes [B, C, H, W] pixels")


def check_device(device: torch.device | str) -> torch.device:
    """`device`, if there is such a one.

    Raises:
        UserError: there is none.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"unknown device {device!r}: give cpu, cuda or cuda:1") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {found}: torch sees {torch.cuda.device_count()} GPUs; give cpu, or none")
    return found


def check_images(images: object) -> None:
    """Refuse what are no raw images.

    Raises:
        UserError: not uint8 [N, H, W, 1 or 3], or none.
    """
    if not isinstance(images, Tensor):
        raise UserError(f"evaluation needs images as a uint8 tensor [N, H, W, 1 or 3], got a {type(images).__name__}")
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[-1] not in (1, 3):
        raise UserError(
            f"evaluation needs uint8 images [N, H, W, 1 or 3], got {images.dtype} with shape {list(images.shape)}"
        )
    if 0 in images.shape:
        raise UserError(f"there are no images to evaluate on: their shape is {list(images.shape)}")


def check_labels(labels: object, images: int) -> None:
    """Refuse what are no labels of so many images; their values need `check_classes`.

    Raises:
        UserError: not an integer tensor [images].
    """
    if not isinstance(labels, Tensor):
        raise UserError(f"labels must be an integer tensor [{images}], got a {type(labels).__name__}")
    integers = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.shape != (images,) or not integers:
        raise UserError(
            f"{images} images need as many integer labels, got {labels.dtype} with shape {list(labels.shape)}"
        )


def check_classes(labels: Tensor, classes: int) -> None:
    """Refuse labels int64 [N], N >= 1, that the model has no logit for; reads them, so it waits for their device.

    Raises:
        UserError: a label that is not in 0..classes-1.
    """
    low, high = labels.aminmax()
    if low < 0 or high >= classes:
        raise UserError(f"labels go from {int(low)} to {int(high)} but the model has {classes} classes")
