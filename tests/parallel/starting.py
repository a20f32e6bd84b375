"""Processes as torchrun starts them."""

import os
import socket
import subprocess
from pathlib import Path


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
