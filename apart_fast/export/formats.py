"""The formats by name. Imported without torch, so that a missing package is told at once."""

from importlib.util import find_spec
from typing import NamedTuple

from apart_fast.errors import UserError


class Format(NamedTuple):
    """A format.

    Attributes:
        module: has `contents(network, licence)`, which gives the bytes of each file that is written, by its path in the
            folder (of a file alone: by ""), and `reopen(place)`, which gives a function from pixels to logits that uses
            what was written and nothing else.
        packages: what it takes to write and to open it.
        extra: of pyproject.toml, which has these.
        name: of the file or folder where no other is named; a file that is named has the same ending.
        folder: whether it is one.
    """

    module: str
    packages: tuple[str, ...]
    extra: str
    name: str
    folder: bool


FORMATS = {
    "safetensors": Format("apart_fast.export.to_safetensors", ("safetensors",), "safetensors", "safetensors", True),
    "onnx": Format("apart_fast.export.to_onnx", ("onnx", "onnxscript", "onnxruntime"), "onnx", "model.onnx", False),
    "torch-export": Format("apart_fast.export.to_torch_export", (), "", "model.pt2", False),
    "robustbench": Format("apart_fast.export.to_robustbench", (), "", "robustbench", True),
}


def check_installed(wanted: Format) -> None:
    """Refuse a format whose packages are not installed.

    Raises:
        UserError: the line names them, and how to get them.
    """
    missing = [name for name in wanted.packages if find_spec(name) is None]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed: "
            f"pip install 'apart_fast[{wanted.extra}]'"
        )
