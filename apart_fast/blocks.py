"""Block perturbation at named points of any `torch.nn.Module` (APART steps 1 and 3).

A point is written `pattern` or `pattern:input` (what enters the submodule is perturbed) or `pattern:output` (what
leaves it), where the pattern matches submodule names as a shell would: `layer*.*.conv1`.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from apart_fast import kernels
from apart_fast.errors import UserError


class _CaptureSign(torch.autograd.Function):
    """Identity; its backward leaves the sign of the gradient (int8) in `signs[i]`."""

    @staticmethod
    def forward(ctx, a: Tensor, signs: list, i: int) -> Tensor:
        ctx.signs, ctx.i = signs, i
        return a.view_as(a)

    @staticmethod
    def backward(ctx, grad: Tensor):
        ctx.signs[ctx.i] = kernels.capture_sign(grad)
        return grad, None, None


class _AddSign(torch.autograd.Function):
    """`a + alpha * s`; the gradient of alpha is `sum(grad * s)`."""

    @staticmethod
    def forward(ctx, a: Tensor, s: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(s)
        return kernels.add_sign(a, s, alpha)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (s,) = ctx.saved_tensors
        return grad, None, kernels.sign_dot(grad, s)


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


class BlockPoints:
    """Hooks on a model that are silent except inside `capturing()` and `perturbing()`.

    Args:
        model: any module. Copies of it (EMA) keep silent.
        patterns: see the head of this file.
    """

    def __init__(self, model: nn.Module, patterns: Sequence[str]):
        self.points = match_points(model, patterns)
        self._act = None
        self._calls: list[int] = []
        modules = dict(model.named_modules())
        self._handles = [
            _hook(modules[name], side, i, self) for i, (name, side) in enumerate(self.points)
        ]  # fmt: skip
        for name, _ in self.points:
            if getattr(modules[name], "inplace", False):
                raise UserError(f"block point {name!r} works in place: make it with inplace=False, or name another")

    def __len__(self) -> int:
        return len(self.points)

    def remove(self) -> None:
        """Take the hooks off the model again."""
        for handle in self._handles:
            handle.remove()

    def keep_out_of_graphs(self) -> None:
        """Let `torch.compile` break its graphs at the points instead of tracing what happens there."""
        self._at = torch.compiler.disable(self._at)

    @contextmanager
    def capturing(self) -> Iterator[list[Tensor | None]]:
        """Within: a backward through the model fills the yielded list with int8 signs of the gradients there."""
        signs: list[Tensor | None] = [None] * len(self)
        with self._active(lambda i, a: _CaptureSign.apply(a, signs, i)):
            yield signs

    @contextmanager
    def perturbing(self, signs: Sequence[Tensor], alphas: Iterable[Tensor]) -> Iterator[None]:
        """Within: point i carries `a + alphas[i] * signs[i]`."""
        alphas = list(alphas)
        with self._active(lambda i, a: _AddSign.apply(a, signs[i], alphas[i])):
            yield

    @contextmanager
    def _active(self, act) -> Iterator[None]:
        self._act, self._calls = act, [0] * len(self)
        try:
            yield
        finally:
            self._act = None
        if any(calls != 1 for calls in self._calls):
            name, calls = next((p[0], c) for p, c in zip(self.points, self._calls, strict=True) if c != 1)
            raise UserError(
                f"block point {name!r} was called {calls} times in one forward: name a submodule that is called once"
            )

    def _at(self, i: int, a: Tensor) -> Tensor | None:
        if self._act is None:
            return None
        self._calls[i] += 1
        return self._act(i, a)


def _hook(module: nn.Module, side: str, i: int, points: BlockPoints):
    # plain functions: a deepcopy of the model copies them by reference, bound methods would copy `points`
    def on_input(_module, args):
        a = points._at(i, args[0])
        return None if a is None else (a, *args[1:])

    def on_output(_module, _args, output):
        return points._at(i, output)

    return {
        "input": lambda: module.register_forward_pre_hook(on_input),
        "output": lambda: module.register_forward_hook(on_output),
    }[side]()
