"""What tells one set of images and labels from another."""

import hashlib

from numpy.typing import NDArray


class Fingerprint:
    """32 hexadecimal digits (BLAKE2b) over shape, images and labels, which may come in parts.

    Args:
        shape: (N, H, W, C) of all images.
    """

    def __init__(self, shape: tuple[int, ...]):
        self._digest = hashlib.blake2b(repr(shape).encode(), digest_size=16)

    def add(self, images: NDArray) -> None:
        """uint8 [K, H, W, C], contiguous: the next images."""
        self._digest.update(images.reshape(-1).data)

    def finish(self, labels: NDArray) -> str:
        """int64 [N], after all images."""
        self._digest.update(labels.data)
        return self._digest.hexdigest()


def digest(*parts: bytes | NDArray) -> str:
    """32 hexadecimal digits over bytes and contiguous arrays, one after the other."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(part if isinstance(part, bytes) else part.data)
    return found.hexdigest()
