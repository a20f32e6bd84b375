"""Pixels go into a network channels-last, and are needed afterwards.

A network that calls `view` on its maps takes no such tensor, and one that works in place on what it is given overwrites
them; neither need know.
"""

from typing import Any

import torch
from torch import Tensor, nn

from apart_fast.models.modes import evaluating


class OwnPixels(nn.Module):
    """`model`, which is given a copy of its pixels."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.training = model.training

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """The model's own, without a prefix."""
        return self.model.state_dict(*args, **options)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """The model's own, without a prefix."""
        return self.model.load_state_dict(*args, **options)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] pixels of any layout -> logits."""
        return self.model(x.clone(memory_format=torch.preserve_format))


class PlainLayout(OwnPixels):
    """`model`, whose pixels are copied into plain NCHW first."""

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self._changed: list[Tensor] = []  # weights that came channels-last and are plain now

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] pixels of any layout -> logits."""
        # a copy even of one channel, whose two layouts look alike
        return self.model(x.clone(memory_format=torch.contiguous_format))

    def make_weights_plain(self) -> None:
        """Lay weights that are channels-last out in plain NCHW: they would make channels-last maps."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        self._changed = [t for t in tensors if t.dim() == 4 and not t.is_contiguous()]
        self.model.to(memory_format=torch.contiguous_format)

    def remove(self) -> None:
        """Give the weights back the layout in which they came."""
        for weight in self._changed:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        self._changed = []


def any_layout(model: nn.Module, sample: Tensor) -> nn.Module:
    """`model`, or `PlainLayout` of it where it cannot take channels-last pixels (then its weights become plain too), or
    `OwnPixels` of it where it overwrites them.

    Args:
        model: what it computes stays as it is: the trial is in eval mode.
        sample: [B, C, H, W] pixels, channels-last, on the model's device.
    """
    pixels = sample.clone(memory_format=torch.preserve_format)
    if not _views_in_vain(model, pixels):
        overwritten = not pixels.is_inference() and pixels._version > 0  # inference tensors have no version
        return OwnPixels(model) if overwritten else model
    plain = PlainLayout(model)
    if _views_in_vain(plain, pixels):
        plain.make_weights_plain()
    return plain


def _views_in_vain(model: nn.Module, pixels: Tensor) -> bool:
    try:
        with evaluating(model), torch.no_grad():
            model(pixels)
    except RuntimeError as error:  # whatever else is wrong is told by the real call
        return "view size is not compatible" in str(error)
    return False
