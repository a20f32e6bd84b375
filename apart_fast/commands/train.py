"""`apart-fast train`, `python train.py`: train, and say how it went."""

from apart_fast.evaluation.judge import describe
from apart_fast.runs.config import TrainConfig
from apart_fast.training.run import train


def run(config: TrainConfig) -> None:
    """Train as configured; print the test figures and where the run lies.

    Raises:
        UserError, Stopped: see `apart_fast.training.run.train`.
    """
    summary, folder = train(config)
    for name, judged in summary.get("test", {}).items():
        print(f"test, {name} weights: {describe(judged)}")
    print(f"run folder: {folder}")
