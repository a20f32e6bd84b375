"""Images a second of several ranks over those of one, and what of a step is communication.

    torchrun --nproc-per-node 2 -m benchmarks.scaling --out benchmarks/results/scaling/cpu-2-ranks.json

Each rank takes `--batch` images: more ranks do more work in the same time (weak scaling). In turns: rank 0 alone,
all ranks without a word to each other, all with the flat all-reduce of `apart_fast/parallel/exchange.py`, and all with
DistributedDataParallel around pass 2, which overlaps its all-reduces with that backward. On a CPU each rank has one
thread (torchrun sees to it).
"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import tyro
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from apart_fast import Apart, build_model
from apart_fast.device import keep_freed_memory
from apart_fast.files import atomic_write, expand_paths, to_json
from apart_fast.kernels import Crops
from apart_fast.measure.interleave import interleave
from apart_fast.parallel.exchange import Exchange
from apart_fast.parallel.world import world
from apart_fast.precision import has_bfloat16
from apart_fast.runs.environment import environment
from apart_fast.step.losses import CrossEntropy
from apart_fast.step.optimizer import SGD
from apart_fast.step.ranks import Ranks

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

    def step() -> None:
        dist.barrier()
        if kind != ALONE or rank == 0:
            optimizer.zero_grad()
            apart.step_crops(images, labels, crops, n * size if ranks else None)
            optimizer.step()
        dist.barrier()

    return step


def main(config: Config) -> None:
    with world(config.device) as us:
        device = torch.device("cpu") if dist.get_backend() == "gloo" else torch.device("cuda", us.local_rank)
        if device.type == "cpu":
            keep_freed_memory()
        runs = {kind: training(kind, config, device, us.rank, us.size) for kind in (ALONE, SILENT, FLAT, DDP)}
        timings = interleave(runs, rounds=config.rounds, warm_up=2, device=device)
        if not us.first:
            return
        images = {kind: config.batch * (1 if kind == ALONE else us.size) / timings.median(kind) for kind in runs}
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
            "seconds": timings.seconds,
            "environment": environment(),
        }
        for kind, rate in images.items():
            print(f"{kind:26} {rate:8.1f} images/s, {rate / images[ALONE]:.2f} times one rank")
        print(f"communication: {1 - timings.ratio(SILENT, FLAT).median:.1%} of a step (flat), ", end="")
        print(f"{1 - timings.ratio(SILENT, DDP).median:.1%} (DDP); flat / DDP {timings.ratio(FLAT, DDP)}")
        if config.out is not None:
            atomic_write(config.out, to_json(found))


if __name__ == "__main__":
    main(expand_paths(tyro.cli(Config)))
