"""Fast adversarial training with APART (arXiv 2010.08034).

`Apart` is one whole training step for any loop; `evaluate` judges any model; `python train.py` does it all.

What is listed here is imported where it is first used, so that a wrong flag is told without waiting for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apart_fast.errors import UserError
    from apart_fast.evaluation.judge import Report, evaluate
    from apart_fast.export.load import load
    from apart_fast.models import MODELS, build_model
    from apart_fast.step.apart import Apart, StepResult
    from apart_fast.step.methods import METHODS, Method, get_method
    from apart_fast.step.schedules import Triangle, scaled_eta
    from apart_fast.units import parse_eps

    __version__: str

__all__ = [
    "METHODS",
    "MODELS",
    "Apart",
    "Method",
    "Report",
    "StepResult",
    "Triangle",
    "UserError",
    "build_model",
    "evaluate",
    "get_method",
    "load",
    "parse_eps",
    "scaled_eta",
]

if not TYPE_CHECKING:  # a type checker that saw it would take any name for one of ours
    # the imports above, as they are made
    _HOMES = {
        "METHODS": "apart_fast.step.methods",
        "MODELS": "apart_fast.models",
        "Apart": "apart_fast.step.apart",
        "Method": "apart_fast.step.methods",
        "Report": "apart_fast.evaluation.judge",
        "StepResult": "apart_fast.step.apart",
        "Triangle": "apart_fast.step.schedules",
        "UserError": "apart_fast.errors",
        "build_model": "apart_fast.models",
        "evaluate": "apart_fast.evaluation.judge",
        "get_method": "apart_fast.step.methods",
        "load": "apart_fast.export.load",
        "parse_eps": "apart_fast.units",
        "scaled_eta": "apart_fast.step.schedules",
    }

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import version

            value: object = version("apart_fast")
        elif name in _HOMES:
            value = getattr(import_module(_HOMES[name]), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, "__version__"})
