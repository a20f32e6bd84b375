"""What kernels use as addresses is checked first: out of range, they would read and write beside a tensor."""

import torch
from torch import Tensor


def check_inside(values: Tensor, size: int, message: str) -> None:
    """Refuse integers that are not in 0..size-1, without waiting for the device.

    Raises:
        IndexError: `message`, on the CPU. On a GPU a device-side assertion fails with it later; while a CUDA graph is
            captured nothing is checked, since the same step ran without one before.
    """
    if values.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    inside = ((values >= 0) & (values < size)).all()
    if values.is_cuda:
        torch._assert_async(inside, message)
    elif not inside:
        raise IndexError(message)
