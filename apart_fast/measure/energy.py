"""Energy that a GPU has used, from its own counter (NVML), where it has one and the package pynvml is there."""

from typing import Any

import torch


class EnergyMeter:
    """Joules of the whole GPU, whoever uses it; `read` gives None where nothing can be measured. Never raises.

    The GPU should be idle at `start` and `read` (after a synchronisation), else work in hand is missed or counted. The
    counter moves about every 0.1 s, so spans of seconds and more are meaningful.

    Args:
        device: of torch.
    """

    def __init__(self, device: torch.device):
        self._nvml: Any = None
        self._handle: Any = None
        self._began: int | None = None
        if device.type != "cuda":
            return
        try:
            import pynvml

            pynvml.nvmlInit()
            # by its UUID: CUDA_VISIBLE_DEVICES renumbers the devices of torch, not those of NVML
            uuid = torch.cuda.get_device_properties(device).uuid
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            self._nvml = pynvml
        except Exception:  # no package, no driver, a slice of a GPU: there is nothing to measure
            pass

    def start(self) -> None:
        """Count from here."""
        self._began = self._total()

    def read(self) -> float | None:
        """Joules since the last `start`."""
        now = self._total()
        if self._began is None or now is None or now < self._began:  # the last: the driver was loaded anew
            return None
        return (now - self._began) / 1000

    def _total(self) -> int | None:
        """Millijoules since the driver was loaded."""
        if self._nvml is None:
            return None
        try:
            return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except Exception:  # not counted by this GPU, or it fell off the bus
            return None
