"""The Chrome trace of a call, and how often it launches something."""

import os
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from apart_fast.measure.clocks import clock_of

_ACTIVITIES = {"cpu": [ProfilerActivity.CPU], "cuda": [ProfilerActivity.CPU, ProfilerActivity.CUDA]}


def chrome_trace(call: Callable[[], object], device: torch.device) -> bytes:
    """Trace (JSON, as chrome://tracing reads it) of one call and all that it does on `device`."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports a missing GPU as an error
    with torch.profiler.profile(activities=_ACTIVITIES[device.type]) as profiler:
        call()
        clock_of(device).wait()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return path.read_bytes()


def count_launches(trace: dict[str, Any], device_type: str) -> dict[str, int]:
    """Launches in a Chrome trace.

    Args:
        trace: what JSON makes of `chrome_trace`.
        device_type: cuda or cpu.

    Returns:
        cuda: `kernels` (with copies and fills) and `host launches` (what the host had to call for them); cpu:
        `operator calls` (ATen operators called from outside of ATen).
    """
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    return _COUNTERS[device_type](events)


def _count_cuda(events: list[dict[str, Any]]) -> dict[str, int]:
    kinds = Counter(event.get("cat") for event in events)
    host = [event["name"] for event in events if event.get("cat") in ("cuda_runtime", "cuda_driver")]
    work = ("Launch", "Memcpy", "Memset")
    return {
        "kernels": sum(kinds[kind] for kind in ("kernel", "gpu_memcpy", "gpu_memset")),
        "host launches": sum(any(word in name for word in work) for name in host),
    }


def _count_cpu(events: list[dict[str, Any]]) -> dict[str, int]:
    calls = [e for e in events if e.get("cat") == "cpu_op" and e["name"].startswith("aten::")]
    calls.sort(key=lambda e: (e["tid"], e["ts"], -e["dur"]))
    outermost, thread, end = 0, None, 0.0
    for event in calls:
        if event["tid"] != thread or event["ts"] >= end:
            outermost, thread, end = outermost + 1, event["tid"], event["ts"] + event["dur"]
    return {"operator calls": outermost}


_COUNTERS = {"cpu": _count_cpu, "cuda": _count_cuda}
