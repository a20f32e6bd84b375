"""Bytes that lie somewhere: on a device, in a host's memory, on disk.

With N images of H x W x C pixels, padding p, W ranks of which G share a host, n examples of a rank, P weights:

| what                 | where  | bytes                                                                          |
|----------------------|--------|--------------------------------------------------------------------------------|
| omega of a rank      | chosen | n (H + 2p) (W + 2p) C x 4, 2 or 1 (float32, float16, int8); twice with momentum |
| decoded images       | disk   | 128 + N H W C                                                                  |
| FFCV's file          | disk   | pages of 2 MiB (of 2^k if an image needs more) that hold whole images, 24 N in  |
|                      |        | pages before them and 24 N behind them                                         |
| weights              | device | 4 P each for weights, gradients, momentum, and with W > 1 for what is reduced;  |
|                      |        | 2 P more for the bfloat16 copies of --amp, and 8 P where weights are moved     |
|                      |        | before pass 2 (AWP)                                                            |
| activations          | device | b times what pass 2 keeps of an image for its backward; on a GPU that of the    |
|                      |        | odd last batch too, whose step runs beside the captured one                    |
| images, resident     | device | n H W C                                                                        |
| copies of a          | host   | G (omega + 8 n), up to twice that where it is pinned, + 16 P for rank 0's       |
| checkpoint           |        | weights and momentum                                                           |
| a checkpoint         | disk   | 8 P + buffers + omega of all ranks, and with W > 1 8 N; there are three while   |
|                      |        | the third is being written                                                     |
"""

from dataclasses import dataclass

from apart_fast.loaders.plan import share_of
from apart_fast.plan.counting import Network
from apart_fast.plan.settings import PlanConfig
from apart_fast.step.methods import get_method

DTYPES = {"float32": 4, "float16": 2, "int8": 1}  # bytes of a value of omega
_NPY_HEADER = 128
_FFCV_PAGE, _FFCV_HEADER, _FFCV_ROW = 2**21, 24 + 3 * 1041, 24  # of its version 2: three fields
CHECKPOINTS = 3  # the last, the one before it, and one that is being written


@dataclass(frozen=True)
class Omega:
    """What is remembered, as one dtype: bytes of a rank, of the ranks of a host, of all, and of a rank's batch."""

    dtype: str
    rank: int
    host: int
    all: int
    step: int


@dataclass(frozen=True)
class Memory:
    """Bytes by what they are; `omega` has a row for each dtype, and none where the method remembers nothing.

    Attributes:
        rank_examples: of the rank that has most.
        parameters: number of them.
        weights, activations: on a device.
        rank_images, host_images: raw pixels of a rank's and a host's examples.
        image_map, beton: files.
        checkpoint: all files of one, with omega as the settings store it.
    """

    rank_examples: int
    parameters: int
    omega: list[Omega]
    weights: int
    activations: float
    rank_images: int
    host_images: int
    image_map: int
    beton: int
    checkpoint: int

    def of(self, dtype: str) -> Omega:
        """omega as `dtype`, of no bytes where nothing is remembered."""
        return next((row for row in self.omega if row.dtype == dtype), Omega(dtype, 0, 0, 0, 0))


def rank_examples(images: int, batch_size: int, gpus: int) -> int:
    """Of the rank that has most: `len(shard_positions(images, 0, gpus, batch_size))`."""
    batches, rest = divmod(images, batch_size)
    return batches * share_of(batch_size, 0, gpus) + share_of(rest, 0, gpus)


def row_values(config: PlanConfig) -> int:
    """Values that are remembered of an example."""
    return config.padded_size**2 * config.channels * get_method(config.method).maps


def image_bytes(config: PlanConfig) -> int:
    """Of one raw image."""
    return config.image_size**2 * config.channels


def beton_bytes(images: int, image: int) -> int:
    """Of FFCV's file of so many images of `image` bytes."""
    page = max(_FFCV_PAGE, 1 << (image - 1).bit_length())
    pages = -(-(_FFCV_HEADER + _FFCV_ROW * images) // page) + -(-images // (page // image))
    return page * pages + _FFCV_ROW * images


def count_memory(config: PlanConfig, network: Network) -> Memory:
    """All of it."""
    n = rank_examples(config.images, config.batch_size, config.gpus)
    on_host = min(config.images, n * config.on_a_host)
    values, image, method = row_values(config), image_bytes(config), get_method(config.method)
    omega = []
    if method.maps:
        rows = (n, on_host, config.images, config.rank_batch)
        dtypes = [dtype for dtype in DTYPES if dtype in method.omega_dtypes]
        omega = [Omega(dtype, *(count * values * DTYPES[dtype] for count in rows)) for dtype in dtypes]
    copies = 4 * (3 + (config.gpus > 1)) + 2 * (not config.hardware.on_host) + 8 * (method.weight_step > 0)
    odd = 0 if config.hardware.on_host else -(-(config.images % config.batch_size) // config.gpus)
    remembered = config.images * values * DTYPES[config.omega_dtype]
    return Memory(
        rank_examples=n,
        parameters=network.parameters,
        omega=omega,
        weights=copies * network.parameters,
        activations=(config.rank_batch + odd) * network.kept,
        rank_images=n * image,
        host_images=on_host * image,
        image_map=_NPY_HEADER + config.images * image,
        beton=beton_bytes(config.images, image),
        checkpoint=8 * network.parameters + network.buffer_bytes + remembered + 8 * config.images * (config.gpus > 1),
    )
