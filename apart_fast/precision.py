"""Which of the low precisions a device computes in hardware."""

import platform

import torch


def has_bfloat16(device: torch.device | str) -> bool:
    """Whether bfloat16 is quicker than float32 there: without instructions for it, it is emulated and slower.

    GPUs from compute capability 8.0 on, x86 CPUs with AVX512-BF16 or AMX; of other CPUs it is not known and taken
    to be so.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
