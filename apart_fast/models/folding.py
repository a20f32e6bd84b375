"""A copy of a model for attacking it in eval mode: the same function, cheaper, and with input gradients only.

In eval mode BatchNorm is `scale * x + shift`, fixed numbers for each channel. Behind a convolution that nothing else
reads, both go into its weights (Jacob et al., arXiv 1712.05877, section 3.2); elsewhere (behind a residual sum) one
multiply-add with a one-multiply backward remains.
"""

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from apart_fast.models.channels_last import PlainLayout
from apart_fast.models.stem import find_stem, keep_stem_precise, layer_class

# of the largest logit: far above rounding, far below what a wrong fold does
_TOLERANCE = 1e-2


class ChannelAffine(nn.Module):
    """`scale[c] * x[:, c] + shift[c]` for x [B, C, H, W]: an eval-mode `BatchNorm2d` (scale and shift are buffers)."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__()
        scale, shift = _scale_and_shift(norm)
        self.register_buffer("scale", scale[:, None, None])
        self.register_buffer("shift", shift[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        # in x's dtype, else half precision would be promoted
        return torch.addcmul(self.shift.to(x.dtype), x, self.scale.to(x.dtype))


def fold(model: nn.Module, sample: Tensor, amp: torch.dtype | None = None) -> nn.Module:
    """A frozen copy of `model` in eval mode, channels-last, whose BatchNorm layers are folded as far as possible.

    The model itself is not touched. Hooks are copied along; a BatchNorm that has any, or stands behind a convolution
    with a forward hook, stays as it is, so what hooks see does not change. Logits are equal within rounding.

    Args:
        model: any module that takes [B, C, H, W] pixels and gives logits [B, classes].
        sample: a few images [B, C, H, W] on the model's device, to see which layer feeds which.
        amp: the copy will only be called under autocast with this dtype: weights are cast now instead of in each call,
            but for the first layer, which stays in full precision (see `apart_fast.models.stem`).

    Returns:
        the copy; without folding if that changed the logits by more than rounding; or, if it cannot be copied,
        `model` itself.
    """
    try:
        folded = copy.deepcopy(model).eval().requires_grad_(False)
    except (RuntimeError, TypeError):  # a tensor inside that is no leaf, a lock, a file, ...
        return model
    with torch.autocast(sample.device.type, enabled=False):  # half precision could not tell a wrong fold
        logits, pairs = _watch(folded, sample)
        _fold(folded, pairs)
        agrees = _agree(folded, sample, logits)
    if not agrees:
        folded = copy.deepcopy(model).eval().requires_grad_(False)
    if not isinstance(model, PlainLayout):
        folded = folded.to(memory_format=torch.channels_last)
    if amp is not None:
        keep_stem_precise(folded, sample)
        stem = find_stem(folded, sample)
        for module in folded.modules():
            if type(module) in (nn.Conv2d, nn.Linear, ChannelAffine) and module is not stem:
                module.to(amp)
    return folded


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight.detach()
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach()


def _watch(model: nn.Module, sample: Tensor) -> tuple[Tensor, dict[nn.Module, nn.Conv2d]]:
    """Logits, and {BatchNorm: the convolution that feeds only it}."""
    produced: dict[object, nn.Conv2d] = {}  # autograd node of the output -> convolution
    fed: dict[nn.Module, nn.Conv2d] = {}
    calls: Counter[nn.Module] = Counter()

    def after_conv(module: nn.Conv2d, _args: tuple, out: Tensor) -> None:
        calls[module] += 1
        produced[out.grad_fn] = module

    def before_norm(module: nn.Module, args: tuple) -> None:
        calls[module] += 1
        if args[0].grad_fn is not None and args[0].grad_fn in produced:
            fed[module] = produced[args[0].grad_fn]

    handles = [m.register_forward_hook(after_conv) for m in model.modules() if _foldable_conv(m)]
    handles += [m.register_forward_pre_hook(before_norm) for m in model.modules() if _foldable_norm(m)]
    try:
        with torch.enable_grad():
            logits = model(sample.detach().clone().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    readers = Counter(_edges(logits.grad_fn))
    node = {module: grad_fn for grad_fn, module in produced.items()}
    pairs = {n: c for n, c in fed.items() if calls[n] == calls[c] == 1 and readers[node[c]] == 1}
    return logits.detach(), pairs


def _foldable_conv(module: nn.Module) -> bool:
    # a subclass may compute its weights; old-style weight and spectral norm take `weight` out of the parameters
    plain = layer_class(module) is nn.Conv2d and "weight" in module._parameters
    return plain and not module._forward_hooks


def _foldable_norm(module: nn.Module) -> bool:
    if type(module) is not nn.BatchNorm2d or module.running_mean is None:
        return False
    return not (module._forward_hooks or module._forward_pre_hooks)


def _edges(root: Any) -> Iterator[object]:
    """For each edge of the autograd graph above `root`, the node that it leads to."""
    seen: set[Any] = {root}
    todo = [root] if root is not None else []
    while todo:
        for node, _ in todo.pop().next_functions:
            if node is None:
                continue
            yield node
            if node not in seen:
                seen.add(node)
                todo.append(node)


def _fold(model: nn.Module, pairs: dict[nn.Module, nn.Conv2d]) -> None:
    with torch.no_grad():
        norms = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and _foldable_norm(m)]
        for name, norm in norms:
            conv = pairs.get(norm)
            if conv is None:
                model.set_submodule(name, ChannelAffine(norm))
                continue
            scale, shift = _scale_and_shift(norm)
            bias = shift if conv.bias is None else shift + scale * conv.bias
            conv.weight = nn.Parameter(conv.weight * scale[:, None, None, None], requires_grad=False)
            conv.bias = nn.Parameter(bias, requires_grad=False)
            model.set_submodule(name, nn.Identity())
    model.eval()  # the new layers too


@torch.no_grad()
def _agree(folded: nn.Module, sample: Tensor, logits: Tensor) -> bool:
    """Whether the folded model still computes the same (a model may read its BatchNorm layers in ways of its own)."""
    try:
        mine = folded(sample)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool((mine - logits).abs().max() <= _TOLERANCE * logits.abs().max().clamp_min(1e-6))
