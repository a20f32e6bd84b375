"""One training batch: what the kernels need to crop, flip and find the perturbations."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from apart_fast.kernels import Crops


@dataclass(frozen=True, eq=False)
class Batch:
    """Tensors of one batch of B examples, on the loader's device unless said otherwise.

    Raw images stay uint8 and uncropped: crop and flip happen on the device, together with omega.

    Attributes:
        images: uint8 [M, H, W, C]; M = B, or the whole resident shard. Never written to by a training step.
        labels: int64 [B].
        crops: rows of `images`, rows of omega (`indices`: the example's place in this rank's fixed shard), offsets and
            flips. `batch.rows` is `batch.crops.rows`, and so on.
        host_indices: `indices` on the CPU (a view of the epoch's order; `indices` itself where nobody gave it).
        upcoming: int64 on the CPU, `indices` of the epoch's next batch, empty after the last; None: not known.
        resident: `images` is the same tensor in every batch.
        together: number of examples in the batches of all ranks in this step; 0: there are no others.
    """

    images: Tensor
    labels: Tensor
    crops: Crops
    host_indices: Tensor | None = None
    upcoming: Tensor | None = None
    resident: bool = False
    together: int = 0

    def __post_init__(self) -> None:
        if self.host_indices is None:
            object.__setattr__(self, "host_indices", self.crops.indices)
        if not self.together:
            object.__setattr__(self, "together", len(self))

    def __len__(self) -> int:
        return self.labels.shape[0]

    @property
    def rows(self) -> Tensor:
        """int64 [B], the row of `images` that holds each example."""
        return self.crops.rows

    @property
    def indices(self) -> Tensor | None:
        """int64 [B], the example's place in this rank's shard (row of the omega store); unique in a batch."""
        return self.crops.indices

    @property
    def offsets(self) -> Tensor:
        """int64 [B, 2], (top, left) of the crop in the padded image."""
        return self.crops.offsets

    @property
    def flips(self) -> Tensor:
        """bool [B], whether the crop is mirrored left to right."""
        return self.crops.flips

    def changing(self) -> list[Tensor]:
        """What differs from batch to batch on the device: labels, crops, and images unless they are resident."""
        tensors = [self.labels, self.rows, self.indices, self.offsets, self.flips]
        if not self.resident:
            tensors.append(self.images)
        return [t for t in tensors if t is not None]

    def copy(self) -> "Batch":
        """The same with tensors of its own for all that changes: the static buffers of a CUDA graph, to be filled.

        Nothing of it lies on the host: `host_indices` are its own `indices`, `upcoming` is None.
        """
        indices = None if self.indices is None else self.indices.clone()
        crops = Crops(self.rows.clone(), indices, self.offsets.clone(), self.flips.clone())
        images = self.images if self.resident else self.images.clone()
        return replace(self, images=images, labels=self.labels.clone(), crops=crops, host_indices=None, upcoming=None)

    def fill(self, other: "Batch") -> None:
        """Copy what changes from `other`, of the same size, into the tensors of this batch, without waiting.

        Raises:
            ValueError: `other` has another tensor where nothing should change.
        """
        if self.resident != other.resident or (self.resident and self.images is not other.images):
            raise ValueError("Batch.images is another tensor than in the first step")
        if (self.indices is None) != (other.indices is None):
            raise ValueError("Batch.indices is given for only one of the batches")
        torch._foreach_copy_(self.changing(), other.changing())
