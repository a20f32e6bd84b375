"""omega: what is remembered for each training example, in un-augmented, padded coordinates."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from apart_fast.kernels.codec import decode, encode
from apart_fast.step.checks import check_inside, check_unique, refuse_unless

INITIAL_SCALE = 1e-3  # omega starts as 0.001 * N(0, 1)
TWICE = "an example is in the batch twice: its row could remember only one of them"


def _small(noise: Tensor) -> Tensor:
    """0.001 * N(0, 1)."""
    return noise * INITIAL_SCALE


def _signs(noise: Tensor) -> Tensor:
    """Random signs as the first map, zeros as the second."""
    first = noise[:, :1].sign()
    return torch.cat([first, torch.zeros_like(first)], 1)


# what rows begin as, of N(0, 1) [n, ...], by `Method.remembers`
INITIAL: dict[str, Callable[[Tensor], Tensor]] = {"perturbation": _small, "direction": _small, "momentum": _signs}
_CHUNK = 4096  # rows drawn at a time: the store may be as large as the device allows
_MOST, _LESS = 2**25, 2**22  # where so many rows have more values than this, fewer are drawn: so many values


class Memory:
    """A row of [H + 2p, W + 2p, C] values in [-1, 1] for each example, or of several such maps, all in `store`.

    `apart_fast.step.staging` has the kind whose rows lie outside the device and are in `store` only during their step.

    Args:
        store: [number of examples, H + 2p, W + 2p, C], with several maps [number of examples, maps, H + 2p, ...], on
            the device; torch.float16 (off by at most 2.5e-4), float32, float64, or int8 (x 127, off by at most 4e-3).

    Attributes:
        host_indices: whether indices may be on the CPU while the store is not.
        store: what the kernels index by `rows`.
        device: where the store lies.
        nbytes: size of all rows.
    """

    host_indices = False

    def __init__(self, store: Tensor):
        self.store, self.device, self.nbytes = store, store.device, store.nbytes

    def at_hand(self, indices: Tensor, upcoming: Tensor | None = None) -> AbstractContextManager:
        """Within: the rows of the examples `indices` are in the store (here they always are)."""
        return nullcontext()

    def rows(self, indices: Tensor) -> Tensor:
        """Where in `store` the rows of `indices` (int64 [B], those at hand) are, int64 [B] on the device.

        Raises:
            IndexError: no such example (see `refuse_unless`).
            ValueError: an example twice.
        """
        check_inside(indices, len(self.store), _outside(len(self.store)))
        check_unique(indices, TWICE)
        return indices

    def contents(self) -> Tensor:
        """The rows of all examples as they are now, [number of examples, H + 2p, W + 2p, C], to read or to change
        before the next step."""
        return self.store

    def reset(
        self,
        generator: torch.Generator,
        examples: Tensor | None = None,
        total: int | None = None,
        initial: Callable[[Tensor], Tensor] = _small,
    ) -> None:
        """Draw every row anew. The numbers depend on the generator alone, not on where rows lie.

        Args:
            initial: what rows are, of N(0, 1) [n, ...]: one of `INITIAL`.
            examples: int64 [number of examples], ascending: their places in a set of `total` examples. The others' rows
                are drawn too, so that those of an example do not depend on who holds it. None: this is the whole set.
        """
        contents = self.contents()
        total = len(contents) if total is None else total
        numbers = np.arange(total) if examples is None else examples.cpu().numpy()
        # torch's generator goes on where it was after multiples of 16 values, so that parts give the same as the whole
        size = contents[:1].numel()
        at_once = _CHUNK if _CHUNK * size <= _MOST else max(16, _LESS // size // 16 * 16)
        for first in range(0, total, at_once):
            end = min(first + at_once, total)
            shape = (end - first, *contents.shape[1:])
            noise = torch.empty(shape, device=generator.device, dtype=torch.float32).normal_(generator=generator)
            begin, stop = map(int, np.searchsorted(numbers, [first, end]))
            whole = stop - begin == end - first
            mine = noise if whole else noise[torch.from_numpy(numbers[begin:stop] - first).to(noise.device)]
            contents[begin:stop].copy_(encode(initial(mine), contents.dtype))

    def read(self, indices: Tensor) -> Tensor:
        """Rows as float32 (float64 from a float64 store) [B, C, H + 2p, W + 2p], or [B, maps, C, ...]; `indices` int64
        [B].

        Raises:
            IndexError: no such example (see `refuse_unless`).
        """
        contents = self.contents()
        check_inside(indices, len(contents), _outside(len(contents)))
        dtype = torch.promote_types(contents.dtype, torch.float32) if contents.is_floating_point() else torch.float32
        rows = contents[indices.to(contents.device)].to(self.device)
        return decode(rows, dtype).movedim(-1, -3)

    def write(self, indices: Tensor, values: Tensor) -> None:
        """Replace rows, those of `indices` int64 [B], by `values` [B, C, H + 2p, W + 2p] in [-1, 1], or [B, maps, ...].

        Raises:
            IndexError: no such example (see `refuse_unless`).
            ValueError: an example twice, values of another shape, or some that are not in [-1, 1].
        """
        contents = self.contents()
        *maps, h, w, c = contents.shape[1:]
        if values.shape != (len(indices), *maps, c, h, w):
            raise ValueError(f"values are {tuple(values.shape)}: give {(len(indices), *maps, c, h, w)}")
        check_inside(indices, len(contents), _outside(len(contents)))
        check_unique(indices, TWICE)
        first = values[:, 0] if maps else values  # a momentum is not bounded
        refuse_unless(lambda: (first.abs() <= 1).all(), values, "a value of omega is not in [-1, 1]")
        rows = encode(values.movedim(-3, -1), contents.dtype)
        contents[indices.to(contents.device)] = rows.to(contents.device)


def _outside(n: int) -> str:
    return f"an example is outside of 0..{n - 1}: num_examples is the size of the whole set"
