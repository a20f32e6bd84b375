"""Numbers as they are stored: pixels in uint8 and the remembered direction omega in float32, float16 or int8.

dtype     value
uint8     q / 255 (pixels in [0, 1])
int8      q / 127 (omega in [-1, 1]; encoded with round half to even)
float*    itself
"""

import torch

from apart_fast.errors import UserError
from apart_fast.kernels.launch import jit, tl

LEVELS = {torch.uint8: 255, torch.int8: 127}  # dtype -> the integer that stands for 1
STORE_DTYPES = (torch.float32, torch.float16, torch.int8, torch.float64)


def check_store(store: torch.Tensor, shape: tuple[int, int, int]) -> None:
    """UserError unless `store` is a contiguous [N, *shape] tensor in one of STORE_DTYPES."""
    if store.dtype not in STORE_DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in STORE_DTYPES)
        raise UserError(f"omega cannot be stored as {store.dtype}: choose one of {names}")
    if tuple(store.shape[1:]) != tuple(shape) or not store.is_contiguous():
        wanted = ", ".join(map(str, shape))
        raise UserError(f"the omega store has shape {tuple(store.shape)}: it must be contiguous [N, {wanted}]")


def decode(stored: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Stored numbers of any shape -> values in `dtype` (float32 or float64)."""
    levels = LEVELS.get(stored.dtype)
    values = stored.to(dtype)
    # a tensor on the device, since CUDA torch multiplies by the reciprocal when it divides by a Python number
    return values if levels is None else values / values.new_full((), levels)


def encode(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Values in [-1, 1] of any shape -> the same in the store's `dtype`."""
    levels = LEVELS.get(dtype)
    return values.to(dtype) if levels is None else (values * levels).round_().to(dtype)


@jit
def load_value(pointer, mask, LEVELS: tl.constexpr):
    """Loads stored numbers as float32; LEVELS is 0 for floats. Lanes outside `mask` are 0."""
    v = tl.load(pointer, mask=mask, other=0).to(tl.float32)
    if LEVELS > 0:
        v = tl.div_rn(v, LEVELS * 1.0)
    return v


@jit
def store_value(pointer, v, mask, LEVELS: tl.constexpr):
    """Stores float32 values in [-1, 1]; LEVELS is 0 for floats."""
    if LEVELS > 0:
        # adding 1.5 * 2**23 leaves no bits for the fraction: rounds half to even, as torch.round does
        v = (v * LEVELS + 12582912.0) - 12582912.0
    tl.store(pointer, v.to(pointer.dtype.element_ty), mask=mask)
