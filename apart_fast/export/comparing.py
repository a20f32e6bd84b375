"""Whether what was written computes what the network does."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from apart_fast.errors import UserError

WITHIN = 1e-4  # of each logit; of logits larger than 1, times the largest: float32 has no more
_AT_ONCE = 100


class Compared(NamedTuple):
    """On how many images, the largest difference of a logit, and on how many images two classes are as good as equal
    and another one of them is the largest."""

    images: int
    difference: float
    ties: int


@torch.no_grad()
def compare(
    network: Callable[[Tensor], Tensor], reopen: Callable[[], Callable[[Tensor], Tensor]], images: Tensor
) -> Compared:
    """Compare the logits of both on images uint8 [N, H, W, C], some at a time and the first one alone.

    Args:
        reopen: gives what was written.

    Raises:
        UserError: logits differ by more than `WITHIN`, or a decision does, or logits are not finite.
    """
    mine = torch.cat([network(pixels(part)) for part in images.split(_AT_ONCE)]).float()
    try:
        opened = reopen()
        alone = opened(pixels(images[:1]))
        theirs = torch.cat([opened(pixels(part)) for part in images.split(_AT_ONCE)]).float()
    except Exception as error:  # of whatever it is opened with
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"what was written cannot be run ({reason}): it was removed, use another format") from error
    if not mine.isfinite().all():
        raise UserError("the network gives logits that are not finite: it is damaged, export another checkpoint")
    if mine.shape != theirs.shape:
        raise UserError(f"what was written gives {list(theirs.shape)} instead of {list(mine.shape)}: it was removed")
    bound = WITHIN * max(1.0, float(mine.abs().max()))
    difference = max(float((mine - theirs).abs().max()), float((mine[:1] - alone).abs().max()))
    if not difference <= bound:  # NaN is not
        raise UserError(f"what was written gives other logits (by up to {difference:.3g}): it was removed")
    decided = theirs.argmax(1)
    other = decided != mine.argmax(1)
    gap = mine.max(1).values - mine.gather(1, decided[:, None])[:, 0]
    if (other & (gap > bound)).any():
        raise UserError(f"what was written decides otherwise on {int(other.sum())} images: it was removed")
    return Compared(len(images), difference, int(other.sum()))


def pixels(images: Tensor) -> Tensor:
    """uint8 [N, H, W, C] -> float32 [N, C, H, W] in [0, 1]."""
    return images.float().div(255).permute(0, 3, 1, 2).contiguous()
