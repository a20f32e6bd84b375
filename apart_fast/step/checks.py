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


def check_unique(values: Tensor, message: str) -> None:
    """Refuse integers [B] of which two are the same, without waiting for the device.

    Raises:
        ValueError: `message`, on the CPU; on a GPU as with `check_inside`.
    """
    if values.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    ordered = values.sort().values
    unique = (ordered[1:] != ordered[:-1]).all()
    if values.is_cuda:
        torch._assert_async(unique, message)
    elif not unique:
        raise ValueError(message)


def check_batch(
    images: Tensor,
    labels: Tensor,
    image_shape: tuple[int, ...],
    padding: int,
    classes: int | None = None,
    **each: Tensor | None,
) -> None:
    """Refuse what a kernel would read beside the tensors with (shapes, dtypes, offsets, rows), and labels of no class.

    Args:
        images: uint8 [M, *image_shape]; labels: int64 [B].
        classes: how many there are; None: not known yet.
        each: the tensors `indices`, `rows`, `offsets` and `flips` of `Apart.step`, or None for those not given.

    Raises:
        ValueError: another shape or dtype, or nothing in the batch.
        IndexError: a label, offset or row that is out of range (see `check_inside`).
    """
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}: give int64 [B]")
    n = len(labels)
    if n == 0:
        raise ValueError("the batch is empty: give at least one image")
    if images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype}: give uint8, 0..255")
    if images.shape[1:] != image_shape:
        raise ValueError(f"images are {tuple(images.shape)}: give [B, {', '.join(map(str, image_shape))}]")
    if each["rows"] is None and len(images) != n:
        raise ValueError(f"{len(images)} images and {n} labels: give as many, or rows")
    for name, tensor in each.items():
        shape = (n, 2) if name == "offsets" else (n,)
        dtype = torch.bool if name == "flips" else torch.int64
        if tensor is not None and (tensor.shape != shape or tensor.dtype != dtype):
            raise ValueError(f"{name} are {tensor.dtype} {tuple(tensor.shape)}: give {dtype} {shape}")
    check_labels(labels, classes)
    if (offsets := each["offsets"]) is not None:
        check_inside(offsets, 2 * padding + 1, f"an offset is outside of 0..{2 * padding}")
    if (rows := each["rows"]) is not None:
        check_inside(rows, len(images), f"a row is outside of 0..{len(images) - 1}, those of images")


def check_labels(labels: Tensor, classes: int | None) -> None:
    """Refuse labels int64 [B] that are not in 0..classes-1 (None: that are negative), also those that torch ignores.

    Raises:
        IndexError: see `check_inside`.
    """
    end = torch.iinfo(torch.int64).max if classes is None else classes
    outside = "below 0" if classes is None else f"outside of 0..{classes - 1}"
    check_inside(labels, end, f"a label is {outside}: each image counts, none is ignored")
