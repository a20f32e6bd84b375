"""Which layers of a network get another forward for training steps."""

import torch
from torch import Tensor, nn

from apart_fast.models.dressing import Dressed
from apart_fast.models.patches import multiply_patches
from apart_fast.models.stem import keep_stem_precise
from apart_fast.models.thinning import thin_out


def dress_layers(
    model: nn.Module, network: nn.Module, sample: Tensor, amp: torch.dtype | None, dressed: list[Dressed]
) -> nn.ModuleList:
    """Dress them, in place; returns those that take no casts of their weights from autocast.

    Args:
        network: the model, or what wraps it.
        sample: [B, C, H, W] pixels on its device.
        amp: what autocast computes in; None: there is none.
        dressed: takes the handles, as soon as there are any.
    """
    on_cpu = sample.device.type == "cpu"
    if on_cpu:
        dressed += multiply_patches(model, amp)
    if amp is not None or sample.device.type == "cuda":  # where TF32 would round the perturbation away
        dressed += keep_stem_precise(network, sample)
    uncast = nn.ModuleList(handle.layer for handle in dressed)
    if on_cpu:
        dressed += thin_out(model)
    return uncast
