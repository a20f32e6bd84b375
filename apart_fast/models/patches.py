"""Wide convolutions of small maps as matrix products of their patches, for CPUs with AMX in bfloat16.

oneDNN (as in torch 2.14) is far from a matrix product's speed where a map has few pixels and many channels, as in a
residual network's last stage (benchmarks/results/patch-products). The sums are the same, added in another order.

In pass 1 such layers have to be frozen: a backward of our own is not told that nobody wants the weights' gradient.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apart_fast.models.dressing import Dress, Dressed, plain_convolutions

_NARROWEST, _MOST_PIXELS = 256, 16  # channels of a layer; pixels of a map that it makes

Pair = tuple[int, int]


def multiply_patches(model: nn.Module, amp: torch.dtype | None) -> list[Dressed]:
    """Let wide convolutions of `model` multiply patches where their maps are small, in place; their handles.

    Nothing changes without AMX, and where `amp` is not bfloat16.
    """
    if amp != torch.bfloat16 or not torch.cpu._is_amx_tile_supported():
        return []
    return [Dressed(layer, _Multiplied) for layer in _wide(model)]


def _wide(model: nn.Module) -> Iterator[nn.Module]:
    for layer in plain_convolutions(model):
        plain = layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
        wide = min(layer.in_channels, layer.out_channels) >= _NARROWEST and layer.kernel_size != (1, 1)
        if plain and wide and not isinstance(layer.padding, str):
            yield layer


class _Multiplied(Dress):
    """Mixed into the class of a `Conv2d` without groups and dilation."""

    def forward(self, x: Tensor) -> Tensor:
        layer: Any = self
        sizes = zip(x.shape[-2:], layer.padding, layer.kernel_size, layer.stride, strict=True)
        down, right = ((size + 2 * pad - kernel) // stride + 1 for size, pad, kernel, stride in sizes)
        if x.dim() != 4 or not 0 < down * right <= _MOST_PIXELS or not _in_bfloat16(x, layer.weight):
            return super().forward(x)  # type: ignore[misc]
        dtype = torch.bfloat16
        bias = None if layer.bias is None else layer.bias.to(dtype)  # a copy's may come from a BatchNorm (folding.py)
        return patch_conv2d(x.to(dtype), layer.weight.to(dtype), bias, layer.stride, layer.padding)


def _in_bfloat16(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution of these would compute so, on the CPU."""
    kinds = {x.dtype, weight.dtype}
    if torch.is_autocast_enabled("cpu"):
        cast = torch.get_autocast_dtype("cpu") == torch.bfloat16 and torch.float64 not in kinds
    else:
        cast = kinds == {torch.bfloat16}
    return cast and x.device.type == "cpu"


def patch_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Pair = (1, 1), padding: Pair = (0, 0)
) -> Tensor:
    """`torch.nn.functional.conv2d`, as products of matrices.

    Args:
        x: [B, C, H, W], quickest in channels-last layout.
        weight: [O, C, K, L]; bias: [O]; both of the same dtype.

    Returns:
        [B, O, H', W'], channels-last.
    """
    return _PatchConv.apply(x, weight, bias, stride, padding)


class _PatchConv(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
        patches = _patches(x, weight.shape[2:], stride, padding)
        return _channels_first(F.linear(patches.flatten(0, 2), _matrix(weight), bias), patches.shape[:3])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, weight, _, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)  # not the patches, which are quicker made anew than kept

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        kernel: Any = weight.shape[2:]
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0] and ctx.stride == (1, 1):  # a convolution with the turned kernel
            padding = (kernel[0] - 1 - ctx.padding[0], kernel[1] - 1 - ctx.padding[1])
            patches = _patches(gradient, kernel, (1, 1), padding)
            turned = weight.flip(2, 3).permute(2, 3, 0, 1).flatten(0, 2)
            of_x = _channels_first(patches.flatten(0, 2) @ turned, patches.shape[:3])
        elif ctx.needs_input_grad[0]:
            settings = (None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1)
            of_x = torch.ops.aten.convolution_backward(gradient, x, weight, *settings, (True, False, False))[0]
        if ctx.needs_input_grad[1]:
            patches = _patches(x, kernel, ctx.stride, ctx.padding)
            matrix = gradient.permute(0, 2, 3, 1).flatten(0, 2).t() @ patches.flatten(0, 2)
            of_weight = matrix.unflatten(1, (*kernel, -1)).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None, None


def _patches(x: Tensor, kernel: Any, stride: Pair, padding: Pair) -> Tensor:
    """[B, H', W', K L C]: what the kernel sees at each pixel, of x [B, C, H, W]."""
    down, right = padding
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, right, right, down, down))
    seen = padded.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1])  # [B, H', W', C, K, L]
    return seen.permute(0, 1, 2, 4, 5, 3).flatten(3)


def _matrix(weight: Tensor) -> Tensor:
    """[O, K L C] of [O, C, K, L]; a view where the weight is channels-last."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _channels_first(pixels: Tensor, shape: Any) -> Tensor:
    """[B, C, H, W] of [B H W, C]."""
    return pixels.unflatten(0, shape).permute(0, 3, 1, 2)
