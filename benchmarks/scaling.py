"""Images a second of several ranks over those of one, and what of a step is communication.

    torchrun --nproc-per-node 2 -m benchmarks.scaling --out benchmarks/results/scaling/cpu-2-ranks.json

Each rank takes `--batch` images: more ranks do more work in the same time (weak scaling). In turns: rank 0 alone,
all ranks without a word to each other, all with the flat all-reduce of `apart_fast/parallel/exchange.py`, and all with
DistributedDataParallel around pass 2, which overlaps its all-reduces with that backward. On a CPU each rank has one
thread (torchrun sees to it). On GPUs steps are replayed as CUDA graphs, as in a training, but for
DDP's.

Beside it stands what `apart-fast plan` predicts of the same ranks, given three rates that are measured here: a copy on
all ranks at once, an all-reduce of one large buffer, and the arithmetic of rank 0 alone in the step that was timed.
"""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
import tyro
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from apart_fast import Apart, build_model
from apart_fast.device import keep_freed_memory
from apart_fast.errors import UserError
from apart_fast.files import atomic_write, expand_paths, to_json
from apart_fast.graphs import capture
from apart_fast.kernels import Crops
from apart_fast.measure.interleave import interleave
from apart_fast.parallel.exchange import Exchange
from apart_fast.parallel.world import world
from apart_fast.plan.counting import count_network
from apart_fast.plan.make import make_plan
from apart_fast.plan.settings import PlanConfig
from apart_fast.plan.step import ring_bytes
from apart_fast.precision import has_bfloat16
from apart_fast.runs.environment import environment
from apart_fast.step.losses import CrossEntropy
from apart_fast.step.optimizer import SGD
from apart_fast.step.ranks import Ranks
from apart_fast.training.algorithms import algorithms

BUFFER = 2**24  # numbers of a copy and of an all-reduce
ALONE, SILENT, FLAT, DDP = "rank 0 alone", "all, silent", "all, one flat all-reduce", "all, DDP around pass 2"


@dataclass
class Config:
    """Time steps of several ranks."""

    out: Path | None = None
    """JSON file for the figures. None: they are only printed."""
    width: float = 1.0
    """Factor on the channels of PreActResNet-18."""
    batch: int = 64
    """Images of a rank in a step."""
    rounds: int = 9
    """Timed rounds."""
    device: str | None = None
    """cuda or cpu. None: GPUs if there are any."""


