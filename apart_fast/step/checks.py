"""What cannot work is told first, in one line. What kernels use as addresses is looked at in each step: out of range,
they would read and write beside a tensor."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from apart_fast.errors import UserError
from apart_fast.kernels.codec import STORE_DTYPES
from apart_fast.units import BOUNDS, Bounds, check_number, check_padding, check_seed

_AMP = (torch.bfloat16, torch.float16)
_DTYPES = (torch.float32, torch.float64)


def check_arguments(
    num_examples: int,
    image_shape: Sequence[int],
    *,
    padding: int,
    amp: torch.dtype | None,
    scaler: object | None,
    label_smoothing: float,
    eta: float,
    decay: float,
    omega_dtype: torch.dtype | None,
    dtype: torch.dtype,
    seed: int,
) -> None:
    """Refuse arguments of `Apart` that make no sense.

    Raises:
        UserError: one line with the argument and what it takes.
    """
    check_number("num_examples", num_examples, BOUNDS["num_examples"])
    sides = tuple(image_shape) if isinstance(image_shape, Sequence) else ()
    if len(sides) != 3:
        raise UserError(f"image_shape is {image_shape}: give (height, width, channels)")
    for name, side in zip(("height", "width", "number of channels"), sides, strict=True):
        check_number(f"image_shape {sides}: the {name}", side, Bounds(1, 2**20, whole=True))
    check_padding("padding", padding, *sides[:2])
    for name, value in (("label_smoothing", label_smoothing), ("eta", eta)):
        check_number(name, value, BOUNDS[name])
    check_number("decay", decay, BOUNDS["step_decay"])
    check_seed(seed)
    for name, kind, choices in (
        ("amp", amp, (None, *_AMP)), ("dtype", dtype, _DTYPES), ("omega_dtype", omega_dtype, (None, *STORE_DTYPES)),
    ):  # fmt: skip
        if kind not in choices:
            raise UserError(f"{name} is {kind!r}: give {', '.join(map(str, choices))}")
    if amp == torch.float16 and scaler is None:
        raise UserError("float16 needs a torch.amp.GradScaler (scaler=...), or gradients vanish: or use bfloat16")


def check_trainable(model: nn.Module) -> None:
    """Refuse a step that could not train the model.

    Raises:
        ValueError: it is in eval mode, all of it is frozen, or gradients are switched off.
    """
    if not model.training:
        raise ValueError("the model is in eval mode: call model.train() before a training step")
    if not torch.is_grad_enabled():
        raise ValueError("gradients are switched off: make training steps outside of no_grad and inference_mode")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("all parameters are frozen: let those that a step is to train require gradients")


def refuse_unless(right: Callable[[], Tensor], like: Tensor, message: str, error: type[Exception] = ValueError) -> None:
    """Refuse values of tensors on the device of `like`, without waiting for it.

    Args:
        right: gives a bool tensor, 0-dim: whether they are right.

    Raises:
        `error` with `message`, on the CPU. On a GPU a device-side assertion fails with it later; while a CUDA graph is
        captured nothing is checked, since the same step ran without one before.
    """
    if like.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    if like.is_cuda:
        torch._assert_async(right(), message)
    elif not right():
        raise error(message)


def check_inside(values: Tensor, size: int, message: str) -> None:
    """Refuse integers that are not in 0..size-1.

    Raises:
        IndexError: see `refuse_unless`.
    """
    refuse_unless(lambda: ((values >= 0) & (values < size)).all(), values, message, IndexError)


def check_unique(values: Tensor, message: str) -> None:
    """Refuse integers [B] of which two are the same.

    Raises:
        ValueError: see `refuse_unless`.
    """

    def unique() -> Tensor:
        ordered = values.sort().values
        return (ordered[1:] != ordered[:-1]).all()

    refuse_unless(unique, values, message)


def check_batch(
    images: Tensor,
    labels: Tensor,
    image_shape: tuple[int, ...],
    padding: int,
    device: torch.device,
    classes: int | None = None,
    host_indices: bool = False,
    **each: Tensor | None,
) -> None:
    """Refuse what a kernel would read beside the tensors with (shapes, dtypes, offsets, rows), and labels of no class.

    Args:
        images: uint8 [M, *image_shape]; labels: int64 [B]; both on `device`.
        classes: how many there are; None: not known yet.
        host_indices: `indices` may be on the CPU too.
        each: the tensors `indices`, `rows`, `offsets` and `flips` of `Apart.step`, or None for those not given.

    Raises:
        ValueError: another shape, dtype or device, or nothing in the batch.
        IndexError: a label, offset or row that is out of range (see `refuse_unless`).
    """
    for name, given in (("labels", labels), ("images", images), *each.items()):
        if given is None and name in each:
            continue
        if not isinstance(given, Tensor):
            raise ValueError(f"{name} are a {type(given).__name__}: give a tensor")
        on_host = name == "indices" and host_indices and given.device.type == "cpu"
        if given.device != device and not on_host:
            raise ValueError(f"{name} are on {given.device}, the model on {device}: move them there")
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
        IndexError: see `refuse_unless`.
    """
    end = torch.iinfo(torch.int64).max if classes is None else classes
    outside = "below 0" if classes is None else f"outside of 0..{classes - 1}"
    check_inside(labels, end, f"a label is {outside}: each image counts, none is ignored")
