"""What a run trains with, built from its settings and its data."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from apart_fast import kernels
from apart_fast.device import pick_device
from apart_fast.errors import UserError
from apart_fast.kernels.verify import replace_wrong_kernels
from apart_fast.loaders import Dataset, Loader, Split, fingerprint, make_loader, subset, take_validation
from apart_fast.loaders.datasets.statistics import channel_statistics
from apart_fast.loaders.plan import share_of
from apart_fast.models import build_model
from apart_fast.models.channels_last import any_layout
from apart_fast.models.size import refuse_too_large
from apart_fast.parallel.agreement import FLAGS
from apart_fast.parallel.exchange import Exchange
from apart_fast.parallel.world import World
from apart_fast.precision import has_bfloat16
from apart_fast.runs import unused
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.folder import RunFolder
from apart_fast.step.apart import Apart
from apart_fast.step.optimizer import SGD
from apart_fast.step.ranks import Ranks
from apart_fast.step.schedules import Schedule, Times, make_schedule, peak_eta
from apart_fast.training.average import WeightAverage
from apart_fast.training.start import find_start, start_from, take_step_sizes
from apart_fast.units import TO_32, usual_padding

AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Splits:
    """Images of a run: what it trains on, validates on, probes for collapse (None: no probe) and is tested on."""

    train: Split
    val: Split
    probe: Split | None
    test: Split


@dataclass(frozen=True)
class Parts:
    """What a run trains with.

    Attributes:
        description: arguments of `build_model`, kept in checkpoints.
        data_key: fingerprint of the training images: omega belongs to them.
        scaler: of the loss, for float16, else None.
        exchange: of gradients between the ranks, or None.
        average: of the weights, or None.
        updates: of the weights in an epoch: its steps, fewer with --grad-accum.
        schedule: of learning rates and momentum, over updates.
        eta: peak learning rate of the step sizes.
    """

    device: torch.device
    splits: Splits
    data_key: str
    description: dict
    model: nn.Module
    loader: Loader
    apart: Apart
    optimizer: SGD
    scaler: torch.amp.GradScaler | None
    average: WeightAverage | None
    exchange: Exchange | None
    updates: int
    schedule: Schedule
    eta: float

    @property
    def judged_model(self) -> nn.Module:
        """The averaged weights where there are any, else the weights."""
        return self.model if self.average is None else self.average.model


def build(config: TrainConfig, folder: RunFolder, data: Dataset, us: World, *, fresh: bool = True) -> Parts:
    """Everything of a new run at its start; sets torch's seed.

    Args:
        fresh: the weights are the first ones: `--init-from` counts; else others are loaded over them.
        us: this process among those of the training, each of which has a part of the images.

    Raises:
        UserError: bad settings or data (one line says what to do).
    """
    device = pick_device(us.device(config.device))
    kernels.use(config.kernels, device)
    if device.type == "cuda":
        replace_wrong_kernels(device, tqdm.write)
    amp = AMP_DTYPES[config.amp_dtype] if config.amp else None
    if amp == torch.bfloat16 and not has_bfloat16(device):
        tqdm.write(f"note: this {device.type.upper()} emulates bfloat16: the run is quicker without --amp")
    splits = split(config, data)
    data_key = fingerprint(data.train)
    torch.manual_seed(config.seed)
    description = describe_model(config, splits.train, data.classes)
    model = build_model(**description)
    origin = None
    if fresh and config.init_from is not None:
        with us.first_alone("init"):  # what is fetched is fetched once
            origin = find_start(config.init_from, config.model, description["in_channels"], description["image_size"])
        start_from(model, origin, data.classes)
    model = model.to(device).to(memory_format=torch.channels_last)
    if device.type == "cpu":  # gradients and momentum, the average, sums
        copies = 2 + (config.ema > 0) + (config.grad_accum > 1)
        refuse_too_large(copies * sum(p.nbytes for p in model.parameters()), f"a training of {config.model}")
    if config.sync_bn:
        model = synchronised(model, device, us)
    usual = usual_padding(*splits.train.shape[1:3])
    padding = usual if config.padding is None else config.padding
    if config.padding is None and usual > TO_32 and us.first:
        tqdm.write(f"note: crops move by up to {usual} pixels, an eighth of the images' side; --padding changes it")
    if config.flip is None and data.flip and set(data.classes) == set("0123456789") and us.first:
        tqdm.write(
            "note: the classes are called 0 to 9: if they are digits, give --flip False (mirrored ones are others)"
        )
    with us.first_alone("loader"):  # FFCV's file is written once
        loader = make_loader(
            config.loader_kind,
            splits.train,
            batch_size=config.batch_size,
            seed=config.seed,
            device=device,
            padding=padding,
            flip=data.flip if config.flip is None else config.flip,
            rank=us.rank,
            world_size=us.size,
            workers=config.workers,
            progress=config.progress,
        )
    check_last_batch(model, config.batch_size, splits.train, us)
    scaler = torch.amp.GradScaler(device.type) if amp == torch.float16 else None
    updates = -(-len(loader) // config.grad_accum)
    times = Times(updates, config.epochs, config.cycle, config.milestones)
    schedule = make_schedule(config.schedule, times, config.schedule_by_epoch)
    eta = peak_eta(config.eta, schedule)
    exchange = us.exchange(FLAGS)
    ranks = None
    if exchange is not None:
        ranks = Ranks(exchange, torch.from_numpy(loader.shard), len(splits.train))
        torch.manual_seed(config.seed + us.rank)  # dropout of its own on each rank, of a network that is the same
    apart = Apart(
        model,
        loader.num_examples,
        splits.train.shape[1:],
        padding=padding,
        eps=config.eps,
        method=config.method,
        points=config.points,
        amp=amp,
        scaler=scaler,
        label_smoothing=config.label_smoothing,
        eta=eta,
        decay=config.step_decay,
        omega_dtype=getattr(torch, config.omega_dtype),
        omega_device=config.omega_device,
        omega_folder=folder.path,
        seed=config.seed,
        ranks=ranks,
    )
    if us.first and fresh:
        for line in unused.lines(config):
            tqdm.write(line)
    if origin is not None:
        take_step_sizes(apart, origin)
    optimizer = SGD(model.parameters(), lr=config.lr, momentum=0.9, weight_decay=config.weight_decay)
    average = WeightAverage(model, config.ema) if config.ema else None
    if average is not None:
        average.follow(optimizer)
    return Parts(
        device=device,
        splits=splits,
        data_key=data_key,
        description=description,
        model=model,
        loader=loader,
        apart=apart,
        optimizer=optimizer,
        scaler=scaler,
        average=average,
        exchange=exchange,
        updates=updates,
        schedule=schedule,
        eta=eta,
    )


def split(config: TrainConfig, data: Dataset) -> Splits:
    """The images of a run; those of validation are the same whatever its other settings."""
    train, val = take_validation(data.train, config.val_images)
    return Splits(
        train=subset(train, config.train_images) if config.train_images else train,
        val=val,
        probe=subset(val, min(config.probe_images, len(val))) if config.probe_images else None,
        test=subset(data.test, config.test_images) if config.test_images else data.test,
    )


def describe_model(config: TrainConfig, train: Split, classes: list[str]) -> dict:
    """Arguments of `build_model` for the network of a run."""
    _, h, w, c = train.shape
    normalize = channel_statistics(train) if config.normalize else None
    return {
        "name": config.model,
        "num_classes": len(classes),
        "in_channels": c,
        "image_size": (h, w),
        "width": config.width,
        "normalize": normalize,
    }


def synchronised(model: nn.Module, device: torch.device, us: World) -> nn.Module:
    """The model with BatchNorm layers that take the statistics of all ranks' images.

    Raises:
        UserError: on a CPU, where torch has none.
    """
    if device.type != "cuda":
        raise UserError("--sync-bn needs GPUs: leave it out, and each process takes its own statistics")
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if us.size > 1 else model


def check_last_batch(model: nn.Module, batch_size: int, train: Split, us: World) -> None:
    """Refuse an epoch with a batch of one image, where the network's BatchNorm would need two, and one that leaves a
    process without images for whose statistics the others would wait.

    Raises:
        UserError: it has one.
    """
    last = len(train) % batch_size
    if 0 < last < us.size and any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        raise UserError(
            f"--sync-bn needs an image for each of {us.size} processes in each step, and the last of an epoch has "
            f"{last}: choose another --batch-size"
        )
    parts = [share_of(images, rank, us.size) for images in (batch_size, last) for rank in range(us.size)]
    if 1 not in parts:
        return
    image = train.take(np.arange(1)).images.to(next(model.parameters()).device).permute(0, 3, 1, 2).float() / 255
    trial = any_layout(copy.deepcopy(model), image).train()
    try:
        with torch.no_grad():
            trial(image)
    except ValueError as error:
        alone = f"does not divide {len(train) - 1}" if us.size == 1 else f"leaves no process of {us.size} one image"
        raise UserError(
            f"the last batch of an epoch has one image, and this network needs two ({error}): "
            f"choose a --batch-size that {alone}, of {len(train)}"
        ) from error
