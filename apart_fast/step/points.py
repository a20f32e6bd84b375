"""Block perturbation at named points of any `torch.nn.Module` (APART steps 1 and 3).

A point is written `pattern` or `pattern:input` (what enters the submodule is perturbed) or `pattern:output` (what
leaves it), where the pattern matches submodule names as a shell would: `layer*.*.conv1`. At the output of an `nn.ReLU`
the step and the relu are one kernel.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from apart_fast import kernels
from apart_fast.errors import UserError
from apart_fast.step import traced


class _CaptureSign(torch.autograd.Function):
    """Identity; its backward leaves the sign of the gradient (int8) in `signs[i]`."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, signs: list[Tensor | None], i: int) -> Tensor:
        ctx.signs, ctx.i = signs, i
        return a.view_as(a)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        ctx.signs[ctx.i] = kernels.capture_sign(grad)
        return grad, None, None


class _AddSign(torch.autograd.Function):
    """`a + alpha * s`; the gradient of alpha is `sum(grad * s)`."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, s: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(s)
        return kernels.add_sign(a, s, alpha)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (s,) = ctx.saved_tensors
        return grad, None, kernels.sign_dot(grad, s)


class _ReluCaptureSign(torch.autograd.Function):
    """relu; its backward also leaves the sign of the gradient (int8) in `signs[i]`."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, signs: list[Tensor | None], i: int) -> Tensor:
        a = F.relu(z)
        ctx.save_for_backward(a)
        ctx.signs, ctx.i = signs, i
        return a

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (a,) = ctx.saved_tensors
        ctx.signs[ctx.i], dz = kernels.relu_capture_sign(grad, a)
        return dz, None, None


