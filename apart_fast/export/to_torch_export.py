"""A file for `torch.export.load`: the network traced, torch alone opens it."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from apart_fast.export.stored import Stored
from apart_fast.export.tracing import BATCH, traced
from apart_fast.runs.states import EXPORTED


def contents(stored: Stored, licence: str) -> dict[str, bytes]:
    """The file; `extra_files` of `torch.export.load` finds "apart_fast.json" in it: classes, card, licence.

    Raises:
        UserError: the network cannot be traced.
    """
    program = traced(stored, _trace, "a torch.export file")
    for node in program.graph.nodes:  # where this installation lies is nobody's business
        node.meta.pop("stack_trace", None)
    memory = io.BytesIO()
    torch.export.save(program, memory, extra_files={f"{EXPORTED}.json": stored.about(licence)})
    return {"": memory.getvalue()}


def _trace(network: nn.Module, pixels: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(network, (pixels,), dynamic_shapes=(BATCH,))


def reopen(place: Path) -> Callable[[Tensor], Tensor]:
    """From pixels [B, C, H, W] to logits, by the file alone."""
    with open(place, "rb") as file:  # by its path it would have to end in .pt2
        return torch.export.load(cast(io.BytesIO, file)).module()
