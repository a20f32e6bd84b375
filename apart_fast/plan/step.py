"""What moves in a step, how long each part of it takes, and which of them is the bound.

Of one rank, with b images of it, P weights, W ranks of which G share a host:

| part    | operations or bytes                                                          | a second            |
|---------|------------------------------------------------------------------------------|---------------------|
| compute | b x passes x F                                                               | flops               |
| memory  | b x what the passes read and write outside of convolutions and products;     | memory_rate         |
|         | 20 P for the update of the weights; 16 P to fill and scale what is reduced   |                     |
| network | 2 (W - 1) / W x 4 P that each rank sends in one ring all-reduce of gradients | nvlink on one host, |
|         |                                                                              | else the smaller of |
|         |                                                                              | nvlink, G x network |
| PCIe    | in: b H W C if the images are not resident, b rows of omega if they lie      | pcie each way: the  |
|         | outside of the device; out: b rows of omega if they lie outside              | larger of the two   |
| loader  | b H W C if the images are not resident                                       | loader_rate         |
| disk    | of a host: G b H W C if its memory does not hold them; twice G b rows of     | disk_rate           |
|         | omega if they lie on disk                                                    |                     |

compute, memory and network come one after the other (the all-reduce needs all gradients, the update the all-reduce);
PCIe, loader and disk go on beside them. A step takes as long as the longest of these four. The bound is the longest of
the three where they are it. Left out are launches, latencies, the kernels of perturbation and omega, and that few
images leave a GPU half empty: all of them make a step longer.
"""

from dataclasses import dataclass

from apart_fast.plan.choice import Choice
from apart_fast.plan.counting import Network
from apart_fast.plan.memory import Memory, image_bytes
from apart_fast.plan.settings import PlanConfig

SERIAL = ("compute", "memory", "network")
UPDATE, EXCHANGE = 20, 16  # bytes a weight: w, g, v read and w, v written; copied, scaled


@dataclass(frozen=True)
class Step:
    """A step of the rank that has most images.

    Attributes:
        flops, memory, network, pcie_in, pcie_out, loader: its operations, and bytes; disk: bytes of its host.
        network_rate: bytes a second at which the all-reduce goes on.
        seconds: of each part. total: of the step. alone: of the same batch on one GPU that holds all data.
        bound: the name of a part.
    """

    flops: float
    memory: float
    network: float
    pcie_in: float
    pcie_out: float
    loader: float
    disk: float
    network_rate: float
    seconds: dict[str, float]
    total: float
    alone: float
    bound: str


def ring_bytes(ranks: int, values: int) -> float:
    """What each rank sends in a ring all-reduce of so many float32 values."""
    return 2 * (ranks - 1) / ranks * 4 * values


def longest(seconds: dict[str, float]) -> tuple[float, str]:
    """(seconds of a step, its bound) from those of its parts."""
    serial = sum(seconds[name] for name in SERIAL)
    beside = {name: time for name, time in seconds.items() if name not in SERIAL}
    slowest = max(beside, key=lambda name: beside[name])
    if beside[slowest] > serial:
        return beside[slowest], slowest
    return serial, max(SERIAL, key=lambda name: seconds[name])


def count_step(config: PlanConfig, network: Network, memory: Memory, choice: Choice) -> Step:
    """What a step takes where omega and images lie as chosen."""
    has, b, ranks = config.hardware, config.rank_batch, config.on_a_host
    images = b * image_bytes(config) * (choice.loader != "resident")
    rows = memory.of(config.omega_dtype).step * (choice.place != "device")
    fixed = (UPDATE + EXCHANGE * (config.gpus > 1)) * network.parameters
    flops, moved = b * network.step_flops, b * network.step_traffic + fixed
    sent = ring_bytes(config.gpus, network.parameters)
    rate = has.nvlink if config.hosts == 1 else min(has.nvlink, ranks * has.network)
    on_disk = ranks * (images * (not choice.cached) + 2 * rows * (choice.place == "disk"))
    seconds = {
        "compute": flops / has.flops,
        "memory": moved / has.memory_rate,
        "network": sent / rate,
        "PCIe": 0.0 if has.on_host else max(images + rows, rows) / has.pcie,
        "loader": images / has.loader_rate,
        "disk": on_disk / has.disk_rate,
    }
    total, bound = longest(seconds)
    whole = config.batch_size
    alone = whole * network.step_flops / has.flops
    alone += (whole * network.step_traffic + UPDATE * network.parameters) / has.memory_rate
    into = 0 if has.on_host else images + rows
    return Step(
        flops, moved, sent, into, 0 if has.on_host else rows, images, on_disk, rate, seconds, total, alone, bound
    )