class _ReluAddSign(torch.autograd.Function):
    """`relu(z) + alpha * s`; the gradient of alpha is `sum(grad * s)`."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, s: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(z, s)
        return kernels.relu_add_sign(z, s, alpha)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        dz, dot = kernels.relu_sign_dot(grad, *ctx.saved_tensors)
        return dz, None, dot


class PointReLU(nn.ReLU):
    """A ReLU that leaves its work to a block point while that is active; pickled without the point."""

    def forward(self, z: Tensor) -> Tensor:
        """relu(z), with what the point does to it."""
        at = vars(self).get("_at")
        a = None if at is None else at(z)
        return F.relu(z) if a is None else a

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "_at"}


class _Fused:
    """Handle of a ReLU whose class was changed (its hooks, names and copies work as before)."""

    def __init__(self, relu: nn.ReLU, at: Callable[[Tensor], Tensor | None]):
        self._relu, self._at = relu, at
        relu.__class__ = PointReLU
        vars(relu)["_at"] = at

    def remove(self) -> None:
        if vars(self._relu).get("_at") is self._at:
            self._relu.__class__ = nn.ReLU
            del vars(self._relu)["_at"]


def match_points(model: nn.Module, patterns: Sequence[str]) -> list[tuple[str, str]]:
    """(submodule name, `input` | `output`) of every point, in the order of `model.named_modules()`.

    Raises:
        UserError: a pattern matches no submodule, or a side is neither input nor output.
    """
    names = [name for name, _ in model.named_modules() if name]
    points: dict[tuple[str, str], None] = {}
    for pattern in patterns:
        glob, _, side = pattern.partition(":")
        side = side or "input"
        if side not in ("input", "output"):
            raise UserError(f"block point {pattern!r}: after the colon comes 'input' or 'output'")
        found = [name for name in names if fnmatchcase(name, glob)]
        if not found:
            raise UserError(f"block point {pattern!r} matches no submodule: there are {', '.join(names[:6])}, ...")
        points.update({(name, side): None for name in found})
    return sorted(points, key=lambda point: names.index(point[0]))


@dataclass
class _Pass:
    """What the points do now: leave signs, or add them times alphas."""

    signs: list[Tensor | None]
    alphas: list[Tensor] | None


class BlockPoints:
    """Hooks and fused ReLUs on a model that are silent except inside `capturing()` and `perturbing()`.

    Args:
        model: any module. Copies of it (EMA) keep silent.
        patterns: see the head of this file.
    """

    def __init__(self, model: nn.Module, patterns: Sequence[str]):
        self.points = match_points(model, patterns)
        self._pass: _Pass | None = None
        self._calls: list[int] = []
        self._keeps = False
        self._kept: list[Tensor | None] = [None] * len(self.points)
        self._untraced: Callable[[int, Tensor], Tensor] | None = None
        modules = dict(model.named_modules())
        for name, _ in self.points:
            if getattr(modules[name], "inplace", False):
                raise UserError(f"block point {name!r} works in place: make it with inplace=False, or name another")
        self._fused = [_can_fuse(modules[name], side) for name, side in self.points]
        self._handles = [self._attach(modules[name], side, i) for i, (name, side) in enumerate(self.points)]

    def __len__(self) -> int:
        return len(self.points)

    def remove(self) -> None:
        """Take the hooks off the model again, and make its ReLUs what they were."""
        for handle in self._handles:
            handle.remove()

    def keep_signs(self) -> None:
        """Let `torch.compile` trace the points, so that a pass is one graph.

        Compiled passes cannot make the tensors of their signs. Those of the next pass 1 are kept for it, and each later
        compiled pass 1 of the same shapes overwrites them. That next one should run eagerly: a pass that is traced
        before has a graph break at each point, as has one of other shapes.
        """
        self._keeps = True

    @contextmanager
    def capturing(self) -> Iterator[list[Tensor | None]]:
        """Within: a backward through the model fills the yielded list with int8 signs of the gradients there.

        After `keep_signs`, compiled passes fill the same tensors each time.
        """
        signs = list(self._kept)
        with self._active(_Pass(signs, None)):
            yield signs
        if self._keeps and all(s is not None for s in signs):
            self._kept, self._keeps = list(signs), False

    @contextmanager
    def perturbing(self, signs: Sequence[Tensor | None], alphas: Iterable[Tensor]) -> Iterator[None]:
        """Within: point i carries `a + alphas[i] * signs[i]`."""
        with self._active(_Pass(list(signs), list(alphas))):
            yield

    @contextmanager
    def _active(self, now: _Pass) -> Iterator[None]:
        self._pass, self._calls = now, [0] * len(self)
        if self._untraced is None and "torch._dynamo" in sys.modules:  # to import it takes a second
            self._untraced = torch.compiler.disable(self._eager)
        try:
            yield
        finally:
            self._pass = None
        if any(calls != 1 for calls in self._calls):
            name, calls = next((p[0], c) for p, c in zip(self.points, self._calls, strict=True) if c != 1)
            raise UserError(
                f"block point {name!r} was called {calls} times in one forward: name a submodule that is called once"
            )

    def _at(self, i: int, a: Tensor) -> Tensor | None:
        """What point i makes of `a` (of what enters the ReLU, where they are fused); None while silent."""
        now = self._pass
        if now is None:
            return None
        if not torch.compiler.is_compiling():
            return self._eager(i, a)
        s = now.signs[i]
        if s is None or s.shape != a.shape:
            assert self._untraced is not None
            return self._untraced(i, a)
        self._calls[i] += 1
        a = F.relu(a) if self._fused[i] else a
        return traced.leave_sign(a, s) if now.alphas is None else traced.add_sign(a, s, now.alphas[i])

    def _eager(self, i: int, a: Tensor) -> Tensor:
        """What a point makes of `a` by the kernels; `torch.compile` leaves it out of its graphs."""
        now = self._pass
        assert now is not None
        self._calls[i] += 1
        if now.alphas is None:
            return (_CaptureSign, _ReluCaptureSign)[self._fused[i]].apply(a, now.signs, i)
        return (_AddSign, _ReluAddSign)[self._fused[i]].apply(a, now.signs[i], now.alphas[i])

    def _attach(self, module: nn.Module, side: str, i: int) -> "RemovableHandle | _Fused":
        """Put point i on the module; returns a handle with `remove()`."""

        # plain functions: a deepcopy of the model copies them by reference, bound methods would copy `self`
        def on_input(_module: nn.Module, args: tuple) -> tuple | None:
            a = self._at(i, args[0])
            return None if a is None else (a, *args[1:])

        def on_output(_module: nn.Module, _args: tuple, output: Tensor) -> Tensor | None:
            return self._at(i, output)

        if self._fused[i] and isinstance(module, nn.ReLU):
            return _Fused(module, lambda z: self._at(i, z))
        if side == "input":
            return module.register_forward_pre_hook(on_input)
        return module.register_forward_hook(on_output)


def _can_fuse(module: nn.Module, side: str) -> bool:
    # an own forward hook comes before the point; a ReLU of other, silent points (in a copy) keeps these
    return side == "output" and type(module) is nn.ReLU and not module._forward_hooks
