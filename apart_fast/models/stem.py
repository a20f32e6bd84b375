"""The first layer in full precision: bfloat16 has a spacing of 1/256 near 1 and would swallow a perturbation.

Under autocast the pixels are cast by the first convolution; with `keep_stem_precise` that one layer (0.3 % of the
FLOPs of PreActResNet-18) computes in its parameters' dtype and only its result is cast. On a GPU it computes in IEEE
float32 besides, with autocast and without: cuDNN's TF32 keeps 10 bits.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from apart_fast.models.ieee_conv import ieee_conv2d
from apart_fast.models.modes import evaluating
from apart_fast.precision import float32_as

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class _Precise:
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

    def __reduce_ex__(self, protocol: Any) -> tuple:
        made: Any = super().__reduce_ex__(max(protocol, 2))
        _, (kind,), *rest = made  # copyreg.__newobj__, (class,), state, ...
        return (_new_precise, (kind.__bases__[1],), *rest)  # pickle does not find a class that was made here


_PRECISE: dict[type, type] = {}  # class of a layer -> the same, precise


def find_stem(model: nn.Module, sample: Tensor) -> nn.Module | None:
    """The first convolution or linear layer that a forward of `sample` [B, C, H, W] calls, or None."""
    called: list[nn.Module] = []
    handles = [
        module.register_forward_pre_hook(lambda m, _: called.append(m))
        for module in model.modules()
        if isinstance(module, _LAYERS)
    ]
    try:
        with evaluating(model), torch.no_grad():  # no running statistics change
            model(sample)
    finally:
        for handle in handles:
            handle.remove()
    return called[0] if called else None


class PreciseStem:
    """Handle of a first layer that leaves autocast."""

    def __init__(self, layer: nn.Module):
        self.layer = layer
        self._mine = not isinstance(layer, _Precise)
        if self._mine:
            layer.__class__ = _precise(type(layer))

    def remove(self) -> None:
        """Give the layer the class back that it came with, unless somebody else had changed it before."""
        if self._mine:
            self.layer.__class__ = layer_class(self.layer)
            self._mine = False


def keep_stem_precise(model: nn.Module, sample: Tensor) -> PreciseStem | None:
    """Let the model's first layer compute outside autocast, in place.

    Args:
        sample: [B, C, H, W] pixels on the model's device, to see which layer is the first.

    Returns:
        a handle with `remove()`; None, after a warning, where there is no such layer.
    """
    stem = find_stem(model, sample)
    if stem is None:
        warnings.warn(
            "found no first convolution to keep in float32: under mixed precision, check that a perturbation of "
            "eps/100 still reaches the network",
            stacklevel=2,
        )
        return None
    return PreciseStem(stem)


def layer_class(layer: nn.Module) -> type[nn.Module]:
    """The class of a layer as it came, whether or not it is kept precise."""
    kind = type(layer)
    return kind.__bases__[1] if issubclass(kind, _Precise) else kind


def _precise(kind: type) -> type:
    """One class for each, made once: state_dict, isinstance, deepcopy and pickle work as before."""
    return _PRECISE.setdefault(kind, type(f"Precise{kind.__name__}", (_Precise, kind), {}))


def _new_precise(kind: type) -> Any:
    made: Any = _precise(kind)
    return made.__new__(made)
