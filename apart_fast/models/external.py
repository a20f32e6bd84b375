"""Models of torchvision and timm by name, without pretrained weights."""

from typing import Any

import torch
from torch import nn

from apart_fast.errors import UserError
from apart_fast.models.modes import evaluating
from apart_fast.models.normalize import MeanStd, make_normalize

# these two return a tuple of heads in training mode unless told otherwise
_TORCHVISION_EXTRAS = {
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": False},
}


class Wrapped(nn.Module):
    """`normalize`, then `model`."""

    def __init__(self, model: nn.Module, normalize: nn.Module):
        super().__init__()
        self.normalize = normalize
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] pixels in [0, 1] -> logits [B, num_classes]."""
        return self.model(self.normalize(x))


def torchvision_names() -> list[str]:
    """Names of torchvision's classification models."""
    from torchvision import models

    return models.list_models(module=models)


def timm_names() -> list[str]:
    """Names of timm's models.

    Raises:
        UserError: timm is not installed.
    """
    return _timm().list_models()


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise UserError("timm models need the package timm: pip install 'apart_fast[timm]'") from error
    return timm


def _replace_stem(model: nn.Module, in_channels: int) -> None:
    """Give torchvision's first convolution `in_channels` inputs (torchvision has no argument for it)."""
    name, old = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    shape: dict[str, Any] = {name: getattr(old, name) for name in ("kernel_size", "stride", "padding")}
    new = nn.Conv2d(in_channels, old.out_channels, bias=old.bias is not None, **shape)
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)


def make_torchvision(name: str, num_classes: int, in_channels: int) -> nn.Module:
    """The torchvision model `name`, new weights."""
    from torchvision import models

    model = models.get_model(name, weights=None, num_classes=num_classes, **_TORCHVISION_EXTRAS.get(name, {}))
    if in_channels != 3:
        _replace_stem(model, in_channels)
    return model


def make_timm(name: str, num_classes: int, in_channels: int) -> nn.Module:
    """The timm model `name`, new weights."""
    return _timm().create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_channels)


def finish(model: nn.Module, in_channels: int, normalize: MeanStd | None) -> nn.Module:
    """Switch off in-place activations (hooks may hold their inputs) and put `Normalize` in front if asked for."""
    for module in model.modules():
        if getattr(module, "inplace", False):
            setattr(module, "inplace", False)  # noqa: B010  (for the type checker: any module may have it)
    return model if normalize is None else Wrapped(model, make_normalize(normalize, in_channels))


def check_forward(model: nn.Module, name: str, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> None:
    """Run one grey image through the model.

    Raises:
        UserError: the model does not take this image size, or does not give [B, num_classes] logits.
    """
    try:
        with evaluating(model), torch.no_grad():
            out = model(torch.full((1, in_channels, *image_size), 0.5))
    except (RuntimeError, AssertionError, ValueError) as error:
        height, width = image_size
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{name} cannot take {height}x{width} images with {in_channels} channels: {reason}") from error
    if not isinstance(out, torch.Tensor) or out.shape != (1, num_classes):
        raise UserError(f"{name} does not give one score for each of {num_classes} classes: choose a classifier")
