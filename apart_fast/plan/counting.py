"""What a network asks of the hardware: counted on the meta device, where nothing is computed or held.

F, the unit of docs/methods.md, is one forward; a backward to the data and one to the weights count as one each. What
the passes move besides, and what pass 2 keeps for its backward, is counted by running them.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from apart_fast.errors import UserError
from apart_fast.measure.arithmetic import (
    attack_pass,
    attack_passes,
    count_flops,
    count_kept,
    count_traffic,
    other_passes,
)
from apart_fast.models import build_model
from apart_fast.models.default_points import default_points
from apart_fast.plan.settings import PlanConfig
from apart_fast.step.methods import get_method

_IMAGES = 2  # BatchNorm wants two


@dataclass(frozen=True)
class Network:
    """What was counted.

    Attributes:
        parameters: number of weights.
        buffer_bytes: of running statistics.
        forward_flops: operations of a forward of one image, F.
        step_flops: of a step on one image: passes x F.
        step_traffic: bytes that a step on one image reads and writes outside of convolutions and matrix products.
        kept: bytes of activations of one image that are kept for the backward of pass 2, and of pass 1 where gradients
            go through it too.
        pointless: the method has block steps, and where is not known.
    """

    parameters: int
    buffer_bytes: int
    forward_flops: float
    step_flops: float
    step_traffic: float
    kept: float
    pointless: bool


def _pointless(model: torch.nn.Module) -> bool:
    try:
        default_points(model)
    except UserError:
        return True
    return False


def count_network(config: PlanConfig) -> Network:
    """Of the network and method of the settings; in bfloat16 as under --amp, on a CPU in float32.

    Raises:
        UserError: no such model, or one that does not take such images or cannot be counted.
    """
    size, method = config.image_size, get_method(config.method)
    dtype = torch.float32 if config.hardware.on_host else torch.bfloat16
    with torch.device("meta"):
        model = build_model(
            config.model, config.classes, in_channels=config.channels, image_size=(size, size), width=config.width
        )
        parameters = sum(p.numel() for p in model.parameters())
        buffer_bytes = sum(t.nbytes for t in model.buffers())
        model = model.to(dtype)
        x = torch.empty(_IMAGES, config.channels, size, size, dtype=dtype).permute(0, 2, 3, 1)
        labels = torch.zeros(_IMAGES, dtype=torch.int64)

    def loss(pixels: Tensor, labels: Tensor) -> tuple[Tensor, None]:
        return F.cross_entropy(model(pixels.permute(0, 3, 1, 2)).float(), labels), None

    def forward() -> Tensor:
        return loss(x.requires_grad_(method.learned), labels)[0]

    try:
        flops = count_flops(forward) / _IMAGES
        attack = count_traffic(lambda: attack_pass(loss, model, x, labels)) if method.steps else 0
        others = count_traffic(lambda: other_passes(loss, model, method, x, labels))
        kept = count_kept(forward, model) * (1 + method.loss.through_start)
    except (RuntimeError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{config.model} cannot be counted without computing it: {reason}") from error
    traffic = (attack_passes(method) * attack + others) / _IMAGES
    pointless = method.blocks and _pointless(model)
    return Network(parameters, buffer_bytes, flops, method.passes * flops, traffic, kept / _IMAGES, pointless)
