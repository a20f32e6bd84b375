"""Inputs of kernel tests, and a Triton kernel compared with its twin on them."""

import contextlib
import copy
import math
from unittest import mock

import numpy as np
import torch

from apart_fast.kernels import KERNELS, Crops, codec

EPS = 8 / 255
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
STORES = (torch.float32, torch.float16, torch.int8)


class Problem:
    """Random images, crops and store of one step on `device`; the store is wider than the batch."""

    def __init__(self, batch, height, width, channels, padding, store=torch.float32, seed=0, device="cpu"):
        rng = np.random.default_rng(seed)
        n = batch + 3
        self.padding = padding
        images = rng.integers(0, 256, (n, height, width, channels), dtype=np.uint8)
        images[rng.random(images.shape) < 0.2] = 0
        images[rng.random(images.shape) < 0.2] = 255
        omega = np.clip(rng.standard_normal((n, height + 2 * padding, width + 2 * padding, channels)), -1, 1)
        omega[rng.random(omega.shape) < 0.1] = 0
        self.images = torch.from_numpy(images).to(device)
        rows = torch.from_numpy(rng.integers(0, n, batch)).to(device)
        indices = torch.from_numpy(rng.permutation(n)[:batch]).to(device)
        offsets = torch.from_numpy(rng.integers(0, 2 * padding + 1, (batch, 2))).to(device)
        flips = torch.from_numpy(rng.random(batch) < 0.5).to(device)
        self.crops = Crops(rows, indices, offsets, flips)
        self.store = codec.encode(torch.from_numpy(omega), store).to(device)
        self.shape = (batch, height, width, channels)
        self.rng, self.device = rng, device

    def gradient(self, dtype=torch.float32):
        """Values around 0, some exactly 0 and -0."""
        g = self.rng.standard_normal(self.shape)
        g[self.rng.random(self.shape) < 0.1] = 0
        g = torch.from_numpy(g).to(self.device, dtype)
        g.flatten()[::7] *= -0.0
        return g

    def perturbation(self, size=1.5 * EPS, dtype=torch.float32):
        """Values in [-size, size], some exactly +-EPS and 0."""
        d = torch.from_numpy(self.rng.uniform(-size, size, self.shape)).to(dtype)
        choice = torch.from_numpy(self.rng.integers(0, 8, self.shape))
        for k, value in enumerate((EPS, -EPS, 0.0)):
            d[choice == k] = value
        return d.to(self.device)

    def scalar(self, value, dtype=torch.float32):
        return torch.tensor(value, dtype=dtype, device=self.device)


def laid_out(values, layout):
    """A 4-D tensor in the given layout; "gaps" has memory between its elements."""
    if layout == "channels_last":
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "gaps":
        wide = torch.empty(*values.shape[:3], 2 * values.shape[3], dtype=values.dtype, device=values.device)
        return wide[..., ::2].copy_(values)
    return values.contiguous()


def activation(device, shape, dtype, layout, exact_in_bfloat16):
    """(values in the given layout, int8 signs), some of both 0."""
    rng = np.random.default_rng(sum(shape))
    values = rng.integers(-16, 17, shape) / 8 if exact_in_bfloat16 else rng.standard_normal(shape)
    values[rng.random(shape) < 0.1] = 0
    signs = torch.from_numpy(rng.integers(-1, 2, shape).astype(np.int8)).to(device)
    return laid_out(torch.from_numpy(values).to(device, dtype), layout), signs


@contextlib.contextmanager
def poisoned():
    """New memory holds NaN or 113, so that an element that a kernel does not write is seen."""

    def poison(make):
        def made(*args, **kwargs):
            t = make(*args, **kwargs)
            return t.fill_(math.nan if t.is_floating_point() else 113)

        return made

    with mock.patch("torch.empty", poison(torch.empty)), mock.patch("torch.empty_like", poison(torch.empty_like)):
        yield


def compare(name, *args, exact=True, **kwargs):
    """Runs the twin and the Triton kernel of `name` and compares what they return, and the tensors that they were
    given, which only update_omega may change."""
    both = []
    for call in (KERNELS[name].twin, KERNELS[name].triton_launcher):
        given_ = copy.deepcopy(args)  # keeps the strides
        with poisoned():
            out = call(*given_, **kwargs)
        inputs = [t for a in given_ for t in (vars(a).values() if isinstance(a, Crops) else [a])]
        both.append((out if isinstance(out, tuple) else (out,), [t for t in inputs if isinstance(t, torch.Tensor)]))
    (expected, expected_inputs), (got, got_inputs) = both
    assert len(got) == len(expected)
    tolerance = dict(rtol=0, atol=0) if exact else dict(rtol=1e-5, atol=1e-4)
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, equal_nan=True, check_stride=True, **tolerance)
    for a, b in zip(got_inputs, expected_inputs, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=0, atol=0)
