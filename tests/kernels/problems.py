"""A Triton kernel compared with its twin, bit for bit where it holds no sum."""

import torch

from apart_fast.kernels import KERNELS
from apart_fast.kernels.problems import Call, outcome


def compare(call: Call):
    """Runs the twin and the Triton kernel and compares what they return, and the tensors that they were given, which
    only update_omega may change."""
    kernel = KERNELS[call.kernel]
    (expected, expected_inputs), (got, got_inputs) = (outcome(f, call) for f in (kernel.twin, kernel.triton_launcher))
    assert len(got) == len(expected)
    tolerance = dict(rtol=0, atol=0) if call.exact else dict(rtol=1e-5, atol=1e-4)
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, equal_nan=True, check_stride=True, **tolerance)
    for a, b in zip(got_inputs, expected_inputs, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=0, atol=0)
