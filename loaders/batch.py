"""One training batch: what the kernels need to crop, flip and find the perturbations."""

from dataclasses import InitVar, dataclass

import torch


@dataclass(frozen=True)
class Batch:
    """Tensors of one batch of B examples, all fields on the loader's device.

    Raw images stay uint8 and uncropped: crop and flip happen on the device, together with omega.

    Attributes:
        images: uint8 [M, H, W, C]; M = B, or the whole resident share. Never written to.
        rows: int64 [B], the row of `images` that holds each example.
        labels: int64 [B].
        indices: int64 [B], the example's place in this rank's fixed share (row of the omega store); unique in a batch.
        offsets: int64 [B, 2], (top, left) of the crop in the padded image, each in 0..2 * padding.
        flips: bool [B], whether the crop is mirrored left to right.
        host_indices: `indices` on the CPU (a view of the epoch's order; `indices` itself where nobody gave it).
        upcoming: int64 on the CPU, `indices` of the epoch's next batch, empty after the last; None: not known.
    """

    images: torch.Tensor
    rows: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    offsets: torch.Tensor
    flips: torch.Tensor
    # no fields: `dataclasses.fields` lists what is on the device
    host_indices: InitVar[torch.Tensor | None] = None
    upcoming: InitVar[torch.Tensor | None] = None

    def __post_init__(self, host_indices: torch.Tensor | None, upcoming: torch.Tensor | None):
        object.__setattr__(self, "host_indices", self.indices if host_indices is None else host_indices)
        object.__setattr__(self, "upcoming", upcoming)

    def __len__(self) -> int:
        return self.labels.shape[0]
