"""AutoAttack through an optional package. Images are NHWC, pixels in [0, 1]."""

import sys

import torch
from torch import Tensor, nn

from apart_fast.evaluation.attacks import correct, refuse_training
from apart_fast.models.modes import frozen


def autoattack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    num_classes: int,
    batch_size: int,
    seed: int,
    device: torch.device,
) -> Tensor:
    """AutoAttack, version "standard" (Croce & Hein, arXiv 2003.01690), through the package pyautoattack.

    The targeted attacks have min(9, num_classes - 1) targets. The targeted DLR loss needs 4 classes and the DLR loss
    3, so with 3 classes `apgd-dlr` stands in for `apgd-t`, and with 2 classes there is neither.

    Args:
        model: takes NCHW, in eval mode.
        images: float32 [N, H, W, C] in [0, 1], on any device; batches are moved to `device`.
        labels: int64 [N], on the device of `images`.
        eps: radius of the L-inf ball, fraction of the pixel range.
        num_classes: number of logits.
        device: where the model is.

    Returns:
        bool [N]: still classified correctly after all attacks.

    Raises:
        UserError: the model is in training mode.
    """
    from pyautoattack import AutoAttack

    refuse_training(model)
    tracer = sys.gettrace()
    try:
        # its FAB calls backward(), which would leave gradients in the parameters; it seeds torch's global generators
        with frozen(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            attack = AutoAttack(model, eps=eps, device=device, seed=seed, version="standard")
            targeted = {2: [], 3: ["apgd-dlr"]}.get(num_classes, ["apgd-t"])
            attack.attacks_to_run = ["apgd-ce", *targeted, "fab-t", "square"]
            attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(9, num_classes - 1)
            # its view() calls need plain NCHW
            nchw = images.permute(0, 3, 1, 2).contiguous()
            found, predictions = attack.run_standard_evaluation(nchw, labels, batch_size=batch_size)
    finally:
        sys.settrace(tracer)  # its check for dynamic defences switches tracing off
    # its argmax takes the first class where a logit is NaN
    batches = zip(found.split(batch_size), labels.split(batch_size), strict=True)
    right = [correct(model, x.permute(0, 2, 3, 1).to(device), y.to(device), batch_size) for x, y in batches]
    return (predictions == labels) & torch.cat(right).to(labels.device)
