"""Which algorithms a GPU takes while a run lasts: the quickest, or those whose bits are the same each time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS reads it when it is first used
_REPEATABLE = (":4096:8", ":16:8")  # its values with which cuBLAS is deterministic

_utils: Any = torch.utils  # `deterministic` is a module there that type checkers do not see as it is


@contextmanager
def algorithms(device: torch.device, *, deterministic: bool) -> Iterator[None]:
    """Within: cuDNN times its algorithms for each new shape and keeps the quickest (in the first steps, before a CUDA
    graph is captured); `deterministic`: only algorithms with the same bits each time, where torch has them.

    Afterwards all is as it was: a process may hold several runs. On a CPU nothing changes.
    """
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    searched, repeated = cudnn.benchmark, cudnn.deterministic
    enabled, warned = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    filled, workspace = _utils.deterministic.fill_uninitialized_memory, os.environ.get(_WORKSPACE)
    try:
        cudnn.benchmark = not deterministic
        if deterministic:
            cudnn.deterministic = True
            _set_workspace()
            # warn: an operation without such an algorithm is no reason to end a run
            torch.use_deterministic_algorithms(True, warn_only=True)
            _utils.deterministic.fill_uninitialized_memory = (
                False  # nobody reads it, and each tensor would cost a launch
            )
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = searched, repeated
        if deterministic:
            torch.use_deterministic_algorithms(enabled, warn_only=warned)
            _utils.deterministic.fill_uninitialized_memory = filled
            if workspace is None:
                os.environ.pop(_WORKSPACE, None)
            else:
                os.environ[_WORKSPACE] = workspace


def _set_workspace() -> None:
    if os.environ.get(_WORKSPACE) in _REPEATABLE:
        return
    if torch.cuda.is_initialized():  # by a run before this one, or by the caller's program
        tqdm.write(
            f"note: --deterministic: CUDA is in use already, so matrix products may differ in their last bits: "
            f"start the program with {_WORKSPACE}={_REPEATABLE[0]}"
        )
    os.environ[_WORKSPACE] = _REPEATABLE[0]
