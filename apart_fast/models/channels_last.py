"""Pixels go into a network channels-last; a network that calls `view` on its maps takes no such tensor."""

import torch
from torch import Tensor, nn

from apart_fast.models.modes import evaluating


class PlainLayout(nn.Module):
    """`model`, whose pixels are copied into plain NCHW first."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.training = model.training
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
    """`model`, or `PlainLayout` of it where it cannot take channels-last pixels (then its weights become plain too).

    Args:
        model: what it computes stays as it is: the trial is in eval mode.
        sample: [B, C, H, W] pixels, channels-last, on the model's device.
    """
    if not _views_in_vain(model, sample):
        return model
    plain = PlainLayout(model)
    if _views_in_vain(plain, sample):
        plain.make_weights_plain()
    return plain


def _views_in_vain(model: nn.Module, sample: Tensor) -> bool:
    try:
        with evaluating(model), torch.no_grad():
            model(sample)
    except RuntimeError as error:  # whatever else is wrong is told by the real call
        return "view size is not compatible" in str(error)
    return False
