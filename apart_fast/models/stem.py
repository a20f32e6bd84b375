"""The first layer in full precision: bfloat16 has a spacing of 1/256 near 1 and would swallow a perturbation.

Under autocast the pixels are cast by the first convolution; with `keep_stem_precise` that one layer (0.3 % of the
FLOPs of PreActResNet-18) computes in its parameters' dtype and only its result is cast. On a GPU it computes in IEEE
float32 besides, with autocast and without: cuDNN's TF32 keeps 10 bits.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from apart_fast.models.dressing import Dress, Dressed, layer_class
from apart_fast.models.ieee_conv import ieee_conv2d
from apart_fast.models.modes import evaluating
from apart_fast.precision import float32_as

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class _Precise(Dress):
    """Mixed into the class of the first layer: leaves autocast, and TF32, for the layer's own arithmetic."""

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        autocast = torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False):
            x = x.to(self.weight.dtype)  # type: ignore[attr-defined]
            out = self._in_full(x) if device == "cuda" else super().forward(x)  # type: ignore[misc]
        return out.to(torch.get_autocast_dtype(device)) if autocast else out

    def _in_full(self, x: Tensor) -> Tensor:
        layer: Any = self
        if layer_class(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            settings = (list(layer.stride), list(layer.padding), list(layer.dilation), layer.groups)
            return ieee_conv2d(x, layer.weight, layer.bias, *settings)
        with float32_as("ieee"):
            return super().forward(x)  # type: ignore[misc]


def find_stem(model: nn.Module, sample: Tensor) -> list[nn.Module]:
    """The first convolution or linear layer that a forward of `sample` [B, C, H, W] calls, if there is one, and those
    that are called with the same tensor."""
    called: list[tuple[nn.Module, tuple]] = []
    handles = [
        module.register_forward_pre_hook(lambda m, given: called.append((m, given)))
        for module in model.modules()
        if isinstance(module, _LAYERS)
    ]
    try:
        with evaluating(model), torch.no_grad():  # no running statistics change
            model(sample)
    finally:
        for handle in handles:
            handle.remove()
    if not called:
        return []
    first, pixels = called[0]
    beside = [module for module, given in called[1:] if given and pixels and given[0] is pixels[0]]
    return list(dict.fromkeys([first, *beside]))


def keep_stem_precise(model: nn.Module, sample: Tensor) -> list[Dressed]:
    """Let the model's first layer, and those that take the same pixels beside it, compute outside autocast, in place.

    Args:
        sample: [B, C, H, W] pixels on the model's device, to see which layer is the first.

    Returns:
        handles with `remove()`; none, after a warning, where there is no such layer.
    """
    layers = find_stem(model, sample)
    if not layers:
        warnings.warn(
            "found no first convolution to keep in float32: under mixed precision, check that a perturbation of "
            "eps/100 still reaches the network",
            stacklevel=2,
        )
    return [Dressed(layer, _Precise) for layer in layers]
