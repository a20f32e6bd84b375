"""The source of an architecture as one file that needs nothing of this package: what its class uses, and no more."""

import ast
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from apart_fast.errors import UserError
from apart_fast.loaders.datasets.listing import shown
from apart_fast.models import MODELS, SOURCES

_ROOT = "apart_fast"
_HEAD = '''\
"""{title}

Plain torch, written by apart_fast {version}; nothing of apart_fast is imported.

    from network import CLASSES, load

    network = load()
    logits = network(pixels)  # float32 [B, {shape}] in [0, 1] -> [B, {classes}]; normalisation is inside
"""

# Copyright (c) 2026 the apart_fast authors; SPDX-License-Identifier: MIT (of this source, not of the weights)

'''
_TAIL = '''

CLASSES = {names}  # in the order of the logits
WEIGHTS = {weights}  # beside this file


def make() -> nn.Module:
    """The network with new weights."""
    return {call}


def load(file: str | Path | None = None, device: torch.device | str = "cpu") -> nn.Module:
    """The network with the trained weights, in eval mode; `file`: None is the one beside this source."""
    file = Path(__file__).resolve().parent / WEIGHTS if file is None else file
    network = make()
    network.load_state_dict({read})
    return network.eval().to(device)
'''
_READ = {  # suffix of the weights -> how they are read, and what that imports
    ".safetensors": ("load_file(file)", "from safetensors.torch import load_file"),
    ".pt": ('torch.load(file, map_location="cpu", weights_only=True)', "import torch"),
}
_ALWAYS = ("import torch", "from torch import nn", "from pathlib import Path")


def network_source(description: dict[str, Any], classes: list[str], title: str, version: str, weights: str) -> str:
    """A Python module with `make()`, `load()` and `CLASSES`.

    Args:
        description: arguments of `build_model`.
        title: what the network is; text on one line.
        version: of this package.
        weights: name of the file beside it, .safetensors or .pt (a state_dict).
    """
    roots, call = _construction(description)
    collected = _Collected()
    for module, name in roots:
        collected.add(module, name)
    read, needed = _READ[Path(weights).suffix]
    height, width = description["image_size"]
    head = _HEAD.format(
        title=shown(title).replace("\\", "/").replace('"', "'"),
        version=version,
        shape=f"{description['in_channels']}, {height}, {width}",
        classes=description["num_classes"],
    )
    imports = _sorted({*collected.imports, *_ALWAYS, needed})
    tail = _TAIL.format(names=_listed(classes), weights=ascii(weights), call=call, read=read)
    return head + imports + "\n\n\n" + "\n\n\n".join(collected.parts) + "\n" + tail


def _construction(description: dict[str, Any]) -> tuple[list[tuple[str, str]], str]:
    """(module, name) of what has to be there, and the expression that makes the network of it."""
    name, classes, channels = description["name"], description["num_classes"], description["in_channels"]
    normalize = description.get("normalize")
    normal = None if normalize is None else tuple(tuple(part) for part in normalize)
    if name not in MODELS:
        source, _, inner = name.partition("/")
        size = tuple(description["image_size"])
        call = f"{source.upper()}.build({ascii(inner)}, {classes}, {channels}, {size}, {normal})"
        return [(type(SOURCES[source]).__module__, source.upper())], call
    made = MODELS[name]
    assert isinstance(made, partial)
    words = [_word(value) for value in made.args]
    options = f"in_channels={channels}, width={description.get('width', 1.0)}, normalize={normal}"
    roots: list[Any] = [made.func, *(value for value in made.args if isinstance(value, type))]
    call = f"{roots[0].__name__}({', '.join(words)}, {classes}, {options})"
    return [(kind.__module__, kind.__name__) for kind in roots], call


def _word(value: object) -> str:
    return value.__name__ if isinstance(value, type) else repr(value)


def _listed(classes: list[str]) -> str:
    return "[\n" + "".join(f"    {ascii(name)},\n" for name in classes) + "]"


def _sorted(imports: set[str]) -> str:
    plain = sorted(line for line in imports if line.startswith("import "))
    return "\n".join([*plain, *sorted(imports - set(plain))])


@dataclass
class _Module:
    """Top level of a module: source lines of definitions, and where imported names come from."""

    definitions: dict[str, tuple[ast.stmt, str]] = field(default_factory=dict)
    ours: dict[str, tuple[str, str]] = field(default_factory=dict)  # name -> (module, name there)
    others: dict[str, str] = field(default_factory=dict)  # name -> the line that imports it

    @classmethod
    def read(cls, name: str) -> "_Module":
        spec = find_spec(name)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            raise UserError(f"the source of {name} is not there: install apart_fast with its .py files")
        text = Path(spec.origin).read_text()
        lines, found = text.splitlines(), cls()
        for node in ast.parse(text).body:
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    here = alias.asname or alias.name
                    if node.module and node.module.split(".")[0] == _ROOT:
                        found.ours[here] = node.module, alias.name
                    else:
                        renamed = f" as {alias.asname}" if alias.asname else ""
                        found.others[here] = f"from {node.module} import {alias.name}{renamed}"
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    renamed = f" as {alias.asname}" if alias.asname else ""
                    found.others[alias.asname or alias.name.split(".")[0]] = f"import {alias.name}{renamed}"
            else:
                decorators = getattr(node, "decorator_list", [])
                first = min([node.lineno, *(d.lineno for d in decorators)])
                part = "\n".join(lines[first - 1 : node.end_lineno])
                for bound in _bound(node):
                    found.definitions[bound] = node, part
        return found


def _bound(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


class _Collected:
    """Definitions, each after those that it uses, and the imports of other packages that they need."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.imports: set[str] = set()
        self._modules: dict[str, _Module] = {}
        self._origin: dict[str, str] = {}  # name -> module that it was taken from

    def add(self, module: str, name: str) -> None:
        """Take a definition, and all that it uses."""
        if module not in self._modules:
            self._modules[module] = _Module.read(module)
        there = self._modules[module]
        if name in there.ours:
            self.add(*there.ours[name])
            return
        if name in there.others:
            self.imports.add(there.others[name])
            return
        if name not in there.definitions:
            return  # a builtin, or a name of a function's own
        if name in self._origin:
            if self._origin[name] != module:
                raise RuntimeError(f"{name} is defined in {module} and in {self._origin[name]}")
            return
        self._origin[name] = module
        node, part = there.definitions[name]
        for used in sorted({n.id for n in ast.walk(node) if isinstance(n, ast.Name)} - {name}):
            self.add(module, used)
        self.parts.append(part)
