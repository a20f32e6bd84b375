"""Where omega and the images of a training go: the first place that has room."""

from dataclasses import dataclass
from itertools import product

from apart_fast.plan.hardware import Hardware
from apart_fast.plan.memory import Memory
from apart_fast.plan.settings import PlanConfig

FILL = 0.8  # of a memory, at most: other processes, the allocator and a backward's own need some
COPY_FILL = 0.5  # of what is free, at most, for a copy of the state (apart_fast/training/snapshot.py)
COPIED = 16  # bytes a parameter: weights and momentum in float32, pinned
PLACES, LOADERS = ("device", "host", "disk"), ("resident", "ffcv")  # in the order of preference


@dataclass(frozen=True)
class Choice:
    """What suits, and the bytes that it makes.

    Attributes:
        place: `--omega-device`; loader: `--loader`.
        fits: whether the device, and the host, have room for it.
        device, host: bytes in a device's and in a host's memory.
        copy: bytes of the copies that a host's ranks make for a checkpoint, up to.
        copies: whether there is room for them; else the training waits for each checkpoint.
        cached: whether the host's free memory holds the images that its ranks read.
    """

    place: str
    loader: str
    fits: bool
    device: float
    host: float
    copy: float
    copies: bool
    cached: bool


def rooms(config: PlanConfig, memory: Memory, dtype: str) -> dict[str, bool]:
    """For each place whether all rows of omega as `dtype` have room there, beside what else a device must hold. Of the
    disk nothing is known: it is taken to have room."""
    return {place: _choice(config, memory, place, "ffcv", dtype).fits for place in PLACES}


def choose(config: PlanConfig, memory: Memory) -> Choice:
    """The first of `PLACES` x `LOADERS` that fits; omega on disk and images read from it where none does."""
    made = [_choice(config, memory, place, loader, config.omega_dtype) for place, loader in product(PLACES, LOADERS)]
    return next((choice for choice in made if choice.fits), made[-1])


def _choice(config: PlanConfig, memory: Memory, place: str, loader: str, dtype: str) -> Choice:
    has: Hardware = config.hardware
    omega, ranks = memory.of(dtype), config.on_a_host
    device = memory.weights + memory.activations + omega.rank * (place == "device")
    host = float(omega.host * (place == "host"))
    if loader == "resident":
        device += memory.rank_images
    if has.on_host:
        host += device * ranks
    pinned = place == "device" and not has.on_host  # torch pins in powers of two
    copy = (omega.host + 8 * memory.rank_examples * ranks) * (1 + pinned) + COPIED * memory.parameters
    free = has.host_memory - host
    return Choice(
        place,
        loader,
        fits=device <= FILL * has.memory and host <= FILL * has.host_memory,
        device=device,
        host=host,
        copy=copy,
        copies=copy <= COPY_FILL * free,
        cached=loader == "resident" or memory.host_images <= FILL * (free - copy),
    )
