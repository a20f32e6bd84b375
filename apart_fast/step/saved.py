"""State of a training step taken over from a checkpoint."""

import hashlib

import torch
from torch import Tensor

from apart_fast.errors import UserError

LATER = ("epoch", "eta", "momentum")  # what earlier versions did not save: it stays as it is


def take_over(state: dict[str, Tensor], mine: dict[str, Tensor], generator: torch.Generator) -> None:
    """Copy `state` into the tensors of `mine`, and its generator's state into `generator`.

    The generator's state goes from device to device of one kind only; for another kind it is drawn anew from it.

    Raises:
        UserError: another set of names, or a tensor of another shape or dtype; then nothing was copied.
    """
    state = {name: mine[name] for name in LATER if name in mine} | state
    for name in mine.keys() | state.keys():
        there = name in mine and name in state
        if not there or (mine[name].shape != state[name].shape and name != "generator"):
            shapes = [tuple(s[name].shape) if name in s else "nothing" for s in (state, mine)]
            raise UserError(
                f"saved training state does not fit: {name} is {shapes[0]} there and {shapes[1]} here; "
                "resume with the same method, data and model"
            )
        if mine[name].dtype != state[name].dtype:
            raise UserError(
                f"saved training state does not fit: {name} is {state[name].dtype} there, {mine[name].dtype} here"
            )
    for name, tensor in mine.items():
        if name != "generator":
            tensor.copy_(state[name])
    saved = state["generator"].cpu()
    if saved.shape == generator.get_state().shape:
        generator.set_state(saved)
    else:  # of another kind of device: new numbers, but the same ones each time
        digest = hashlib.sha256(saved.numpy().tobytes()).digest()
        generator.manual_seed(int.from_bytes(digest[:8], "little", signed=True))
