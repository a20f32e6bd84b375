"""A convolution that a GPU computes in full float32, whatever the program has set; eager and compiled.

cuDNN's default for float32 convolutions is TF32, which keeps 10 bits of each factor: of a perturbation of 1e-4 more
than half of the pixels in [0, 1] lose it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from apart_fast.precision import float32_as


@torch.library.custom_op("apart_fast::ieee_conv2d", mutates_args=())
def ieee_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """`torch.nn.functional.conv2d` of x [B, C, H, W] whose forward is exact in float32.

    Its backward is in the program's own precision: signs of gradients do not need more.
    """
    with float32_as("ieee"):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


@ieee_conv2d.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, bias, *settings = inputs
    ctx.save_for_backward(x, weight)
    ctx.bias_size, ctx.settings = None if bias is None else list(bias.shape), settings


def _backward(ctx: Any, grad: Tensor) -> tuple:
    x, weight = ctx.saved_tensors
    stride, padding, dilation, groups = ctx.settings
    wanted = list(ctx.needs_input_grad[:3])
    grads = torch.ops.aten.convolution_backward(
        grad, x, weight, ctx.bias_size, stride, padding, dilation, False, [0, 0], groups, wanted
    )
    return (*grads, None, None, None, None)


ieee_conv2d.register_autograd(_backward, setup_context=_setup)
