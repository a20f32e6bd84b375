"""Random crop and horizontal flip of NHWC tensors, and its inverse: output pixel (h, w) is source pixel
(h + top - padding, (w or W - 1 - w if flipped) + left - padding). A padded store has padding 0."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from apart_fast.kernels.codec import decode
from apart_fast.kernels.launch import jit, tl


@dataclass(frozen=True, eq=False)
class Crops:
    """Which examples a batch of B holds and how each is cropped; it goes unopened from the loader to the kernels.

    Attributes:
        rows: int64 [B], the row of `images` that holds each example.
        indices: int64 [B], rows of the omega store, unique in a batch; None where nothing is remembered.
        offsets: int64 [B, 2], (top, left) of the crop in the padded image, each in 0..2 * padding.
        flips: bool [B], whether the crop is mirrored left to right, after it was cut.
    """

    rows: Tensor
    indices: Tensor | None
    offsets: Tensor
    flips: Tensor

    def __len__(self) -> int:
        return self.rows.shape[0]

    @property
    def omega_rows(self) -> Tensor:
        """`indices`; ValueError where there are none."""
        if self.indices is None:
            raise ValueError("the crops have no indices: nothing is remembered of them")
        return self.indices


def _source_pixels(crops: Crops, out_hw: Sequence[int], padding: int) -> tuple[Tensor, Tensor]:
    """Row [B, H] and column [B, W] of the source for each output row and column, int64, may lie outside."""
    height, width = out_hw
    offsets, flips = crops.offsets, crops.flips
    h = torch.arange(height, device=offsets.device)
    w = torch.arange(width, device=offsets.device)
    rows = h + (offsets[:, :1] - padding)
    cols = torch.where(flips[:, None], width - 1 - w, w) + (offsets[:, 1:] - padding)
    return rows, cols


def _flat_pixels(source: Tensor, which: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Number of each pixel in `source` seen as [N * height * width, C]; int64 [B * H * W]."""
    _, height, width, _ = source.shape
    first = (which[:, None] * height + rows) * width
    return (first[:, :, None] + cols[:, None, :]).flatten()


def gather_crop(
    source: Tensor,
    rows: Tensor,
    crops: Crops,
    out_hw: Sequence[int],
    fill: float | None = None,
    *,
    padding: int = 0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The crop of `source` [N, Hs, Ws, C] for each of B examples: [B, *out_hw, C].

    rows int64 [B]: which source image, `crops.rows` or `crops.omega_rows`. With `fill` the source is unpadded and
    pixels outside it are `fill`; without, every pixel must lie inside. dtype: decode to this float dtype first (see
    codec.py); None keeps the stored numbers.
    IndexError on the CPU for a row out of range; offsets are not checked.
    """
    _, height, width, channels = source.shape
    r, c = _source_pixels(crops, out_hw, padding)
    if fill is not None:
        inside = ((r >= 0) & (r < height))[:, :, None] & ((c >= 0) & (c < width))[:, None, :]
        r, c = r.clamp(0, height - 1), c.clamp(0, width - 1)
    values = source.view(-1, channels).index_select(0, _flat_pixels(source, rows, r, c))
    values = values.view(rows.numel(), *out_hw, channels)
    if dtype is not None:
        values = decode(values, dtype)
    return values if fill is None else values.masked_fill_(~inside[..., None], fill)


def scatter_crop(store: Tensor, values: Tensor, crops: Crops) -> None:
    """Writes `values` [B, H, W, C] (in the store's dtype) back through flip and crop into rows `crops.indices` of
    `store` [N, Hs, Ws, C], in place; everything outside the crops keeps its value. The indices must be unique.
    ValueError without indices."""
    channels = store.shape[-1]
    r, c = _source_pixels(crops, values.shape[1:3], 0)
    store.view(-1, channels).index_copy_(0, _flat_pixels(store, crops.omega_rows, r, c), values.reshape(-1, channels))


@jit
def source_pixel(offsets_ptr, flips_ptr, example, e, W: tl.constexpr, C: tl.constexpr):
    """Row, column and channel in the padded image of element `e` of the NHWC output of `example`."""
    top = tl.load(offsets_ptr + example * 2).to(tl.int32)
    left = tl.load(offsets_ptr + example * 2 + 1).to(tl.int32)
    flip = tl.load(flips_ptr + example).to(tl.int32)
    w = (e // C) % W
    return e // (C * W) + top, w + flip * (W - 1 - 2 * w) + left, e % C
