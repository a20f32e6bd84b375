"""Dense tensors of any memory layout, seen as flat storage by the element-wise kernels."""

import torch


def is_dense(t: torch.Tensor) -> bool:
    """True if the elements fill one stretch of memory without gaps or overlap, in any order of the dimensions."""
    if t.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(t.stride(), t.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def dense(t: torch.Tensor) -> torch.Tensor:
    """`t` itself if it is dense, else a dense copy that keeps the order of its strides."""
    return t if is_dense(t) else torch.empty_like(t).copy_(t)


def same_layout(a: torch.Tensor, b: torch.Tensor) -> bool:
    """True if equal positions in memory hold equal indices (strides of dimensions of size 1 do not matter)."""
    if a.shape != b.shape:
        return False
    return all(p == q or n == 1 for p, q, n in zip(a.stride(), b.stride(), a.shape, strict=True))


def laid_out_like(t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`t` with the strides of the dense tensor `like` (copied only if they differ); ValueError if the shapes differ."""
    if t.shape != like.shape:
        raise ValueError(f"shapes differ: {tuple(t.shape)} and {tuple(like.shape)}")
    return t if same_layout(t, like) else torch.empty_like(like, dtype=t.dtype).copy_(t)


def flat(t: torch.Tensor) -> torch.Tensor:
    """A dense tensor as a 1-D view of its memory."""
    return t.as_strided((t.numel(),), (1,))
