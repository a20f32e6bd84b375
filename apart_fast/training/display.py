"""What a run shows while it trains: a bar, a line an epoch, logs."""

import time
from types import TracebackType

import torch
from tqdm import tqdm

from apart_fast.runs.config import TrainConfig
from apart_fast.runs.folder import RunFolder
from apart_fast.step.apart import Apart
from apart_fast.training.loggers import Logs
from apart_fast.training.readback import Readback
from apart_fast.training.totals import Totals, means


class Display:
    """A context manager, which closes the logs.

    Args:
        folder: of the run, for its logs; None: there are none.
        steps: steps in an epoch.
        purge_step: of TensorBoard's events, those from this step on are written again.
    """

    def __init__(self, config: TrainConfig, folder: RunFolder | None, steps: int, purge_step: int):
        self._config, self._steps = config, steps
        self._logs = Logs(config, folder, purge_step)

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._logs.close()

    def bar(self, epoch: int, first: int) -> "EpochBar":
        """The bar of `epoch` (from 0), whose next step is `first` (from 0); a context manager."""
        return EpochBar(self._config, self._logs, epoch, self._steps, first)

    def epoch(self, record: dict, global_step: int) -> None:
        """Show a line of metrics.jsonl, written after `global_step` steps."""
        values: dict[str, float] = {}
        for name, value in record.items():
            each = {f"{name}/{i}": v for i, v in enumerate(value)} if isinstance(value, list) else {name: value}
            values |= {f"epoch/{key}": float(number) for key, number in each.items()}
        self._logs.values(values, global_step)  # TensorBoard's are purged with the steps
        words = [f"epoch {record['epoch']:>3}", f"loss {record['loss']:.3f}", f"acc {record['train_accuracy']:.1%}"]
        words += [f"{name} {record[name]:.4f}" for name in ("alpha", "alpha_omega") if name in record]
        words += [
            f"{label} {record[name]:.1%}"
            for name, label in (("probe_pgd10", "probe"), ("val_clean", "val clean"), ("val_pgd20", "val PGD-20"))
            if name in record
        ]
        words += [f"{record['images_per_second']:,.0f} img/s", f"{record['seconds']:.1f} s"]
        tqdm.write("  ".join(words))


class EpochBar:
    """The bar of an epoch, with the newest figures that have arrived from the device: nobody waits for them."""

    def __init__(self, config: TrainConfig, logs: Logs, epoch: int, steps: int, first: int):
        self._config, self._logs = config, logs
        self._begin, self._first = epoch * steps, first
        self._left = (config.epochs - epoch) * steps  # of the run, at the start of the epoch
        self._readback, self._began = Readback(), time.perf_counter()
        self._bar = tqdm(
            total=steps,
            initial=first,
            desc=f"epoch {epoch + 1}/{config.epochs}",
            unit="step",
            leave=False,
            disable=None if config.progress else True,
            dynamic_ncols=True,
        )

    def __enter__(self) -> "EpochBar":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()

    def step(self, done: int, totals: Totals, apart: Apart) -> list[float] | None:
        """Show that `done` steps of the epoch are done; every so many of them, start to fetch the figures.

        Returns:
            the newest sums (`Totals.values`) that have arrived, when they were looked for.
        """
        self._bar.update()
        if done % self._config.log_every:
            return None
        self._readback.submit(self._begin + done, torch.cat([totals.values, apart.step_sizes[:2].double()]))
        newest = self._readback.poll()
        if newest is None:
            return None
        step, (*sums, alpha, alpha_omega) = newest
        mean = means(sums)
        values = {"loss": mean["loss"], "start": mean["start_loss"], "acc": mean["train_accuracy"]}
        if apart.method.learned:
            values |= {"alpha": alpha, "alpha_omega": alpha_omega}
        speed = (done - self._first) / (time.perf_counter() - self._began)
        self._bar.set_postfix_str(
            ", ".join(f"{name} {value:.3g}" for name, value in values.items())
            + f", {speed * self._config.batch_size:,.0f} img/s, "
            + f"run ends in {tqdm.format_interval((self._left - done) / speed)}"
        )
        self._logs.values({f"step/{name}": value for name, value in values.items()}, step)
        return sums
