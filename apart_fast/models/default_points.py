"""Where block perturbation acts by default: on what enters the blocks' first convolutions, or their attention."""

from fnmatch import fnmatchcase

from torch import nn

from apart_fast.errors import UserError
from apart_fast.models.external import Wrapped

# tried in this order on models that are not ours
_KNOWN = (
    ("layer*.*.conv1",),  # ResNets of torchvision and timm
    ("blocks.*.attn",),  # vision transformers of timm: what enters a block's attention
    ("layers.*.blocks.*.attn",),  # Swin transformers of timm
    ("stages.*.blocks.*.attn",),  # its transformers in stages: DaViT, GCViT, MViT, PVT, TinyViT
    ("encoder.layers.*.ln_1:output",),  # vision transformers of torchvision
    ("features.*.*.attn",),  # Swin transformers of torchvision
)


def default_points(model: nn.Module) -> list[str]:
    """Patterns (see `apart_fast.step.points`) of the points that APART perturbs (step 1 of arXiv 2010.08034).

    Raises:
        UserError: the model has no known blocks.
    """
    inner, prefix = (model.model, "model.") if isinstance(model, Wrapped) else (model, "")
    own = getattr(inner, "perturbation_points", None)
    names = [name for name, _ in inner.named_modules()]
    for patterns in (own,) if own is not None else _KNOWN:
        if all(any(fnmatchcase(name, pattern.partition(":")[0]) for name in names) for pattern in patterns):
            return [prefix + pattern for pattern in patterns]
    raise UserError(
        f"{type(inner).__name__} has no known perturbation points: name them as patterns such as 'layer*.*.conv1', "
        "or choose a method without block steps"
    )
