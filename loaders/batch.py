"""One training batch: what the kernels need to crop, flip and find the perturbations."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Batch:
    """Tensors of one batch of B examples, all on the loader's device.

    Raw images stay uint8 and uncropped: crop and flip happen on the device, together with omega.

    Attributes:
        images: uint8 [M, H, W, C]; M = B, or the whole resident share. Never written to.
        rows: int64 [B], the row of `images` that holds each example.
        labels: int64 [B].
        indices: int64 [B], the example's place in this rank's fixed share (row of the omega store); unique in a batch.
        offsets: int64 [B, 2], (top, left) of the crop in the padded image, each in 0..2 * padding.
        flips: bool [B], whether the crop is mirrored left to right.
    """

    images: torch.Tensor
    rows: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    offsets: torch.Tensor
    flips: torch.Tensor

    def __len__(self) -> int:
        return self.labels.shape[0]
