"""Models of torchvision and timm by name."""

from collections.abc import Callable
from dataclasses import dataclass
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


def make_timm(name: str, num_classes: int, in_channels: int, **options: Any) -> nn.Module:
    """The timm model `name`, new weights."""
    return _timm().create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_channels, **options)


def pretrained_torchvision(name: str, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """The torchvision model `name` with its newest weights, as it was trained."""
    from torchvision import models

    return models.get_model(name, weights="DEFAULT")


def pretrained_timm(name: str, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """The timm model `name` with its weights, which timm adapts to channels and size of the images."""
    size = {"img_size": image_size} if _own_size(name) else {}
    return _timm().create_model(name, pretrained=True, in_chans=in_channels, **size)


def make_timm_of_size(name: str, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module | None:
    """The same for images of another size than its own; None where timm makes it for its own or for any size.

    Raises:
        UserError: its patches do not divide the images: it would leave out the rest.
    """
    if not _own_size(name):
        return None
    try:
        model = make_timm(name, num_classes, in_channels, img_size=image_size)
    except Exception:  # it takes no size, or not this one: its own is told
        return None
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", (1, 1))
    if any(side % step for side, step in zip(image_size, patch, strict=True)):
        height, width = image_size
        raise UserError(
            f"timm/{name} cannot take {height}x{width} images: it cuts them into patches of {patch[0]}x{patch[1]}, "
            "which must divide them; choose a model with other patches, or resize the images"
        )
    return model


def _own_size(name: str) -> tuple[int, int] | None:
    """(height, width) of the images that a timm model is made for; None where it takes any."""
    config = _timm().get_pretrained_cfg(name)
    return tuple(config.input_size[1:]) if config is not None and config.fixed_input_size else None


@dataclass(frozen=True)
class Source:
    """Where models come from.

    Attributes:
        make: from a name, a number of classes and one of image channels to a model.
        names: all there are.
        make_of_size: the same for images of a given size, or None.
        make_pretrained: a model with the weights that were trained for it, from image channels and size.
        own_size: (height, width) of the images that a model is made for; None where it takes any, or does not say.
    """

    label: str
    make: Callable[[str, int, int], nn.Module]
    names: Callable[[], list[str]]
    make_pretrained: Callable[[str, int, tuple[int, int]], nn.Module]
    make_of_size: Callable[[str, int, int, tuple[int, int]], nn.Module | None] = lambda *_: None
    own_size: Callable[[str], tuple[int, int] | None] = lambda _: None

    def pretrained(self, name: str, in_channels: int, image_size: tuple[int, int]) -> dict[str, torch.Tensor]:
        """The weights that were trained for a model, fetched where they are not at hand.

        Raises:
            UserError: there are none, or they cannot be had.
        """
        try:
            return self.make_pretrained(name, in_channels, image_size).state_dict()
        except UserError:
            raise
        except Exception as error:  # of names, networks and files
            raise UserError(
                f"the pretrained weights of {self.label}/{name} cannot be had ({_reason(error)}): fetch them where "
                "there is a network, and name the file"
            ) from error

    def build(
        self, name: str, num_classes: int, in_channels: int, image_size: tuple[int, int], normalize: MeanStd | None
    ) -> nn.Module:
        """The model `name`, which takes images of this size and gives [B, num_classes] logits.

        Raises:
            UserError: it cannot be made, does not take such images, or does not give such logits.
        """
        try:
            model = self.make(name, num_classes, in_channels)
        except Exception as error:
            channels = f"{num_classes} classes and {in_channels} image channels"
            raise UserError(f"{self.label}/{name} cannot be made for {channels}: {_reason(error)}") from error
        model = _finish(model, in_channels, normalize)
        fault = _fault(model, num_classes, in_channels, image_size)
        if fault is None:
            return model
        other = self.make_of_size(name, num_classes, in_channels, image_size)
        if other is not None:
            other = _finish(other, in_channels, normalize)
            if _fault(other, num_classes, in_channels, image_size) is None:
                return other
        own = self.own_size(name)
        raise UserError(f"{self.label}/{name} {fault}" + (f"; it is made for {own[0]}x{own[1]}" if own else ""))


TORCHVISION = Source("torchvision", make_torchvision, torchvision_names, pretrained_torchvision)
TIMM = Source("timm", make_timm, timm_names, pretrained_timm, make_timm_of_size, _own_size)


def _finish(model: nn.Module, in_channels: int, normalize: MeanStd | None) -> nn.Module:
    """Switch off in-place activations (hooks may hold their inputs) and put `Normalize` in front if asked for."""
    for module in model.modules():
        if getattr(module, "inplace", False):
            setattr(module, "inplace", False)  # noqa: B010  (for the type checker: any module may have it)
    return model if normalize is None else Wrapped(model, make_normalize(normalize, in_channels))


def _fault(model: nn.Module, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> str | None:
    """What is wrong with what the model makes of one grey image, if anything is."""
    try:
        with evaluating(model), torch.no_grad():
            out = model(torch.full((1, in_channels, *image_size), 0.5))
    except Exception as error:  # models say in many ways that a size does not suit them
        return f"cannot take {image_size[0]}x{image_size[1]} images with {in_channels} channels: {_reason(error)}"
    if not isinstance(out, torch.Tensor) or out.shape != (1, num_classes):
        return f"does not give one score for each of {num_classes} classes: choose a classifier"
    return None


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
