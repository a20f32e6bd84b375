"""`apart-fast train`, `python train.py`: train, and say how it went."""

from apart_fast.evaluation.judge import describe
from apart_fast.parallel.world import world
from apart_fast.runs.config import TrainConfig
from apart_fast.training.dry import dry_run
from apart_fast.training.run import train


def run(config: TrainConfig) -> None:
    """Train as configured, with the other processes that torchrun has started; print the test figures and where the run
    lies. With `dry_run`: only try everything once.

    Raises:
        UserError, Stopped, SaidElsewhere, RankLost: see `apart_fast.training.run.train` and
            `apart_fast.parallel.world.world`.
    """
    with world(config.device) as us, us.one_line():
        if config.dry_run:
            dry_run(config, us)
            return
        summary, folder = train(config, us)
        for name, judged in summary.get("test", {}).items():
            print(f"test, {name} weights: {describe(judged)}")
        print(f"run folder: {folder}")
