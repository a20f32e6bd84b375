"""A model in another mode for a while, and then as it was."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor, nn


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within: no parameter requires a gradient, and none is computed or kept for them. Those that did do so again
    afterwards, after an exception too."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


def differentiable(model: nn.Module) -> nn.Module:
    """`model`, or where it was made under `torch.inference_mode` a copy that autograd takes.

    Not to be called within that mode.
    """
    made_so = any(t.is_inference() for t in (*model.parameters(), *model.buffers()))
    return copy.deepcopy(model) if made_so else model


def is_compiled(model: nn.Module) -> bool:
    """Whether calls of `model` go through `torch.compile`."""
    return getattr(model, "_compiled_call_impl", None) is not None or hasattr(model, "_orig_mod")


@contextmanager
def switched(model: nn.Module, training: bool) -> Iterator[None]:
    """Within: all modules are in training mode, or all in eval mode. Each is in its own mode again afterwards, after an
    exception too."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, before in modes:
            module.training = before


def evaluating(model: nn.Module) -> AbstractContextManager[None]:
    """Within: all modules are in eval mode (see `switched`)."""
    return switched(model, training=False)


def running(model: nn.Module) -> dict[str, Tensor]:
    """The floating-point buffers in the state of a model, by name: what normalisation has seen of its inputs."""
    kept = model.state_dict()
    return {name: b for name, b in model.named_buffers() if name in kept and b.is_floating_point()}
