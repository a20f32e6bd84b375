"""Trying a network on a few images without leaving a trace in it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from apart_fast.errors import UserError
from apart_fast.models.modes import evaluating


@contextmanager
def trial_of_training(model: nn.Module) -> Iterator[None]:
    """Within: all modules are in training mode. Buffers, modes and random states are as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {buffer.device for buffer, _ in buffers if buffer.is_cuda}
    with torch.random.fork_rng(devices):
        model.train()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
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
    """Refuse images that a network cannot take.

    Args:
        sample: [B, C, H, W] pixels on its device.
        amp: dtype of the autocast that it is called under; None: none.

    Raises:
        UserError: it fails on them, in eval mode and in training mode too.
    """
    reason: Exception | None = None
    for mode in (evaluating, trial_of_training):
        try:
            with torch.no_grad(), uncompiled(), mode(network):
                with torch.autocast(sample.device.type, dtype=amp, enabled=amp is not None):
                    network(sample)
            return
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            reason = error
    channels, height, width = sample.shape[1:]
    line = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
    raise UserError(f"the model cannot take {height}x{width} images with {channels} channels: {line}") from reason
