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
from apart_fast.models.dressing import layer_class
from apart_fast.models.stem import find_stem, keep_stem_precise

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

    def take(self, norm: nn.BatchNorm2d) -> None:
        """Become that of `norm`, in place."""
        for mine, value in zip((self.scale, self.shift), _scale_and_shift(norm), strict=True):
            mine.copy_(value[:, None, None])

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
    return Folded(model, sample, amp).network


class Folded:
    """What `fold` makes (`network`), to be kept: `refresh` takes the weights over that the model has by then.

    The arguments are those of `fold`.
    """

    def __init__(self, model: nn.Module, sample: Tensor, amp: torch.dtype | None = None):
        self._model = self.network = model
        self._pairs: dict[str, str] = {}  # BatchNorm -> the convolution that it was folded into
        try:
            folded = copy.deepcopy(model).eval().requires_grad_(False)
        except (RuntimeError, TypeError):  # a tensor inside that is no leaf, a lock, a file, ...
            return
        with torch.autocast(sample.device.type, enabled=False):  # half precision could not tell a wrong fold
            logits, pairs = _watch(folded, sample)
            names = {module: name for name, module in folded.named_modules()}
            self._pairs = {names[norm]: names[conv] for norm, conv in pairs.items()}
            _fold(folded, pairs)
            agrees = _agree(folded, sample, logits)
        if not agrees:
            folded, self._pairs = copy.deepcopy(model).eval().requires_grad_(False), {}
        if not isinstance(model, PlainLayout):
            folded = folded.to(memory_format=torch.channels_last)
        if amp is not None:
            keep_stem_precise(folded, sample)
            stem = find_stem(folded, sample)
            for module in folded.modules():
                if layer_class(module) in (nn.Conv2d, nn.Linear, ChannelAffine) and module not in stem:
                    module.to(amp)
        self.network = folded

    @torch.no_grad()
    def refresh(self) -> None:
        """Give `network` the model's weights and statistics as they are now: the same bits that `fold` would give it.

        In place, so that a CUDA graph of it sees them; nothing waits for the device. The model must be the one it was:
        the same layers, with the same hooks.
        """
        if self.network is self._model:
            return
        theirs = dict(self._model.named_modules())
        convolutions = {conv: norm for norm, conv in self._pairs.items()}
        for name, module in self.network.named_modules():
            source: Any = theirs[name]
            if name in convolutions:
                weight, bias = _into_conv(source, theirs[convolutions[name]])
                module.get_parameter("weight").copy_(weight)
                module.get_parameter("bias").copy_(bias)
            elif isinstance(module, ChannelAffine):
                module.take(source)
            elif name not in self._pairs:  # of these nothing is left but an identity
                for mine, other in ((module._parameters, source._parameters), (module._buffers, source._buffers)):
                    for key, value in mine.items():
                        if value is not None:
                            value.copy_(other[key])


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight.detach()
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach()


def _into_conv(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of `conv` with `norm` behind it in them."""
    assert isinstance(norm, nn.BatchNorm2d)
    scale, shift = _scale_and_shift(norm)
    return conv.weight * scale[:, None, None, None], shift if conv.bias is None else shift + scale * conv.bias


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
            weight, bias = _into_conv(conv, norm)
            conv.weight = nn.Parameter(weight, requires_grad=False)
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
