"""Launches counted in Chrome traces: made by hand, and of a real call."""

import json

import torch

from apart_fast.measure.launches import chrome_trace, count_launches


def event(name, cat, ts=0, dur=1, tid=1):
    return {"ph": "X", "name": name, "cat": cat, "ts": ts, "dur": dur, "tid": tid}


def test_launches_on_a_gpu_are_kernels_and_host_calls():
    trace = [
        event("ampere_sgemm", "kernel"),
        event("_step_kernel", "kernel"),
        event("Memcpy HtoD", "gpu_memcpy"),
        event("Memset", "gpu_memset"),
        event("pass 1", "gpu_user_annotation"),
        event("aten::mm", "cpu_op"),
        event("cudaLaunchKernel", "cuda_runtime"),
        event("cudaGraphLaunch", "cuda_runtime"),
        event("cuLaunchKernelEx", "cuda_driver"),
        event("cudaMemcpyAsync", "cuda_runtime"),
        event("cudaEventRecord", "cuda_runtime"),
        {"ph": "M", "name": "process_name"},
    ]
    assert count_launches({"traceEvents": trace}, "cuda") == {"kernels": 4, "host launches": 4}


def test_launches_on_the_cpu_are_the_outermost_operators():
    trace = [
        event("aten::conv2d", "cpu_op", 0, 10),
        event("aten::convolution", "cpu_op", 0, 9),
        event("aten::mkldnn_convolution", "cpu_op", 1, 8),
        event("aten::relu", "cpu_op", 10, 1),
        event("ReluBackward0", "cpu_op", 5, 10, tid=2),
        event("aten::threshold_backward", "cpu_op", 6, 2, tid=2),
        event("aten::mul", "cpu_op", 9, 2, tid=2),
        event("pass 1", "user_annotation", 0, 100),
    ]
    assert count_launches({"traceEvents": trace}, "cpu") == {"operator calls": 4}


def test_a_real_call_is_traced_and_counted():
    x = torch.ones(8, 8)
    trace = json.loads(chrome_trace(lambda: torch.relu(x @ x).add_(1), torch.device("cpu")))
    assert "aten::matmul" in {event.get("name") for event in trace["traceEvents"]}
    assert count_launches(trace, "cpu") == {"operator calls": 3}
