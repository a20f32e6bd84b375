"""The hardware that a plan assumes, of each kind of device. Nothing here was measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Hardware:
    """What one device and its host can do; a rank is one device. Bytes, and operations or bytes a second that last.

    Attributes:
        flops: of convolutions and matrix products, in bfloat16 (`cpu`: float32).
        memory: of the device.
        memory_rate: read and written there.
        pcie: between host and device, each way. 0: the device is the host.
        nvlink: between devices of a host, each way.
        network: of each device to other hosts, each way.
        host_memory: of a host.
        disk_rate: of a host, single images and rows, all over a file.
        loader_rate: of a rank's loader, images that are in the host's memory already.
    """

    flops: float
    memory: float
    memory_rate: float
    pcie: float
    nvlink: float
    network: float
    host_memory: float
    disk_rate: float
    loader_rate: float

    @property
    def on_host(self) -> bool:
        """Whether the device is the host itself."""
        return self.pcie == 0


# Data sheets (dense products) times the share that is assumed to last: of rates 0.8; of the arithmetic what lets an
# H100 reach some 100 TFLOP/s in a step (as docs/gpu.md assumes), together with the traffic of all that is no product.
# Disk: two NVMe; loader: FFCV with two threads (1.4 GB/s in benchmarks/results). cpu: a core for each rank.
_RATE = 0.8
_DISK, _LOADER = 5e9, 1.4e9
HARDWARE = {
    "h100": Hardware(
        flops=0.15 * 989e12, memory=80e9, memory_rate=_RATE * 3.35e12, pcie=_RATE * 64e9, nvlink=_RATE * 450e9,
        network=_RATE * 50e9, host_memory=2e12, disk_rate=_DISK, loader_rate=_LOADER,
    ),
    "h200": Hardware(
        flops=0.15 * 989e12, memory=141e9, memory_rate=_RATE * 4.8e12, pcie=_RATE * 64e9, nvlink=_RATE * 450e9,
        network=_RATE * 50e9, host_memory=2e12, disk_rate=_DISK, loader_rate=_LOADER,
    ),
    "a100": Hardware(
        flops=0.3 * 312e12, memory=80e9, memory_rate=_RATE * 2.04e12, pcie=_RATE * 32e9, nvlink=_RATE * 300e9,
        network=_RATE * 25e9, host_memory=1e12, disk_rate=_DISK, loader_rate=_LOADER,
    ),
    "b200": Hardware(
        flops=0.12 * 2250e12, memory=180e9, memory_rate=_RATE * 8e12, pcie=_RATE * 64e9, nvlink=_RATE * 900e9,
        network=_RATE * 50e9, host_memory=2e12, disk_rate=_DISK, loader_rate=_LOADER,
    ),
    "cpu": Hardware(
        flops=0.5 * 300e9, memory=8e9, memory_rate=_RATE * 12e9, pcie=0, nvlink=1e9,
        network=_RATE * 1.25e9, host_memory=64e9, disk_rate=1e9, loader_rate=0.7e9,
    ),
}  # fmt: skip
