"""Networks and images of the tests: a linear model whose worst case in the ball is known in closed form, and others."""

import torch
from torch import nn

EPS = 8 / 255
SIZE = (8, 8, 3)


class Linear(nn.Module):
    """Logits (0, w.x + b) of two classes, or random linear logits of more."""

    def __init__(self, classes=2):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.linear = nn.Linear(8 * 8 * 3, classes)
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(classes, 8 * 8 * 3, generator=generator) * 0.2)
            # the mean grey image sits on the boundary
            self.linear.bias.copy_(-self.linear.weight.sum(1) * 0.5)

    def forward(self, x):
        return self.linear(x.permute(0, 2, 3, 1).flatten(1))


def data(n=200, classes=2):
    """uint8 images, half of whose pixels sit near 0 or 255, and labels of which about a tenth are wrong."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (n, *SIZE), generator=generator)
    images = torch.where(torch.rand(n, *SIZE, generator=generator) < 0.5, (images > 127) * 250 + images % 6, images)
    images = images.to(torch.uint8)
    with torch.no_grad():
        labels = Linear(classes)(images.permute(0, 3, 1, 2) / 255).argmax(1)
    wrong = torch.rand(n, generator=generator) < 0.1
    return images, torch.where(wrong, (labels + 1) % classes, labels)


def worst_case(images, labels, eps):
    """bool [n]: no point of the ball within [0, 1] fools the two-class `Linear`: its margin at the worst corner."""
    linear = Linear().linear
    w = (linear.weight[1] - linear.weight[0]).detach().double()
    b = (linear.bias[1] - linear.bias[0]).detach().double()
    side = (2 * labels - 1).double()
    x = (images / 255.0).flatten(1).double()
    corner = (x - eps * side[:, None] * w.sign()).clamp(0, 1)
    margin = side * (corner @ w + b)
    assert margin.abs().min() > 1e-5  # float32 cannot tip the scale
    return margin > 0


class Bumpy(nn.Module):
    """A small network with several local maxima of the loss, so that restarts matter."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.a = nn.Parameter(torch.randn(8 * 8 * 3, 64, generator=generator) * 3)
        self.b = nn.Parameter(torch.randn(64, 2, generator=generator))

    def forward(self, x):
        return torch.sin(x.permute(0, 2, 3, 1).flatten(1) @ self.a) @ self.b


class Reshaping(Linear):
    """Takes neither channels-last pixels nor channels-last maps nor an empty batch."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[:, :, None, None])

    def forward(self, x):
        x = self.conv(x)
        return self.linear(x.view(x.size(0), -1).view(x.size(0), 3, -1).transpose(1, 2).reshape(x.size(0), -1))


class Hiding(Linear):
    """A `Linear` whose gradient is `nan`, or zero since it does `round` its pixels, or `detach` them."""

    def __init__(self, how, classes=2):
        super().__init__(classes)
        self.how = how

    def forward(self, x):
        if self.how == "round":
            return super().forward((x * 255).round() / 255)
        if self.how == "detach":
            with torch.no_grad():
                return super().forward(x)
        return super().forward(x) + (x * 0).sum((1, 2, 3)).sqrt()[:, None]
