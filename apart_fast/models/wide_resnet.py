"""WideResNet (arXiv 1605.07146) without dropout, in the form used for robustness results."""

import torch
import torch.nn.functional as F
from torch import nn

from apart_fast.models.normalize import MeanStd, make_normalize


class WideBlock(nn.Module):
    """relu(bn1) - conv1 - relu(bn2) - conv2; a projecting shortcut starts from relu(bn1(x)), the identity from x."""

    def __init__(self, in_planes: int, planes: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        same = in_planes == planes and stride == 1
        self.shortcut = None if same else nn.Conv2d(in_planes, planes, 1, stride=stride, bias=False)
        self.point = "relu1:output" if same else "conv1"  # a projection reads the activation too

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = self.relu1(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + shortcut


class WideResNet(nn.Module):
    """conv1 3x3, layer1..layer3, relu(bn), global average pool, linear; He initialisation (fan out).

    Args:
        depth: 6 n + 4 (28, 34).
        widen: widening factor (10).
        num_classes, in_channels: outputs and image channels.
        width: a further factor on all channel counts (1.0: 16, then 16, 32, 64 times `widen`).
        normalize: (mean, std) for each channel, or None.

    What enters each block's `conv1` is a perturbation point (APART step 1).
    """

    __jit_unused_properties__ = ["perturbation_points"]  # torch.jit.script would compile it

    def __init__(
        self,
        depth: int,
        widen: int,
        num_classes: int,
        *,
        in_channels: int = 3,
        width: float = 1.0,
        normalize: MeanStd | None = None,
    ):
        super().__init__()
        stem, *planes = (max(1, round(base * width)) for base in (16, 16 * widen, 32 * widen, 64 * widen))
        self.normalize = make_normalize(normalize, in_channels)
        self.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        layers = []
        entering = stem
        for i, out in enumerate(planes):
            blocks = []
            for j in range((depth - 4) // 6):
                blocks.append(WideBlock(entering, out, stride=2 if i > 0 and j == 0 else 1))
                entering = out
            layers.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = layers
        self.bn = nn.BatchNorm2d(entering)
        self.linear = nn.Linear(entering, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.linear.bias)

    @property
    def perturbation_points(self) -> tuple[str, ...]:
        """Patterns of `apart_fast.step.points`, one a block."""
        return tuple(f"{name}.{block.point}" for name, block in self.named_modules() if hasattr(block, "point"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] pixels in [0, 1], H and W >= 8 -> logits [B, num_classes]."""
        out = self.conv1(self.normalize(x))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(F.relu(self.bn(out)).mean((2, 3)))
