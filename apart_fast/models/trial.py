"""Trying a network on a few images without leaving a trace in it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from apart_fast.errors import UserError
from apart_fast.models.modes import evaluating, switched

# what torch says where the number of channels, or height and width, do not suit a layer, whatever the number of images
_SHAPE = ("channels, but got", "mat1 and mat2 shapes", "Kernel size can't be greater", "Output size is too small")


@contextmanager
def trial_of_training(model: nn.Module) -> Iterator[None]:
    """Within: all modules are in training mode. Buffers, modes and random states are as before afterwards."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {tensor.device for tensor in (*model.buffers(), *model.parameters()) if tensor.is_cuda}
    with torch.random.fork_rng(devices), switched(model, training=True):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Within: compiled models run as they are."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled; to import it takes a second
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def check_takes(network: nn.Module, sample: Tensor, amp: torch.dtype | None) -> None:
    """Refuse images of a shape that a layer of the network cannot take.

    What else goes wrong is told by the real call: there are networks made for batches of one size.

    Args:
        sample: [B, C, H, W] pixels on its device.
        amp: dtype of the autocast that it is called under; None: none.

    Raises:
        UserError: one does not, in eval mode and in training mode too.
    """
    reason: Exception | None = None
    for mode in (evaluating, trial_of_training):
        try:
            with torch.no_grad(), uncompiled(), mode(network):
                with torch.autocast(sample.device.type, dtype=amp, enabled=amp is not None):
                    network(sample)
            return
        except Exception as error:
            reason = error
    line = str(reason).strip().partition("\n")[0]
    if not any(words in line for words in _SHAPE):
        return
    channels, height, width = sample.shape[1:]
    raise UserError(f"the model cannot take {height}x{width} images with {channels} channels: {line}") from reason