class OverDdp(Apart):
    """Pass 2 through DistributedDataParallel, which averages the weights' gradients while they come to be."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._plain = self.loss
        self._wrapped = CrossEntropy(DistributedDataParallel(self.model, broadcast_buffers=False), self.amp)

    def _pass2(self, x: Tensor, labels: Tensor, signs):
        self.loss = self._wrapped
        try:
            return super()._pass2(x, labels, signs)
        finally:
            self.loss = self._plain


class SmallOnly:
    """An exchange of what DDP leaves: step sizes and losses."""

    def __init__(self):
        self._exchange = Exchange()

    def __call__(self, tensors, share, like=None):
        small = [t for t in tensors if t.dim() == 1 and t.numel() < 32]
        found = dict(zip(map(id, small), self._exchange(small, share), strict=True))
        return [found.get(id(t), t) for t in tensors]


def training(kind: str, config: Config, device: torch.device, rank: int, size: int):
    """A step of one kind, to call."""
    torch.manual_seed(0)
    model = build_model("preact_resnet18", 10, width=config.width).to(device).to(memory_format=torch.channels_last)
    amp = torch.bfloat16 if has_bfloat16(device) else None
    n = config.batch
    exchange = {FLAT: Exchange, DDP: SmallOnly}.get(kind, lambda: None)()
    ranks = None if exchange is None else Ranks(exchange, torch.arange(rank, n * size, size), n * size)
    apart = (OverDdp if kind == DDP else Apart)(model, n, (32, 32, 3), amp=amp, ranks=ranks)
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=2e-4)
    generator = torch.Generator().manual_seed(rank)
    images = torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=generator).to(device)
    labels, rows = torch.randint(0, 10, (n,), generator=generator).to(device), torch.arange(n, device=device)
    crops = Crops(rows, rows, torch.full((n, 2), 4, device=device), rows % 2 == 0)

    def whole() -> None:
        optimizer.zero_grad()
        apart.step_crops(images, labels, crops, n * size if ranks else None)
        optimizer.step()

    if device.type == "cuda" and kind != DDP:  # as a training does; DDP's reducer is not captured
        whole, _ = capture(whole, generators=[apart.generator])

    def step() -> None:
        dist.barrier()
        if kind != ALONE or rank == 0:
            whole()
        dist.barrier()

    return step


def rates(device: torch.device, size: int) -> tuple[float, float]:
    """Bytes a second that a copy reads and writes while all ranks copy, and that each sends in a ring all-reduce."""
    source = torch.zeros(BUFFER, device=device)
    target = torch.zeros_like(source)

    def copied() -> None:
        dist.barrier()
        target.copy_(source)

    runs = {"copy": copied, "all-reduce": lambda: dist.all_reduce(target)}
    timings = interleave(runs, rounds=9, warm_up=2, device=device)
    return 2 * source.nbytes / timings.median("copy"), ring_bytes(size, BUFFER) / timings.median("all-reduce")


def predicted(config: Config, device: torch.device, size: int, alone: float, copy: float, sent: float) -> dict:
    """What `apart-fast plan` says of these ranks.

    Args:
        alone: seconds of a step of one rank, the others idle.
        copy, sent: `rates`.
    """
    asked = PlanConfig(
        images=config.batch * size, width=config.width, batch_size=config.batch * size, gpus=size, gpus_per_host=size,
        device_kind="cpu" if device.type == "cpu" else PlanConfig.device_kind, memory_rate=copy, nvlink=sent,
    )  # fmt: skip
    network = count_network(asked)
    one = make_plan(replace(asked, images=config.batch, batch_size=config.batch, gpus=1, gpus_per_host=1), network)
    arithmetic = alone - one.step.seconds["memory"]
    if arithmetic <= 0:
        raise UserError("a step is quicker than its traffic at the copy's rate: the machine is busy, try again")
    plan = make_plan(replace(asked, flops=one.step.flops / arithmetic), network)
    return {
        "given": {"flops": plan.config.flops, "memory_rate": copy, "nvlink": sent},
        "seconds": plan.step.total,
        "images_per_second": plan.images_per_second,
        "communication": plan.step.seconds["network"] / plan.step.total,
        "bytes_sent_by_a_rank": plan.step.network,
    }


def main(config: Config) -> None:
    with world(config.device) as us:
        device = torch.device("cpu") if dist.get_backend() == "gloo" else torch.device("cuda", us.local_rank)
        if device.type == "cpu":
            keep_freed_memory()
        kinds = (ALONE, SILENT, FLAT, DDP)
        with algorithms(device, deterministic=False):  # as in training
            runs = {kind: training(kind, config, device, us.rank, us.size) for kind in kinds}
            timings = interleave(runs, rounds=config.rounds, warm_up=2, device=device)
        runs.clear()  # NCCL ends when no captured step holds a collective
        copy, sent = rates(device, us.size)
        if not us.first:
            return
        plan = predicted(config, device, us.size, timings.median(ALONE), copy, sent)
        communication = {kind: 1 - timings.ratio(SILENT, kind).median for kind in (FLAT, DDP)}
        images = {kind: config.batch * (1 if kind == ALONE else us.size) / timings.median(kind) for kind in kinds}
        found = {
            "command": f"torchrun --nproc-per-node {us.size} -m benchmarks.scaling",
            "ranks": us.size,
            "threads": torch.get_num_threads(),
            "cores": len(os.sched_getaffinity(0)),
            "batch": config.batch,
            "width": config.width,
            "images_per_second": images,
            "times_rank_0_alone": {
                kind: asdict(timings.ratio(ALONE, kind)) for kind in (SILENT, FLAT, DDP)
            },  # times the number of ranks: how many times the images
            "silent_over": {kind: asdict(timings.ratio(SILENT, kind)) for kind in (FLAT, DDP)},
            "flat_over_ddp": asdict(timings.ratio(FLAT, DDP)),
            "communication": communication,  # share of a step
            "plan": plan,
            "seconds": timings.seconds,
            "environment": environment(),
        }
        for kind, rate in images.items():
            print(f"{kind:26} {rate:8.1f} images/s, {rate / images[ALONE]:.2f} times one rank")
        print(f"communication: {communication[FLAT]:.1%} of a step (flat), {communication[DDP]:.1%} (DDP); ", end="")
        print(f"flat / DDP {timings.ratio(FLAT, DDP)}")
        print(f"apart-fast plan: {plan['images_per_second']:.1f} images/s, communication {plan['communication']:.1%}")
        if config.out is not None:
            atomic_write(config.out, to_json(found))


if __name__ == "__main__":
    main(expand_paths(tyro.cli(Config)))
