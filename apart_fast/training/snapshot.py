"""A copy of a training state in host memory, made between two steps, so that later ones do not change it."""

from typing import Any

import torch
from torch import Tensor

from apart_fast.device import available_bytes, processes_here

_SHARE = 0.5  # of the free host memory, at most, for all processes here: the system and loaders need some too


class HostCopy:
    """Buffers for one state, kept from copy to copy: as many bytes as the state has, pinned ones up to twice as many
    (torch pins in powers of two).

    Tensors on a GPU are copied by its copy engine, on the stream of the steps: what the next step writes, it writes
    afterwards (560 MB hold it up for some 20 ms), and nothing else is needed on the GPU. The host does not wait.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._arrived: torch.cuda.Event | None = None

    def take(self, state: dict) -> dict | None:
        """Copy `state` (tensors, numbers, text, lists and dicts of them); to be read after `wait_arrived`.

        Returns:
            the copy, whose tensors the next `take` overwrites; None, with nothing copied, where the free host memory
            is less than twice what the buffers need.
        """
        tensors = dict(_tensors(state))
        new = [t for name, t in tensors.items() if not _fits(self._buffers.get(name), t)]
        if sum(map(_host_bytes, new)) > _SHARE * available_bytes() / processes_here():
            return None
        for name, tensor in tensors.items():
            if not _fits(self._buffers.get(name), tensor):
                self._buffers[name] = _buffer(tensor)
            self._buffers[name].copy_(tensor, non_blocking=tensor.is_cuda)
        on_gpu = [t for t in tensors.values() if t.is_cuda]
        if on_gpu:
            self._arrived = torch.cuda.Event(blocking=True)  # a waiting thread leaves its core to others
            self._arrived.record(torch.cuda.current_stream(on_gpu[0].device))
        return self._rebuild(state, "")

    def wait_arrived(self) -> None:
        """Any thread: wait until the copy is there."""
        if self._arrived is not None:
            self._arrived.synchronize()

    def _rebuild(self, value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            return self._buffers[name]
        if isinstance(value, dict):
            made = type(value)((key, self._rebuild(item, f"{name}.{key}")) for key, item in value.items())
            if hasattr(value, "_metadata"):  # versions of layers, in a state_dict: some load by them
                made._metadata = value._metadata  # type: ignore[attr-defined]
            return made
        if isinstance(value, list | tuple):
            return type(value)(self._rebuild(item, f"{name}.{i}") for i, item in enumerate(value))
        return value


def _tensors(value: Any, name: str = "") -> Any:
    """(name, tensor) of every tensor in nested lists and dicts."""
    if isinstance(value, Tensor):
        yield name, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in items:
        yield from _tensors(item, f"{name}.{key}")


def _fits(buffer: Tensor | None, tensor: Tensor) -> bool:
    return buffer is not None and (buffer.shape, buffer.dtype) == (tensor.shape, tensor.dtype)


def _host_bytes(tensor: Tensor) -> int:
    return 1 << (tensor.nbytes - 1).bit_length() if tensor.is_cuda and tensor.nbytes else tensor.nbytes


def _buffer(tensor: Tensor) -> Tensor:
    """Uninitialised, laid out like `tensor`: then a copy moves bytes as they lie."""
    if tensor.is_cuda:
        try:
            return torch.empty_like(tensor, device="cpu", pin_memory=True)
        except RuntimeError:  # the system pins no more: the copy holds up the host instead
            pass
    return torch.empty_like(tensor, device="cpu")
