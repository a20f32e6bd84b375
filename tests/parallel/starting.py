"""Processes as torchrun starts them, and what they leave."""

import os
import socket
import subprocess
from pathlib import Path

import torch


def free_port() -> int:
    """Of this host, for a rendezvous."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_ranks(world: int, command: list[str], **options) -> list[subprocess.Popen]:
    """A process for each rank."""
    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return [
        subprocess.Popen(command, env={**os.environ, **common, "RANK": str(r), "LOCAL_RANK": str(r)}, **options)
        for r in range(world)
    ]


def same(a: object, b: object) -> bool:
    """Whether nested tensors are the same bits."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict | list):
        items = a.items() if isinstance(a, dict) else enumerate(a)
        return len(a) == len(b) and all(same(value, b[key]) for key, value in items)
    return True
