"""What float32 means on a GPU, and which low precisions a device computes in hardware."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

# through this interface alone: torch refuses to read a precision by its older one after it was set by this one
_backends: Any = torch.backends
_PARTS = (_backends.cudnn.conv, _backends.cudnn.rnn, _backends.cuda.matmul)


@contextmanager
def float32_as(precision: Literal["ieee", "tf32"]) -> Iterator[None]:
    """Within: float32 on a GPU is computed so; `tf32` keeps 10 bits of each factor and is what cuDNN's convolutions do
    unless told otherwise. Afterwards all is as it was, however the program had set it.
    """
    before = [part.fp32_precision for part in _PARTS]
    try:
        for part in _PARTS:
            part.fp32_precision = precision
        yield
    finally:
        for part, value in zip(_PARTS, before, strict=True):
            part.fp32_precision = value


def has_bfloat16(device: torch.device | str) -> bool:
    """Whether bfloat16 is quicker than float32 there: without instructions for it, it is emulated and slower.

    GPUs from compute capability 8.0 on, x86 CPUs with AVX512-BF16 or AMX; of other CPUs it is not known and taken
    to be so.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
