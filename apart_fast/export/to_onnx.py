"""A file for ONNX Runtime: input `pixels` [batch, C, H, W], output `logits` [batch, classes], float32."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apart_fast.errors import UserError
from apart_fast.export.stored import Stored
from apart_fast.export.tracing import BATCH, traced
from apart_fast.runs.states import EXPORTED

_LARGEST = 2**31 - 2**20  # bytes of the weights: a protobuf message has at most 2 GiB


def contents(stored: Stored, licence: str) -> dict[str, bytes]:
    """The file; its metadata entry "apart_fast" holds classes, card and licence as JSON.

    Raises:
        UserError: the network cannot be traced, or is too large for one file.
    """
    if sum(t.nbytes for t in stored.weights.values()) > _LARGEST:
        raise UserError("the network has more than 2 GB, which is too large for an ONNX file: use --to safetensors")
    with _quiet():
        proto = traced(stored, _trace, "an ONNX file").model_proto
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.initializer):
        del part.metadata_props[:]  # where this installation lies is nobody's business
    entry = proto.metadata_props.add()
    entry.key, entry.value = EXPORTED, stored.about(licence)
    return {"": proto.SerializeToString()}


def _trace(network: nn.Module, pixels: Tensor) -> Any:
    program = torch.onnx.export(
        network,
        (pixels,),
        dynamo=True,
        verbose=False,
        dynamic_shapes=(BATCH,),
        input_names=["pixels"],
        output_names=["logits"],
    )
    assert program is not None
    return program


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Within: the exporter's own talk of its versions and passes is not heard."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def reopen(place: Path) -> Callable[[Tensor], Tensor]:
    """From pixels [B, C, H, W] to logits, by the file alone, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(place, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(["logits"], {"pixels": pixels.contiguous().numpy()})[0])
