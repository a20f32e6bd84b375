"""The training loop: loader -> `Apart.step` -> optimiser, with validation, probe, checkpoints and records."""

import copy
import math
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from apart_fast.device import has_bfloat16, keep_freed_memory, pick_device
from apart_fast.errors import Stopped, UserError
from apart_fast.evaluation.judge import evaluate
from apart_fast.loaders import Batch, Dataset, Split, fingerprint, load_dataset, make_loader, subset, take_validation
from apart_fast.measure import profiling
from apart_fast.measure.energy import EnergyMeter
from apart_fast.models import build_model
from apart_fast.models.channels_last import any_layout
from apart_fast.report import pictures, write_report
from apart_fast.runs import checkpoint
from apart_fast.runs.card import write_card
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.folder import RunFolder
from apart_fast.step.apart import Apart
from apart_fast.step.optimizer import SGD
from apart_fast.training.average import WeightAverage
from apart_fast.training.compiled import CompiledStep
from apart_fast.training.graph import GraphedStep
from apart_fast.training.readback import Readback
from apart_fast.training.schedule import Triangle, scaled_eta
from apart_fast.training.watch import CollapseWatch
from apart_fast.units import parse_eps

AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def wants_graph(config: TrainConfig, device: torch.device) -> bool:
    """Whether steps are replayed as a CUDA graph: where there is a GPU, unless switched off.

    Raises:
        UserError: asked for, without a GPU.
    """
    if config.graph and device.type != "cuda":
        raise UserError("--graph True needs a GPU: leave it out, or give --device cuda")
    return device.type == "cuda" and config.graph is not False


