"""Pixels go into a network channels-last; a network that calls `view` on its maps takes no such tensor."""

import torch
from torch import Tensor, nn

from apart_fast.modes import evaluating


class PlainLayout(nn.Module):
    """`model`, whose pixels are copied into plain NCHW first."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] pixels of any layout -> logits."""
        return self.model(x.contiguous())


def any_layout(model: nn.Module, sample: Tensor) -> nn.Module:
    """`model`, or `PlainLayout` of it where it cannot take channels-last pixels.

    Args:
        model: stays as it is: the trial is in eval mode.
        sample: [B, C, H, W] pixels, channels-last, on the model's device.
    """
    try:
        with evaluating(model), torch.no_grad():
            model(sample)
    except RuntimeError as error:
        if "view size is not compatible" in str(error):
            return PlainLayout(model)
        # whatever else is wrong is told by the real call
    return model
