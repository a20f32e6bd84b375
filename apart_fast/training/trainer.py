"""The training loop: loader -> `Apart.step_crops` -> optimizer, with validation, checkpoints and records."""

import math
import time
from contextlib import ExitStack, closing
from dataclasses import asdict

import torch

from apart_fast.errors import Stopped, UserError
from apart_fast.loaders import Batch, Dataset
from apart_fast.measure.energy import EnergyMeter
from apart_fast.parallel.agreement import Agreement
from apart_fast.parallel.world import World
from apart_fast.process.stopping import NOTE, StopSignals
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.folder import RunFolder
from apart_fast.step import spans
from apart_fast.step.spans import span
from apart_fast.training.accumulate import Accumulation
from apart_fast.training.display import Display
from apart_fast.training.execution import Execution, wants_graph
from apart_fast.training.finish import finish
from apart_fast.training.keep import Keeper
from apart_fast.training.setup import build
from apart_fast.training.state import Progress, TrainingState
from apart_fast.training.totals import Totals, means
from apart_fast.training.watch import CollapseWatch, EpochWatch, Judge


class Trainer:
    """Everything a run holds; `run()` trains to the end and judges.

    Args:
        config: the settings, already checked (`check()`).
        folder: where the run is recorded.
        data: the data set.
        state: a checkpoint of the same run to go on from.
        us: this process among those of the training; rank 0 alone writes and shows.

    Attributes:
        parts: what is trained (see `Parts`); `model`, `apart`, `loader`, `optimizer`, ... are its own.
        execution: how the device's part of a step runs.
        progress: where the run stands.

    Raises:
        UserError: bad settings, data or checkpoint (one line says what to do).
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        data: Dataset,
        state: dict | None = None,
        us: World | None = None,
    ):
        self.config, self.folder, self.classes = config, folder, data.classes
        self.us = us = us or World()
        self.parts = parts = build(config, folder, data, us, fresh=state is None)
        self.device, self.description = parts.device, parts.description
        self.model, self.apart, self.loader = parts.model, parts.apart, parts.loader
        self.optimizer, self.scaler, self.average = parts.optimizer, parts.scaler, parts.average
        k = config.grad_accum
        self.accumulation = Accumulation(k, parts.model, parts.apart.sizes) if k > 1 else None
        self.execution = Execution(
            self._device_step,
            parts.apart,
            config.batch_size,
            graphed=wants_graph(config.graph, parts.device),
            compiled=config.compile,
        )
        self.agreement = Agreement(parts.exchange, parts.device, us)
        self.progress, self.collapse, self.totals = Progress(), CollapseWatch(), Totals(parts.device)
        about = {
            "description": parts.description,
            "classes": data.classes,
            "dataset": config.dataset,
            "reading": asdict(config.reading),
            "method": parts.apart.method.name,
        }
        self.state = TrainingState(folder, about, parts, self.progress, self.collapse, self.totals, us)
        self.keeper = Keeper(config, folder, parts, self.state, us)
        self.judge = Judge(config, parts, config.compile, us)
        self.watch = EpochWatch(config, parts, self.judge, self.collapse, self.progress, self.keeper.best)
        self.energy = EnergyMeter(parts.device)
        self.signals = StopSignals(NOTE)
        if state is not None:
            self.state.restore(state)
            if "ranks" in state:
                self.keeper.went_on_from(state["ranks"])

    # ---- the loop

    def run(self) -> dict:
        """Train to the last epoch, judge, and return the summary.

        Raises:
            UserError: the loss became NaN, or the disk is full.
            Stopped: a stop signal, after a checkpoint was written.
        """
        config, progress = self.config, self.progress
        if self.us.first:
            self.folder.forget_after(progress.epoch)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)  # a process may hold several runs, one after the other
        with ExitStack() as stack:
            stack.enter_context(self.signals)
            stack.enter_context(self.keeper)
            stack.callback(self.loader.close)
            shown = self.folder if self.us.first else None
            display = stack.enter_context(Display(config, shown, len(self.loader), self.global_step))
            while progress.epoch < config.epochs:
                record, seconds = self._train_epoch(display)
                record |= self.watch(record["epoch"])
                progress.next_epoch(seconds)
                self.totals.clear()
                if self.us.first:
                    self.folder.append(record)
                display.epoch(record, self.global_step)
                stopping = self._stopping()  # a signal from now on ends the run in the next epoch
                self.keeper.after_epoch(record["epoch"], stopping)
                if stopping:
                    self._stop()
        if self._stopping():
            self._stop()
        return finish(config, self.folder, self.parts, progress, self.collapse, self.judge, self.classes, self.us)

    @property
    def global_step(self) -> int:
        """Steps done since the start of the run."""
        return self.progress.epoch * len(self.loader) + self.progress.step

    @property
    def global_update(self) -> int:
        """Updates of the weights since the start of the run."""
        return self.progress.epoch * self.parts.updates + self.progress.step // self.config.grad_accum

    @property
    def between_updates(self) -> bool:
        """Whether no gradients wait for an update: here a checkpoint can be gone on from."""
        return self.accumulation is None or self.accumulation.empty

    def _train_epoch(self, display: Display) -> tuple[dict, float]:
        """What is recorded of the epoch in hand, and the seconds that the part of it done here took."""
        progress, epoch, steps = self.progress, self.progress.epoch, len(self.loader)
        self.model.train()
        self.start_epoch()
        began, first, stopping, due = time.perf_counter(), progress.step, False, False
        self.energy.start()
        with display.bar(epoch, first) as bar, closing(self.loader.epoch(epoch, start=first)) as batches:
            for batch in batches:
                self.step(batch)
                progress.step += 1
                sums = bar.step(progress.step, self.totals, self.apart)
                now = self.agreement.after_step(
                    stop=self.signals.received is not None,
                    save=self.us.first and self.keeper.due_within_epoch(),
                    bad=sums is not None and not math.isfinite(sums[0]),
                )
                if now.bad:
                    self._check_loss(self._loss())
                stopping, due = stopping or now.stop, due or now.save
                if progress.step < steps and self.between_updates and (stopping or due):
                    due = False
                    self._check_loss(self._loss())  # NaN must not replace a good checkpoint
                    self.keeper.within_epoch(progress.paused(time.perf_counter() - began, self._joules()))
                    if stopping:
                        self._stop()
        self.agreement.wait()
        sums = self.totals.values.tolist()  # waits for the device: once an epoch
        seconds = time.perf_counter() - began
        self._check_loss(sums[0])
        joules = self._joules()
        record = {
            "epoch": epoch + 1,
            **means(sums),
            **self._step_sizes(),
            "seconds": progress.epoch_seconds + seconds,
            **({} if joules is None else {"joules": progress.epoch_joules + joules}),
            "images_per_second": (progress.step - first) / steps * len(self.loader.split) / seconds,
        }
        return record, seconds

    def start_epoch(self) -> None:
        """Tell the step which epoch begins, or goes on."""
        self.apart.start_epoch(self.progress.epoch, self.progress.step, self.config.epochs)

    def step(self, batch: Batch) -> None:
        """One training step: perturbation, gradients, weights, averages (with --grad-accum after some of them).

        Never waits for the device, unless omega lies on the host or on disk.
        """
        update = self.global_update
        height, momentum = self.parts.schedule.at(update)
        self.optimizer.set(lr=self.config.lr * height, momentum=momentum)
        self.apart.set_rates(eta=self.parts.eta * height, momentum=momentum)
        if self.average is not None:
            self.average.schedule(update)
        with self.apart.omega_at_hand(batch.host_indices, batch.upcoming):
            self.execution(batch)
        if self.accumulation is not None:
            last = self.progress.step + 1 == len(self.loader)
            if self.accumulation.full(batch.together, last):
                self.accumulation.take_means()
                if self.apart.method.learned:
                    self.apart.sizes.step(self.scaler)
                self._update()
                self.accumulation.clear()

    def _device_step(self, batch: Batch) -> None:
        """The device's part of a step: nothing here depends on the host, so that a CUDA graph can hold it."""
        with span(spans.OPTIMIZER):
            self.optimizer.zero_grad(set_to_none=True)
        if len(batch):
            result = self.apart.step_crops(batch.images, batch.labels, batch.crops, batch.together)
        else:
            result = self.apart.step_without_images(batch.together)
        with span(spans.OPTIMIZER):
            if self.accumulation is None:
                self._update()
            else:
                self.accumulation.add(batch.together)
        self.totals.add(result, batch.together)

    def _update(self) -> None:
        """Of the weights and their average, from the gradients."""
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if self.average is not None:
            self.average.update()

    def _joules(self) -> float | None:
        """Of all ranks' GPUs since the epoch, or the rest of it, began; None where one of them does not tell."""
        mine = self.energy.read()
        joules, told = self.us.sum([mine or 0.0, float(mine is not None)])
        return joules if told == self.us.size else None

    def _step_sizes(self) -> dict:
        if not self.apart.method.learned:
            return {}
        alpha, alpha_omega, *blocks = self.apart.step_sizes.tolist()
        return {"alpha": alpha, "alpha_omega": alpha_omega, "alpha_blocks": blocks}

    def _loss(self) -> float:
        """The sum of all images' losses in this epoch so far; waits for the device."""
        self.agreement.wait()
        return self.totals.loss.item()

    def _check_loss(self, total: float) -> None:
        if not math.isfinite(total):
            raise UserError(
                f"the loss became {total} in epoch {self.progress.epoch + 1}: lower --lr, or use bfloat16 or float32; "
                f"an earlier checkpoint in {self.folder.path} stays"
            )

    def _stopping(self) -> bool:
        """Whether any rank was asked to stop."""
        return self.us.most(self.signals.received or 0) > 0

    def _stop(self) -> None:
        signum = self.us.most(self.signals.received or 0)
        self.keeper.wait()  # a run that could not be gone on with says so instead
        self.us.meet()  # torchrun ends the others when the first has ended: not before last.pt is written
        raise Stopped(signum, self.folder.path)