@dataclass
class Progress:
    """Where a run stands: the next step to be done is `step` of `epoch` (both from 0)."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0  # of the epoch in hand, before a stop
    epoch_joules: float = 0.0
    peak_gpu_bytes: int = 0
    best_accuracy: float = -1.0
    best_epoch: int = 0
    best_by: str = ""


class Trainer:
    """Everything a run holds; `run()` trains to the end and judges.

    Args:
        config: the settings, already checked (`check()`).
        folder: where the run is recorded.
        data: the data set.
        state: a checkpoint of the same run to go on from.

    Raises:
        UserError: bad settings, data or checkpoint (one line says what to do).
    """

    def __init__(self, config: TrainConfig, folder: RunFolder, data: Dataset, state: dict | None = None):
        self.config, self.folder = config, folder
        self.device = pick_device(config.device)
        self.amp = AMP_DTYPES[config.amp_dtype] if config.amp else None
        if self.amp == torch.bfloat16 and not has_bfloat16(self.device):
            tqdm.write(f"note: this {self.device.type.upper()} emulates bfloat16: the run is quicker without --amp")
        # evaluation offers no float16: without loss scaling its input gradients underflow
        self.watch_amp = torch.bfloat16 if config.amp else None
        self.eval_eps = parse_eps(config.eval_eps)
        self.classes = data.classes
        self.test = subset(data.test, config.test_images) if config.test_images else data.test
        train, self.val = split_training_data(config, data)
        self.probe = subset(self.val, min(config.probe_images, len(self.val))) if config.probe_images else None

        self.data_key = fingerprint(data.train)
        torch.manual_seed(config.seed)
        self.description = describe_model(config, train, data.classes)
        self.model = build_model(**self.description).to(self.device, memory_format=torch.channels_last)
        self.loader = make_loader(
            config.loader_kind,
            train,
            batch_size=config.batch_size,
            seed=config.seed,
            device=self.device,
            padding=config.padding,
            flip=data.flip if config.flip is None else config.flip,
            workers=config.workers,
            progress=config.progress,
        )
        _check_last_batch(self.model, self.loader.num_examples, config.batch_size, train)
        self.scaler = None
        if self.amp == torch.float16:
            self.scaler = torch.amp.GradScaler(self.device.type)
        self.cycle = min(config.cycle, config.epochs) * len(self.loader)
        self.triangle = Triangle(self.cycle)
        self.eta = scaled_eta(config.eta, self.cycle)
        self.apart = Apart(
            self.model,
            self.loader.num_examples,
            train.images.shape[1:],
            padding=config.padding,
            eps=config.eps,
            method=config.method,
            points=config.points,
            amp=self.amp,
            scaler=self.scaler,
            label_smoothing=config.label_smoothing,
            eta=self.eta,
            decay=config.step_decay,
            omega_dtype=getattr(torch, config.omega_dtype),
            omega_device=config.omega_device,
            omega_folder=folder.path,
            seed=config.seed,
        )
        self.optimizer = SGD(self.model.parameters(), lr=config.lr, momentum=0.9, weight_decay=config.weight_decay)
        self.average = WeightAverage(self.model, config.ema) if config.ema else None
        self.advance: Callable[[Batch], None] = self._device_step
        if wants_graph(config, self.device):
            self.advance = GraphedStep(self._device_step, config.batch_size, [self.apart.generator])
        if config.compile:
            self.advance = CompiledStep(self.advance, self.apart, config.batch_size)
        self.watch = CollapseWatch()
        self.energy = EnergyMeter(self.device)
        self.progress = Progress()
        # sums over the epoch: loss, start loss, right answers, images
        self.totals = torch.zeros(4, dtype=torch.float64, device=self.device)
        self._signal: int | None = None
        if state is not None:
            self._load_state(state)

    # ---- the loop

    def run(self) -> dict:
        """Train to the last epoch, judge, and return the summary.

        Raises:
            UserError: the loss became NaN, or the disk is full.
            Stopped: SIGTERM or Ctrl-C, after a checkpoint.
        """
        config = self.config
        self.folder.forget_after(self.progress.epoch)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)  # a process may hold several runs, one after the other
        with ExitStack() as stack:
            stack.enter_context(self._signals())
            stack.callback(self.loader.close)
            self.writer = stack.enter_context(
                closing(SummaryWriter(str(self.folder.path / "tensorboard"), purge_step=self.global_step))
            )
            while self.progress.epoch < config.epochs:
                record = self._train_epoch()
                record |= self._watch_epoch(record["epoch"])
                self.progress.epoch, self.progress.step = record["epoch"], 0
                self.progress.epoch_seconds = self.progress.epoch_joules = 0.0
                self.totals.zero_()
                self.folder.append(record)
                self._log_epoch(record)
                if config.keep_weights and record["epoch"] % config.keep_weights == 0:
                    checkpoint.save(
                        self.folder.weights(record["epoch"]), self._weights(self.judged_model, record["epoch"])
                    )
                due = record["epoch"] % config.checkpoint_every == 0 or record["epoch"] == config.epochs
                if due or self._signal is not None:
                    self.save()
                if self._signal is not None:
                    raise Stopped(self._signal, self.folder.path)
        return self._finish()

    @property
    def global_step(self) -> int:
        """Steps done since the start of the run."""
        return self.progress.epoch * len(self.loader) + self.progress.step

    def _train_epoch(self) -> dict:
        progress, epoch = self.progress, self.progress.epoch
        self.model.train()
        if progress.step == 0:
            self.apart.start_epoch(epoch)
        readback, began, first = Readback(), time.perf_counter(), progress.step
        self.energy.start()
        bar = tqdm(
            total=len(self.loader),
            initial=first,
            desc=f"epoch {epoch + 1}/{self.config.epochs}",
            unit="step",
            leave=False,
            disable=None if self.config.progress else True,
            dynamic_ncols=True,
        )
        with bar, closing(self.loader.epoch(epoch, start=first)) as batches:
            for batch in batches:
                self.step(batch)
                progress.step += 1
                bar.update()
                if progress.step % self.config.log_every == 0:
                    self._show(bar, readback, (progress.step - first) / (time.perf_counter() - began))
                if self._signal is not None and progress.step < len(self.loader):
                    self._check_loss(self.totals[0].item())  # a stop must not replace a good checkpoint by NaN
                    seconds = time.perf_counter() - began
                    progress.seconds += seconds
                    progress.epoch_seconds += seconds
                    progress.epoch_joules += self.energy.read() or 0.0
                    self.save()
                    raise Stopped(self._signal, self.folder.path)
        loss, start_loss, correct, images = self.totals.tolist()  # waits for the device: once an epoch
        seconds = time.perf_counter() - began
        progress.seconds += seconds
        self._check_loss(loss)
        done, joules = progress.step - first, self.energy.read()
        return {
            "epoch": epoch + 1,
            "loss": loss / images,
            "start_loss": start_loss / images,
            "train_accuracy": correct / images,
            **self._step_sizes(),
            "seconds": progress.epoch_seconds + seconds,
            **({} if joules is None else {"joules": progress.epoch_joules + joules}),
            "images_per_second": done / len(self.loader) * self.loader.num_examples / seconds,
        }

    def step(self, batch: Batch) -> None:
        """One training step: perturbation, gradients, weights, averages.

        Never waits for the device, unless omega lies on the host or on disk.
        """
        height, momentum = self.triangle.at(self.global_step)
        self.optimizer.set(lr=self.config.lr * height, momentum=momentum)
        self.apart.set_rates(eta=self.eta * height, momentum=momentum)
        if self.average is not None:
            self.average.schedule(self.global_step)
        with self.apart.omega_at_hand(batch.host_indices, batch.upcoming):
            self.advance(batch)

    def _device_step(self, batch: Batch) -> None:
        """The device's part of a step: nothing here depends on the host, so that a CUDA graph can hold it."""
        self.optimizer.zero_grad(set_to_none=True)
        result = self.apart.step(
            batch.images, batch.labels, batch.indices, rows=batch.rows, offsets=batch.offsets, flips=batch.flips
        )
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if self.average is not None:
            self.average.update()
        n = len(batch)
        count = result.correct.new_full((), n)
        self.totals += torch.stack([result.loss.double() * n, result.start_loss.double() * n, result.correct, count])

    def _step_sizes(self) -> dict:
        if not self.apart.method.learned:
            return {}
        alpha, alpha_omega, *blocks = self.apart.step_sizes.tolist()
        return {"alpha": alpha, "alpha_omega": alpha_omega, "alpha_blocks": blocks}

    # ---- watching

    @property
    def judged_model(self) -> torch.nn.Module:
        """The averaged weights where there are any, else the weights."""
        return self.model if self.average is None else self.average.model

    def _judge(self, split: Split, attacks: tuple[str, ...], amp: torch.dtype | None, progress: bool = False):
        with _plain_model(self.config.compile):
            return self._evaluate(split, attacks, amp, progress)

    def _evaluate(self, split: Split, attacks: tuple[str, ...], amp: torch.dtype | None, progress: bool):
        return evaluate(
            self.judged_model,
            split.images,
            split.labels,
            eps=self.eval_eps,
            attacks=attacks,
            batch_size=max(self.config.batch_size, 128),
            seed=self.config.seed,
            device=self.device,
            amp=amp,
            progress=progress and self.config.progress,
        )

    def _watch_epoch(self, epoch: int) -> dict:
        """Probe for collapse, validate when due, and keep the best weights."""
        record: dict = {}
        if self.probe is not None:
            probe = self._judge(self.probe, ("pgd-10",), self.watch_amp)
            accuracy = probe.attacks["pgd-10"].accuracy
            record["probe_pgd10"] = accuracy
            # ordinary training has no robustness to lose
            if self.apart.method.steps and self.watch.update(epoch, accuracy):
                tqdm.write(
                    f"warning: collapsed at epoch {epoch}: PGD-10 probe {accuracy:.1%} after {self.watch.best:.1%}; "
                    "the best checkpoint is from before"
                )
            if not self.progress.best_by == "validation":
                self._keep_best(epoch, accuracy, "probe")
        if epoch % self.config.val_every == 0 or epoch == self.config.epochs:
            report = self._judge(self.val, ("clean", "pgd-20"), self.watch_amp)
            record |= {"val_clean": report.attacks["clean"].accuracy, "val_pgd20": report.attacks["pgd-20"].accuracy}
            if self.progress.best_by == "probe" and not self.watch.collapsed:
                self.progress.best_accuracy = -1.0  # a validated epoch outranks a probed one
            self._keep_best(epoch, record["val_pgd20"], "validation")
        record["collapsed"] = self.watch.collapsed
        return record

    def _keep_best(self, epoch: int, accuracy: float, by: str) -> None:
        if accuracy <= self.progress.best_accuracy:
            return
        self.progress.best_accuracy, self.progress.best_epoch, self.progress.best_by = accuracy, epoch, by
        checkpoint.save(self.folder.best, self._weights(self.judged_model, epoch))

    def _show(self, bar: tqdm, readback: Readback, steps_per_second: float) -> None:
        readback.submit(self.global_step, torch.cat([self.totals, self.apart.step_sizes[:2].double()]))
        newest = readback.poll()
        if newest is None:
            return
        step, (loss, start_loss, correct, images, alpha, alpha_omega) = newest
        self._check_loss(loss)
        values = {"loss": loss / images, "start": start_loss / images, "acc": correct / images}
        if self.apart.method.learned:
            values |= {"alpha": alpha, "alpha_omega": alpha_omega}
        rate = steps_per_second * self.config.batch_size
        left = (self.config.epochs * len(self.loader) - self.global_step) / steps_per_second
        bar.set_postfix_str(
            ", ".join(f"{name} {value:.3g}" for name, value in values.items())
            + f", {rate:,.0f} img/s, run ends in {tqdm.format_interval(left)}"
        )
        for name, value in values.items():
            self.writer.add_scalar(f"step/{name}", value, step)

    def _check_loss(self, total: float) -> None:
        if not math.isfinite(total):
            raise UserError(
                f"the loss became {total} in epoch {self.progress.epoch + 1}: lower --lr, or use bfloat16 or float32; "
                f"an earlier checkpoint in {self.folder.path} stays"
            )

    def _log_epoch(self, record: dict) -> None:
        for name, value in record.items():
            values = {f"{name}/{i}": v for i, v in enumerate(value)} if isinstance(value, list) else {name: value}
            for key, number in values.items():
                self.writer.add_scalar(f"epoch/{key}", float(number), self.global_step)  # purged with the steps
        words = [f"epoch {record['epoch']:>3}", f"loss {record['loss']:.3f}", f"acc {record['train_accuracy']:.1%}"]
        words += [f"{name} {record[name]:.4f}" for name in ("alpha", "alpha_omega") if name in record]
        words += [
            f"{label} {record[name]:.1%}"
            for name, label in (("probe_pgd10", "probe"), ("val_clean", "val clean"), ("val_pgd20", "val PGD-20"))
            if name in record
        ]
        words += [f"{record['images_per_second']:,.0f} img/s", f"{record['seconds']:.1f} s"]
        tqdm.write("  ".join(words))

    # ---- the end

    def _finish(self) -> dict:
        config, progress = self.config, self.progress
        records = self.folder.metrics()
        summary = {
            "dataset": config.dataset,
            "method": self.apart.method.name,
            "model": self.description,
            "epochs": config.epochs,
            "train_seconds": progress.seconds,
            "best": {"epoch": progress.best_epoch, "by": progress.best_by, "accuracy": progress.best_accuracy},
            "collapsed_at": self.watch.epochs,
            "final": records[-1] if records else {},
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "memory_bytes": self.apart.memory.nbytes if self.apart.memory is not None else 0,
        }
        if self.device.type == "cuda":
            summary["peak_gpu_bytes"] = self._peak_gpu_bytes()
        last = {name: value.clone() for name, value in self.judged_model.state_dict().items()}
        if config.test:
            attacks = ("clean", "pgd-20")
            # the test set is looked at here only, in float32, for the last weights and for those the validation chose
            summary["test"] = {"last": asdict(self._judge(self.test, attacks, None, progress=True))}
            if progress.best_epoch != config.epochs and self.folder.best.is_file():
                best = checkpoint.load(self.folder.best, self.device)["model"]
                self.judged_model.load_state_dict(best)
                summary["test"]["best"] = asdict(self._judge(self.test, attacks, None, progress=True))
                self.judged_model.load_state_dict(last)
            else:
                summary["test"]["best"] = summary["test"]["last"]
        self.folder.write("summary.json", summary)
        pictures.curves({self.apart.method.name: records}, self.folder.path / "curves.png")
        shown, path = subset(self.val, min(8, len(self.val))), self.folder.path / "perturbations.png"
        with _plain_model(config.compile):
            pictures.perturbations(self.judged_model, shown, self.classes, self.eval_eps, path)
        write_card(self.folder, config)
        write_report([self.folder.path], self.folder.path / "report.html")
        return summary

    def _peak_gpu_bytes(self) -> int:
        """The most that torch had allocated, also before a stop."""
        if self.device.type == "cuda":
            self.progress.peak_gpu_bytes = max(
                self.progress.peak_gpu_bytes, torch.cuda.max_memory_allocated(self.device)
            )
        return self.progress.peak_gpu_bytes

    # ---- checkpoints

    def _weights(self, model: torch.nn.Module, epoch: int) -> dict:
        return {
            "kind": "weights",
            "model": model.state_dict(),
            "description": self.description,
            "classes": self.classes,
            "dataset": self.config.dataset,
            "method": self.apart.method.name,
            "epoch": epoch,
        }

    def save(self) -> None:
        """Write the whole state to `last.pt`."""
        self._peak_gpu_bytes()
        state = {
            **self._weights(self.model, self.progress.epoch),
            "kind": "training",
            "average": None if self.average is None else self.average.model.state_dict(),
            "optimizer": self.optimizer.velocities(),
            "apart": self.apart.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "progress": asdict(self.progress),
            "watch": asdict(self.watch),
            "totals": self.totals,
            "threads": torch.get_num_threads(),
            "data": self.data_key,
            "rng": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            },
        }
        checkpoint.save(self.folder.last, state)

    def _load_state(self, state: dict) -> None:
        if state.get("kind") != "training":
            raise UserError(f"{self.folder.last} holds weights only: resume needs the last.pt of a run")
        if state["data"] != self.data_key:
            raise UserError(
                f"the training images are not those of the run in {self.folder.path}: omega belongs to its images; "
                "bring them back, or start a new run"
            )
        checkpoint.load_model(self.model, state["model"], self.folder.last)
        if (self.average is None) != (state["average"] is None):
            raise UserError(f"{self.folder.last} does not fit: --ema was {'off' if self.average else 'on'} in that run")
        if self.average is not None:
            checkpoint.load_model(self.average.model, state["average"], self.folder.last)
        self.optimizer.load_velocities(state["optimizer"])
        self.apart.load_state_dict(state["apart"])
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        self.watch = CollapseWatch(**state["watch"])
        self.totals.copy_(state["totals"])
        if self.device.type == "cpu":
            torch.set_num_threads(state["threads"])  # sums, and so the bits of the weights, depend on it
        torch.set_rng_state(state["rng"]["cpu"].cpu())
        if self.device.type == "cuda" and state["rng"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["rng"]["cuda"].cpu(), self.device)

    @contextmanager
    def _signals(self):
        """Within: SIGTERM and Ctrl-C are noted and end the run after the step or validation in hand."""

        def note(signum, _frame):
            if self._signal is not None:  # asked twice: at once
                raise KeyboardInterrupt
            self._signal = signum

        before = {signum: signal.signal(signum, note) for signum in STOP_SIGNALS}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)


