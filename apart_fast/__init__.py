"""Fast adversarial training with APART (arXiv 2010.08034).

`Apart` is one whole training step for any loop; `evaluate` judges any model; `python train.py` does it all.
"""

from apart_fast.errors import UserError
from apart_fast.evaluation.judge import Report, evaluate
from apart_fast.models import MODELS, build_model
from apart_fast.step.apart import Apart, StepResult
from apart_fast.step.methods import METHODS, Method, get_method
from apart_fast.training.schedule import Triangle, scaled_eta
from apart_fast.units import parse_eps

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
    "parse_eps",
    "scaled_eta",
]
