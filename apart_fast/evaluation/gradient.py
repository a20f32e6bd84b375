"""What an attack climbs, and whether there is something to climb: NaN gradients and zero ones hide weakness.

A sign step does not move where the gradient is NaN or zero, so an image with such a gradient stands unsearched.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# of an image, bits of uint8: it was fooled; at some step its gradient had a NaN or an infinity, or was zero everywhere
FOOLED, NOT_FINITE, ZERO = 1, 2, 4


def ascent_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """[B]: cross-entropy, or where rounding leaves nothing of its gradient, the logit margin.

    With the margin m = logsumexp of the other logits - the label's logit, cross-entropy is log(1 + exp(m)): its
    gradient is that of m times a positive factor, which no sign step sees. From m < -17 on float32 rounds the label's
    probability to 1 and the factor of its logit to 0; further down the others follow. Those images climb m itself;
    the gradients of all others have the bits of cross-entropy.

    Args:
        logits: [B, classes], at least float32; labels: int64 [B].
    """
    loss = F.cross_entropy(logits, labels, reduction="none")
    own = labels[:, None] == torch.arange(logits.shape[1], device=logits.device)
    others = logits.masked_fill(own, -torch.inf).logsumexp(1)
    margin = others - logits.gather(1, labels[:, None]).squeeze(1)
    return torch.where(loss == 0, margin, loss)


def gradient_marks(gradient: Tensor) -> Tensor:
    """uint8 [B]: `NOT_FINITE` or `ZERO` where the gradient [B, ...] of an image is so, else 0."""
    size = gradient.flatten(1).abs().amax(1)  # hands on NaN
    return (~size.isfinite() * NOT_FINITE + (size == 0) * ZERO).to(torch.uint8)


def without_gradient(gradient: Tensor) -> Tensor:
    """bool [B]: the gradient [B, ...] of an image is not finite, or zero everywhere."""
    return gradient_marks(gradient) > 0