def _check_last_batch(model: torch.nn.Module, num_examples: int, batch_size: int, train: Split) -> None:
    """Refuse an epoch that ends with a batch of one image, where the network's BatchNorm would need two."""
    if (num_examples - 1) % batch_size:
        return
    image = train.images[:1].to(next(model.parameters()).device).permute(0, 3, 1, 2).float() / 255
    trial = any_layout(copy.deepcopy(model), image).train()
    try:
        with torch.no_grad():
            trial(image)
    except ValueError as error:
        raise UserError(
            f"the last batch of an epoch has one image, and this network needs two ({error}): "
            f"choose a --batch-size that does not divide {num_examples - 1}"
        ) from error


def _plain_model(compiled: bool):
    """Within: a compiled model runs as it is; judging has batches of many sizes, each a compilation of its own."""
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def split_training_data(config: TrainConfig, data: Dataset) -> tuple[Split, Split]:
    """(training, validation) split of a run: the validation images are the same whatever the run's settings."""
    train, val = take_validation(data.train, config.val_images)
    return (subset(train, config.train_images) if config.train_images else train), val


def describe_model(config: TrainConfig, train: Split, classes: list[str]) -> dict:
    """Arguments of `build_model`, kept in checkpoints."""
    _, h, w, c = train.images.shape
    normalize = None
    if config.normalize:
        pixels = train.images.reshape(-1, c) / 255.0
        normalize = (pixels.mean(0).tolist(), pixels.std(0).tolist())
    return {
        "name": config.model,
        "num_classes": len(classes),
        "in_channels": c,
        "image_size": (h, w),
        "width": config.width,
        "normalize": normalize,
    }


def train(config: TrainConfig) -> tuple[dict, Path]:
    """Train as configured, or go on with `config.resume`; returns (summary, run folder). With `config.profile`:
    only measure, and return an empty summary.

    Raises:
        UserError, Stopped: see `Trainer.run`.
    """
    state = None
    config.check()
    new = config.resume is None
    if new:
        folder = RunFolder.choose(config)
    else:
        folder, saved = RunFolder.open(config.resume)
        config = config.resumed(saved)
        if folder.last.exists():  # killed before the first checkpoint: from the beginning
            state = checkpoint.load(folder.last)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    parse_eps(config.eps)
    if pick_device(config.device).type == "cpu":
        keep_freed_memory()
    data = load_dataset(config.dataset, config.data_dir, download=config.download, progress=config.progress)
    trainer = Trainer(config, folder, data, state)
    state = None  # its omega would stay in memory
    if new:
        folder.create(config)  # last: what cannot run leaves no folder
    if config.profile:
        profiling.run(trainer)
        return {}, folder.path
    return trainer.run(), folder.path
