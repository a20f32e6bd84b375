"""omega: what is remembered for each training example, in un-augmented, padded coordinates."""

from collections.abc import Sequence

import torch
from torch import Tensor

from apart_fast.kernels.codec import decode, encode

INITIAL_SCALE = 1e-3  # omega starts as 0.001 * N(0, 1)
_CHUNK = 4096  # rows drawn at a time: the store may be as large as the device allows


class Memory:
    """A row of [H + 2p, W + 2p, C] values in [-1, 1] for each example.

    Args:
        num_examples: number of rows.
        image_shape: (H, W, C).
        padding: p.
        dtype: torch.float16 (off by at most 2.5e-4), float32, float64, or int8 (x 127, off by at most 4e-3).
        device: where the store lies.

    Attributes:
        store: [num_examples, H + 2p, W + 2p, C] of `dtype`.
    """

    def __init__(
        self, num_examples: int, image_shape: Sequence[int], padding: int, dtype: torch.dtype, device: torch.device
    ):
        h, w, c = image_shape
        self.store = torch.zeros(num_examples, h + 2 * padding, w + 2 * padding, c, dtype=dtype, device=device)

    def reset(self, generator: torch.Generator) -> None:
        """Draw every row anew: 0.001 * N(0, 1)."""
        for chunk in self.store.split(_CHUNK):
            noise = torch.empty(chunk.shape, device=chunk.device, dtype=torch.float32).normal_(generator=generator)
            chunk.copy_(encode(noise * INITIAL_SCALE, chunk.dtype))

    def read(self, indices: Tensor) -> Tensor:
        """Rows as float32 (float64 from a float64 store) [B, C, H + 2p, W + 2p]; `indices` int64 [B]."""
        dtype = (
            torch.promote_types(self.store.dtype, torch.float32) if self.store.is_floating_point() else torch.float32
        )
        return decode(self.store[indices], dtype).permute(0, 3, 1, 2)

    def write(self, indices: Tensor, values: Tensor) -> None:
        """Replace rows by `values` [B, C, H + 2p, W + 2p] in [-1, 1]."""
        self.store[indices] = encode(values.permute(0, 2, 3, 1), self.store.dtype)
