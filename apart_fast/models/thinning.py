"""Strided 1 x 1 convolutions of few channels without their stride, for CPUs: the pixels are thinned out before.

oneDNN (as in torch 2.11 to 2.14) writes past the end of a buffer in the float32 weight gradient of a strided 1 x 1
convolution whose channels-last input has fewer channels than a vector has room for (16 with AVX-512), as the
shortcuts of narrow residual networks are: wrong gradients, or "double free or corruption"
(https://github.com/uxlfoundation/oneDNN/issues/6035). With the pixels taken out before, the result has the same bits.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from apart_fast.models.dressing import Dress, Dressed, plain_convolutions

_WIDEST = 16  # channels of a block


class _Thinned(Dress):
    """Mixed into the class of a `Conv2d` with a kernel of 1 x 1 and no padding."""

    def forward(self, x: Tensor) -> Tensor:
        layer: Any = self
        down, right = layer.stride
        x = x[..., ::down, ::right]
        return nn.functional.conv2d(x, layer.weight, layer.bias, groups=layer.groups)


def thin_out(model: nn.Module) -> list[Dressed]:
    """Let the convolutions of `model` that oneDNN computes wrongly take thinned pixels, in place; their handles."""
    return [Dressed(layer, _Thinned) for layer in _affected(model)]


def _affected(model: nn.Module) -> Iterator[nn.Module]:
    for layer in plain_convolutions(model):
        pointwise = layer.kernel_size == (1, 1) and layer.padding in ((0, 0), "valid")
        if pointwise and layer.stride != (1, 1) and layer.in_channels // layer.groups < _WIDEST:
            yield layer
