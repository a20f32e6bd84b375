"""Another forward for single layers of any network: their class is one made for it, and given back afterwards.

state_dict, isinstance, deepcopy and pickle work as before, and hooks stay, which a layer in place of it would lose.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn


class Dress:
    """Base of what is mixed into a layer's class; its `forward` calls `super().forward` or takes its place."""

    def __reduce_ex__(self, protocol: Any) -> tuple:
        made: Any = super().__reduce_ex__(max(protocol, 2))
        _, (kind,), *rest = made  # copyreg.__newobj__, (class,), state, ...
        return (_anew, (_plain(kind), *_worn(kind)), *rest)  # pickle does not find a class that was made here


_MADE: dict[tuple[type, ...], type] = {}  # (dress, class of a layer) -> the same, dressed
_HANDLES: WeakKeyDictionary[nn.Module, Counter[type[Dress]]] = WeakKeyDictionary()  # layer -> handles of each dress


class Dressed:
    """Handle of a layer whose class has `dress` mixed in; several may hold the same."""

    def __init__(self, layer: nn.Module, dress: type[Dress]):
        self.layer, self._dress = layer, dress
        held = _HANDLES.setdefault(layer, Counter())
        self._mine = held[dress] > 0 or not isinstance(layer, dress)  # the copy of a dressed layer is nobody's
        if self._mine:
            held[dress] += 1
        if not isinstance(layer, dress):
            layer.__class__ = _dressed(type(layer), dress)

    def remove(self) -> None:
        """Take the dress off where no other handle holds it; the layer's own class is the one it came with."""
        if not self._mine:
            return
        self._mine = False
        held = _HANDLES.get(self.layer, Counter({self._dress: 1}))  # the layer of a copied handle has no others
        held[self._dress] -= 1
        kind = type(self.layer)
        if held[self._dress] == 0 and _is_made(kind):  # else somebody has put a class of theirs on top
            self.layer.__class__ = _wearing(_plain(kind), *(worn for worn in _worn(kind) if worn is not self._dress))


def layer_class(layer: nn.Module) -> type[nn.Module]:
    """The class of a layer as it came, whatever it is dressed in."""
    return _plain(type(layer))


def plain_convolutions(model: nn.Module) -> Iterator[nn.Conv2d]:
    """The layers of `model` that are a `Conv2d`, dressed or not; a class of its own may do something else."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer_class(layer) is nn.Conv2d:
            yield layer


def _is_made(kind: type) -> bool:
    """Whether it is a class of this module, whose bases are the dress and what it is on."""
    return _MADE.get(kind.__bases__) is kind


def _plain(kind: type) -> type:
    while _is_made(kind):
        kind = kind.__bases__[1]
    return kind


def _worn(kind: type) -> list[type]:
    """The innermost first."""
    return [*_worn(kind.__bases__[1]), kind.__bases__[0]] if _is_made(kind) else []


def _dressed(kind: type, dress: type) -> type:
    """One class for each, made once."""
    name = f"{dress.__name__.lstrip('_')}{kind.__name__}"
    return _MADE.setdefault((dress, kind), type(name, (dress, kind), {}))


def _wearing(kind: type, *dresses: type) -> type:
    for dress in dresses:
        kind = _dressed(kind, dress)
    return kind


def _anew(kind: type, *dresses: type) -> Any:
    made: Any = _wearing(kind, *dresses)
    return made.__new__(made)
