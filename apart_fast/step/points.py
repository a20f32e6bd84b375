"""Block perturbation at named points of any `torch.nn.Module` (APART steps 1 and 3).

A point is written `pattern` or `pattern:input` (what enters the submodule is perturbed) or `pattern:output` (what
leaves it), where the pattern matches submodule names as a shell would: `layer*.*.conv1`. At the output of an `nn.ReLU`
the step and the relu are one kernel.

Networks may work in place behind a point as they do without one. A submodule that overwrites its input overwrites what
others read of it, then as now: there the perturbed activation is written into the tensor that comes in.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from apart_fast.errors import UserError
from apart_fast.models.modes import evaluating, frozen
from apart_fast.models.trial import trial_of_training, uncompiled
from apart_fast.step import traced
from apart_fast.step.point_functions import AddSign, CaptureSign, ReluAddSign, ReluCaptureSign


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


class _Hook:
    """A hook of a block point. Copies of its model share it; in a pickled one it does nothing."""

    def __init__(self, function: Callable | None):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return None if self._function is None else self._function(*arguments)

    def __deepcopy__(self, memo: dict) -> "_Hook":
        return self

    def __reduce__(self) -> tuple:
        return _Hook, (None,)


def match_points(model: nn.Module, patterns: Sequence[str]) -> list[tuple[str, str]]:
    """(submodule name, `input` | `output`) of every point, in the order of `model.named_modules()`.

    Raises:
        UserError: no pattern, one that matches no submodule, or a side that is neither input nor output.
    """
    if isinstance(patterns, str) or not patterns:
        raise UserError(f"points are {patterns!r}: give a list of patterns, or choose a method without block steps")
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise UserError(f"block point {pattern!r} is no text: give patterns such as 'layer*.*.conv1'")
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


_NO_ARGUMENT: Any = object()


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
        keep: what `capturing` leaves of a gradient; None: its sign as int8, as `perturbing` needs it.
    """

    def __init__(self, model: nn.Module, patterns: Sequence[str], keep: Callable[[Tensor], Tensor] | None = None):
        self.points = match_points(model, patterns)
        self._keep = keep
        self._pass: _Pass | None = None
        self._calls: list[int] = []
        self._keeps = False
        self._kept: list[Tensor | None] = [None] * len(self.points)
        self._untraced: Callable[[int, Tensor], Tensor] | None = None
        modules = dict(model.named_modules())
        self._modules = [modules[name] for name, _ in self.points]
        # whose work the point does
        self._relus = [keep is None and _is_relu(modules[name], side) for name, side in self.points]
        self._fused = list(self._relus)  # in one kernel
        self._overwritten = [False] * len(self.points)  # what enters, by the module
        self._watching = True  # until that is known
        self._given: dict[int, tuple[Tensor, Tensor, int]] = {}  # while watching: what came, what is given, its version
        self._handles = [self._attach(modules[name], side, i) for i, (name, side) in enumerate(self.points)]

    def __len__(self) -> int:
        return len(self.points)

    def remove(self) -> None:
        """Take the hooks off the model again, and make its ReLUs what they were."""
        for handle in self._handles:
            handle.remove()

    def try_out(self, network: nn.Module, sample: Tensor) -> None:
        """One forward in eval mode, so that points that cannot work are refused before a training begins.

        Args:
            network: the model, or what wraps it.
            sample: [B, C, H, W] pixels on its device.

        Raises:
            UserError: a point takes or gives something else than a tensor with a gradient, or is called twice.
        """
        x = sample.clone(memory_format=torch.preserve_format).requires_grad_()
        try:
            self._try(network, x, evaluating)
            if 0 in self._calls:
                self._try(network, x, trial_of_training)  # some submodules are called in a training only
                self._refuse_calls(1)
            self._refuse_calls(0)
        except UserError:
            self.remove()
            raise
        except Exception:  # whatever else is wrong is told elsewhere
            return

    def _try(self, network: nn.Module, x: Tensor, mode: Callable[[nn.Module], AbstractContextManager[None]]) -> None:
        with torch.enable_grad(), uncompiled(), frozen(network), mode(network):
            with self._active(_Pass([None] * len(self), None)):
                network(x)

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

        Raises:
            UserError: a point takes or gives something else than a tensor, has no gradient, or is not called once.
        """
        signs = list(self._kept)
        with self._active(_Pass(signs, None)):
            yield signs
        self._refuse_calls(1)
        self._watching = False
        for i, s in enumerate(signs):
            if s is None:
                raise UserError(f"block point {self._label(i)!r} has no gradient: the loss does not depend on it")
        if self._keeps:
            self._kept, self._keeps = list(signs), False

    @contextmanager
    def perturbing(self, signs: Sequence[Tensor | None], alphas: Iterable[Tensor]) -> Iterator[None]:
        """Within: point i carries `a + alphas[i] * signs[i]`."""
        with self._active(_Pass(list(signs), list(alphas))):
            yield
        self._refuse_calls(1)

    @contextmanager
    def _active(self, now: _Pass) -> Iterator[None]:
        self._pass, self._calls = now, [0] * len(self)
        if self._untraced is None and "torch._dynamo" in sys.modules:  # to import it takes a second
            self._untraced = torch.compiler.disable(self._eager)
        watches = [self._watch(i) for i in range(len(self)) if self._watching and not self._relus[i]]
        try:
            yield
        finally:
            self._pass = None
            for handle in watches:
                handle.remove()
            for i, (_, z, version) in self._given.items():  # those of relus are left
                # in pass 2 the fused kernel needs z in the backward, which a relu does not
                self._fused[i] = self._fused[i] and z._version == version
            self._given = {}

    def _refuse_calls(self, fewest: int) -> None:
        for (name, _), calls in zip(self.points, self._calls, strict=True):
            if not fewest <= calls <= 1:
                what = f"block point {name!r} was called {calls} times in one forward"
                raise UserError(f"{what}: name a submodule that is called once")

    def _at(self, i: int, a: Tensor) -> Tensor | None:
        """What point i makes of `a` (of what enters the ReLU, where it does its work); None while silent."""
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
        a = F.relu(a) if self._relus[i] else a
        return traced.leave_sign(a, s) if now.alphas is None else traced.add_sign(a, s, now.alphas[i])

    def _eager(self, i: int, a: Tensor) -> Tensor:
        """What a point makes of `a` by the kernels; `torch.compile` leaves it out of its graphs."""
        now = self._pass
        assert now is not None
        self._calls[i] += 1
        if not isinstance(a, Tensor) or not a.is_floating_point() or (now.alphas is None and not a.requires_grad):
            raise UserError(self._misfit(i, a))
        fused = self._fused[i]
        if fused and self._watching:
            self._given[i] = (a, a, a._version)
        a = F.relu(a) if self._relus[i] and not fused else a
        if now.alphas is None:
            if fused:
                return ReluCaptureSign.apply(a, now.signs, i)
            return CaptureSign.apply(a, now.signs, i, self._keep)
        return (AddSign, ReluAddSign)[fused].apply(a, now.signs[i], now.alphas[i])

    def _label(self, i: int) -> str:
        name, side = self.points[i]
        return name if side == "input" else f"{name}:{side}"

    def _misfit(self, i: int, a: object) -> str:
        """Why point i cannot work on `a`, and what to do."""
        takes = "takes" if self.points[i][1] == "input" else "gives"
        if a is _NO_ARGUMENT:
            what = "keywords only"
        elif not isinstance(a, Tensor):
            kind = type(a).__name__
            what = f"a{'n' * (kind[0] in 'aeiou')} {kind}"
        elif not a.is_floating_point():
            what = f"{str(a.dtype).removeprefix('torch.')} numbers, which have no gradient"
        else:
            what = "a tensor without gradient, which does not depend on the pixels"
        return f"block point {self._label(i)!r} {takes} {what}: name a submodule that {takes} one tensor"

    def _watch(self, i: int) -> RemovableHandle:
        """For one pass: look whether module i overwrites what it is given, and let it."""

        def after(_module: nn.Module, _args: tuple, _output: object) -> None:
            if i not in self._given:
                return
            a, given, version = self._given.pop(i)
            if given._version != version:
                self._overwritten[i] = True
                a.copy_(given)

        return self._modules[i].register_forward_hook(after)

    def _attach(self, module: nn.Module, side: str, i: int) -> "RemovableHandle | _Fused":
        """Put point i on the module; returns a handle with `remove()`."""

        def on_input(_module: nn.Module, args: tuple) -> tuple | None:
            came = args[0] if args else _NO_ARGUMENT
            a = self._at(i, came)
            if a is None:
                return None
            if self._overwritten[i]:
                came.copy_(a)
                return None
            if self._watching and not torch.compiler.is_compiling():
                a = a.clone()  # not in the memory of what came, which the module may overwrite
                self._given[i] = (came, a, a._version)
            return (a, *args[1:])

        def on_output(_module: nn.Module, _args: tuple, output: Tensor) -> Tensor | None:
            return self._at(i, output)

        if self._relus[i] and isinstance(module, nn.ReLU):
            return _Fused(module, lambda z: self._at(i, z))
        if side == "input":
            return module.register_forward_pre_hook(_Hook(on_input))
        return module.register_forward_hook(_Hook(on_output))


def _is_relu(module: nn.Module, side: str) -> bool:
    # an own forward hook comes before the point; a ReLU of other, silent points (in a copy) keeps these
    return side == "output" and type(module) is nn.ReLU and not module.inplace and not module._forward_hooks
