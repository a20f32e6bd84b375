"""PreActResNet for small images, as in the released code of APART (arXiv 2010.08034; block: arXiv 1603.05027)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from apart_fast.models.normalize import MeanStd, make_normalize


def _projection(in_planes: int, out_planes: int, stride: int) -> nn.Module | None:
    if stride == 1 and in_planes == out_planes:
        return None
    return nn.Sequential(nn.Conv2d(in_planes, out_planes, 1, stride=stride, bias=False))  # released checkpoints fit


class BasicBlock(nn.Module):
    """relu(bn1) - conv1 - relu(bn2) - conv2; the shortcut projects the raw input x, without BN."""

    expansion = 1
    point = "relu1:output"  # the shortcut does not read it

    def __init__(self, in_planes: int, planes: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.shortcut = _projection(in_planes, planes, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        out = self.conv1(self.relu1(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        return out + shortcut


class Bottleneck(nn.Module):
    """relu(bn1) - conv1 1x1 - relu(bn2) - conv2 3x3 - relu(bn3) - conv3 1x1; the shortcut projects relu(bn1(x))."""

    expansion = 4

    def __init__(self, in_planes: int, planes: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_planes, planes, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, self.expansion * planes, 1, bias=False)
        self.shortcut = _projection(in_planes, self.expansion * planes, stride)
        self.point = "relu1:output" if self.shortcut is None else "conv1"  # a projection reads the activation too

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = self.relu1(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        out = self.conv1(active)
        out = self.conv2(F.relu(self.bn2(out)))
        out = self.conv3(F.relu(self.bn3(out)))
        return out + shortcut


class PreActResNet(nn.Module):
    """conv1 3x3, layer1..layer4, relu(bn), global average pool, linear; torch's default initialisation.

    Args:
        block: BasicBlock or Bottleneck.
        depths: number of blocks in each of the four layers.
        num_classes, in_channels: outputs and image channels.
        width: factor on all channel counts (1.0: 64, 128, 256, 512).
        normalize: (mean, std) for each channel, or None.

    What enters each block's `conv1` is a perturbation point (APART step 1).
    """

    __jit_unused_properties__ = ["perturbation_points"]  # torch.jit.script would compile it

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        num_classes: int,
        *,
        in_channels: int = 3,
        width: float = 1.0,
        normalize: MeanStd | None = None,
    ):
        super().__init__()
        planes = [max(1, round(base * width)) for base in (64, 128, 256, 512)]
        self.normalize = make_normalize(normalize, in_channels)
        self.conv1 = nn.Conv2d(in_channels, planes[0], 3, padding=1, bias=False)
        layers = []
        entering = planes[0]
        for i, (out, depth) in enumerate(zip(planes, depths, strict=True)):
            blocks = []
            for j in range(depth):
                blocks.append(block(entering, out, stride=2 if i > 0 and j == 0 else 1))
                entering = out * block.expansion
            layers.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.bn = nn.BatchNorm2d(entering)
        self.linear = nn.Linear(entering, num_classes)

    @property
    def perturbation_points(self) -> tuple[str, ...]:
        """Patterns of `apart_fast.step.points`, one a block."""
        return tuple(f"{name}.{block.point}" for name, block in self.named_modules() if hasattr(block, "point"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] pixels in [0, 1], H and W >= 8 -> logits [B, num_classes]."""
        out = self.conv1(self.normalize(x))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.linear(F.relu(self.bn(out)).mean((2, 3)))
