"""What a network gives: one score for each class of each image, or a line that says what it gives instead."""

import torch
from torch import Tensor, nn

from apart_fast.errors import UserError

_HALF = (torch.float16, torch.bfloat16)


def check_logits(output: object, images: int) -> Tensor:
    """`output` as logits [images, classes], float32 or float64; float16 and bfloat16 become float32.

    Looks at type and shape only, so nothing waits for the device and a CUDA graph can hold it.

    Raises:
        UserError: something else than floating-point scores of at least two classes for each of the images.
    """
    if not isinstance(output, Tensor):
        raise UserError(
            f"the model gives a {type(output).__name__}, not a tensor: wrap it so that it gives its logits "
            "[B, classes] alone"
        )
    shape = list(output.shape)
    if output.dim() != 2 or len(output) != images:
        hint = "flatten them" if len(shape) > 2 and shape[0] == images and set(shape[2:]) == {1} else "wrap it"
        raise UserError(
            f"the model gives {shape} for {images} images: {hint}, so that it gives logits [B, classes], a row for "
            "each image"
        )
    if shape[1] < 2:
        raise UserError(
            f"the model gives {shape} for {images} images: it needs a logit for each of two classes or more"
        )
    if not output.is_floating_point():
        raise UserError(f"the model gives {output.dtype}: logits are floating-point scores, as before argmax")
    return output.float() if output.dtype in _HALF else output


def check_parameters(model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Refuse what cannot be trained: a model without parameters, or with some of another dtype than `dtype`.

    Raises:
        UserError: one line with the parameter.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"the model is a {type(model).__name__}: give a torch.nn.Module that takes [B, C, H, W] pixels")
    named = list(model.named_parameters())
    if not named:
        raise UserError("the model has no parameters: there is nothing to train")
    for name, parameter in named:
        if parameter.is_floating_point() and parameter.dtype != dtype:
            raise UserError(f"{name} is {parameter.dtype}, pixels are {dtype}: {_cast(dtype)}")


@torch.no_grad()
def count_classes(model: nn.Module, sample: Tensor) -> int:
    """Number of logits that the model gives for a few images [B, C, H, W].

    Raises:
        UserError: it gives no logits, or does not take pixels of this dtype because its parameters have another one.
    """
    try:
        output = model(sample)
    except RuntimeError as error:
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and parameter.dtype != sample.dtype:
                raise UserError(
                    f"the model does not take {sample.dtype} pixels, {name} is {parameter.dtype}: {_cast(sample.dtype)}"
                ) from error
        raise
    return check_logits(output, len(sample)).shape[1]


def _cast(dtype: torch.dtype) -> str:
    half = "; amp=torch.bfloat16 is the way to mixed precision" if dtype == torch.float32 else ""
    return f"call model.{'float' if dtype == torch.float32 else 'double'}(){half}"
