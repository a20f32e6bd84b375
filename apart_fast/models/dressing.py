"""Another forward for single layers of any network: their class is one made for it, and given back afterwards.

state_dict, isinstance, deepcopy and pickle work as before, and hooks stay, which a layer in place of it would lose.
"""

from typing import Any

from torch import nn


class Dress:
    """Base of what is mixed into a layer's class; its `forward` calls `super().forward` or takes its place."""

    def __reduce_ex__(self, protocol: Any) -> tuple:
        made: Any = super().__reduce_ex__(max(protocol, 2))
        _, (kind,), *rest = made  # copyreg.__newobj__, (class,), state, ...
        return (_anew, (_plain(kind), *_worn(kind)), *rest)  # pickle does not find a class that was made here


_MADE: dict[tuple[type, type], type] = {}  # (dress, class of a layer) -> the same, dressed


class Dressed:
    """Handle of a layer whose class has `dress` mixed in."""

    def __init__(self, layer: nn.Module, dress: type[Dress]):
        self.layer = layer
        self._before = None if isinstance(layer, dress) else type(layer)
        if self._before is not None:
            layer.__class__ = _dressed(self._before, dress)

    def remove(self) -> None:
        """Give the layer the class back that it came with, unless somebody else had dressed it before; of several
        handles of a layer, the last one first."""
        if self._before is not None:
            self.layer.__class__ = self._before
            self._before = None


def layer_class(layer: nn.Module) -> type[nn.Module]:
    """The class of a layer as it came, whatever it is dressed in."""
    return _plain(type(layer))


def _plain(kind: type) -> type:
    while issubclass(kind, Dress):
        kind = kind.__bases__[1]
    return kind


def _worn(kind: type) -> list[type[Dress]]:
    """The innermost first."""
    return [*_worn(kind.__bases__[1]), kind.__bases__[0]] if issubclass(kind, Dress) else []


def _dressed(kind: type, dress: type[Dress]) -> type:
    """One class for each, made once."""
    name = f"{dress.__name__.lstrip('_')}{kind.__name__}"
    return _MADE.setdefault((dress, kind), type(name, (dress, kind), {}))


def _anew(kind: type, *worn: type[Dress]) -> Any:
    for dress in worn:
        kind = _dressed(kind, dress)
    return kind.__new__(kind)
