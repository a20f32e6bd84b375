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


def check_batch(
    images: Tensor, labels: Tensor, image_shape: tuple[int, ...], padding: int, **each: Tensor | None
) -> None:
    """Refuse shapes, dtypes, offsets and rows with which a kernel would read beside the tensors.

    Args:
        images: uint8 [M, *image_shape]; labels: int64 [B].
        each: the tensors `indices`, `rows`, `offsets` and `flips` of `Apart.step`, or None for those not given.

    Raises:
        ValueError: another shape or dtype.
        IndexError: an offset or row that is out of range (see `check_inside`).
    """
    n = len(labels)
    if labels.shape != (n,) or labels.dtype != torch.int64:
        raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}: give int64 [B]")
    if images.shape[1:] != image_shape:
        raise ValueError(f"images are {tuple(images.shape)}: give [B, {', '.join(map(str, image_shape))}]")
    if each["rows"] is None and len(images) != n:
        raise ValueError(f"{len(images)} images and {n} labels: give as many, or rows")
    for name, tensor in each.items():
        shape = (n, 2) if name == "offsets" else (n,)
        dtype = torch.bool if name == "flips" else torch.int64
        if tensor is not None and (tensor.shape != shape or tensor.dtype != dtype):
            raise ValueError(f"{name} are {tensor.dtype} {tuple(tensor.shape)}: give {dtype} {shape}")
    if (offsets := each["offsets"]) is not None:
        check_inside(offsets, 2 * padding + 1, f"an offset is outside of 0..{2 * padding}")
    if (rows := each["rows"]) is not None:
        check_inside(rows, len(images), f"a row is outside of 0..{len(images) - 1}, those of images")
