"""Settings of `apart-fast plan`; each field is a flag (docstrings are its help)."""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from apart_fast.errors import UserError
from apart_fast.plan.hardware import HARDWARE, Hardware
from apart_fast.runs.config import FAMILY
from apart_fast.step.methods import check_keeping, get_method
from apart_fast.units import check_padding, check_settings, usual_padding

if TYPE_CHECKING:
    DeviceKind = str
else:  # the flag takes the names of the table
    DeviceKind = Literal[*HARDWARE]

USUAL_HOST = 8  # GPUs at most, where --gpus-per-host does not say


@dataclass
class PlanConfig:
    """Predict what a training on many GPUs needs, what bounds it, and which flags of train.py suit it. Nothing is
    measured: all of it is counted, and divided by assumed figures of the hardware (apart_fast/plan/hardware.py), which
    flags replace.

    With b = ceil(batch size / GPUs) images of a rank in a step, W GPUs, G of them on a host, p the padding:

    omega of a rank = its examples x (H + 2p) (W + 2p) C x 4, 2 or 1 bytes (float32, float16, int8).
    Decoded images = 128 + images x H W C bytes; FFCV's file = the same in pages of 2 MiB or more, and 48 an image.
    A checkpoint = weights, buffers and momentum in float32 + omega of all ranks + 8 bytes an example.
    Arithmetic of a rank's step = b x passes x F: F is one forward, counted on the network; APART has 5 passes,
    PGD-K 3 + 2K.
    PCIe = b x H W C bytes in (none if the images lie on the GPU), b rows of omega each way if it lies outside of it.
    Network = 2 (W - 1) / W x 4 bytes a parameter that each rank sends: one ring all-reduce of the gradients.
    A step = the longest of: arithmetic + other memory traffic of the passes + network, one after the other; PCIe;
    loader; disk. Its longest part is the bound.
    """

    # ---- data
    images: int = 50_000
    """Training images."""
    image_size: int = 32
    """Height and width of an image."""
    channels: int = 3
    """Channels of an image."""
    classes: int = 10
    """Number of classes."""
    padding: int | None = None
    """Grey pixels on each side before the random crop. None: as train.py, 4 up to 32 pixels, an eighth of larger
    images."""

    # ---- training
    model: str = "preact_resnet18"
    """As --model of train.py."""
    width: float = 1.0
    """Width factor of our own models."""
    method: Annotated[str, tyro.conf.arg(help=f"{FAMILY}.")] = "apart"
    batch_size: int = 128
    """Images in a step, over all GPUs."""
    epochs: int = 30
    """Passes over the training set."""
    omega_dtype: Literal["float32", "float16", "int8"] = "float16"
    """How the remembered directions are stored."""

    # ---- devices
    gpus: int = 1
    """All GPUs; each has a process (with --device-kind cpu: each process has a core)."""
    gpus_per_host: int | None = None
    """GPUs of a host. None: as many as divide --gpus evenly, at most 8."""
    device_kind: DeviceKind = "h100"
    """Whose figures are assumed."""

    # ---- what replaces an assumed figure
    flops: float | None = None
    """Operations a second of convolutions and matrix products that last (bfloat16; cpu: float32)."""
    memory: float | None = None
    """Bytes of a GPU's memory."""
    memory_rate: float | None = None
    """Bytes a second of that memory."""
    pcie: float | None = None
    """Bytes a second each way between host and GPU."""
    nvlink: float | None = None
    """Bytes a second each way between GPUs of a host."""
    network: float | None = None
    """Bytes a second each way of a GPU's share of the network between hosts."""
    host_memory: float | None = None
    """Bytes of a host's memory."""
    disk_rate: float | None = None
    """Bytes a second of a host's disk, single images all over a file."""
    loader_rate: float | None = None
    """Bytes a second of one process's loader, images that are in memory."""

    json: bool = False
    """Print JSON instead of the page."""

    def check(self) -> None:
        """Refuse values that make no sense.

        Raises:
            UserError: one line with the flag and what it takes.
        """
        check_settings(self)
        check_keeping(get_method(self.method), self.omega_dtype, "device", self.gpus, flags=True)
        if self.padding is not None:
            check_padding("--padding", self.padding, self.image_size, self.image_size)
        if self.batch_size > self.images:
            raise UserError(f"--batch-size {self.batch_size} is larger than --images {self.images}: give at most that")
        if self.batch_size < self.gpus:
            raise UserError(
                f"--batch-size {self.batch_size} over {self.gpus} GPUs leaves some without images: give at least "
                f"{self.gpus}"
            )
        if self.gpus % self.on_a_host:
            raise UserError(
                f"--gpus {self.gpus} are no whole number of hosts with {self.on_a_host} each: give a --gpus-per-host "
                "that divides --gpus"
            )
        if self.device_kind == "cpu" and self.pcie is not None:
            raise UserError("--pcie: with --device-kind cpu there is none; leave it out")

    @property
    def on_a_host(self) -> int:
        """GPUs of a host."""
        if self.gpus_per_host is not None:
            return self.gpus_per_host
        return next(n for n in range(USUAL_HOST, 0, -1) if self.gpus % n == 0)

    @property
    def padded_size(self) -> int:
        """Height and width of an image with its padding."""
        usual = usual_padding(self.image_size, self.image_size)
        return self.image_size + 2 * (usual if self.padding is None else self.padding)

    @property
    def hosts(self) -> int:
        """Number of hosts."""
        return self.gpus // self.on_a_host

    @property
    def rank_batch(self) -> int:
        """Images in a step of the rank that has most."""
        return -(-self.batch_size // self.gpus)

    @property
    def hardware(self) -> Hardware:
        """The assumed figures, with those of the flags in their place."""
        given = {field.name: getattr(self, field.name) for field in fields(Hardware)}
        return replace(HARDWARE[self.device_kind], **{name: v for name, v in given.items() if v is not None})
