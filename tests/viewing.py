"""A network that calls `view` on its maps, as many a published one does, and its twin that does not."""

from torch import Tensor, nn


class Flattening(nn.Module):
    """Conv, BatchNorm, ReLU and a linear layer on 12 x 12 pixels; arguments as those of an entry of `MODELS`."""

    perturbation_points = ("conv2",)

    def __init__(self, num_classes: int, *, in_channels: int = 3, **options: object):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.conv2 = nn.Conv2d(5, 4, 3, padding=1)
        self.linear = nn.Linear(12 * 12 * 4, num_classes)

    def flat(self, maps: Tensor) -> Tensor:
        return maps.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.flat(self.conv2(self.norm(self.conv1(x)).relu())))


class Viewing(Flattening):
    """The same function, which fails on channels-last maps."""

    def flat(self, maps: Tensor) -> Tensor:
        return maps.view(maps.size(0), -1)
