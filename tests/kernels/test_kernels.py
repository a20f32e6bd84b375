"""The plain twins against naive loops and autograd, and every Triton kernel against its twin.

On a CUDA machine the kernels run compiled. Elsewhere they run in Triton's interpreter, which has to be chosen before
Triton is imported: this file, run as a script, checks all cases in a process of its own and prints what failed.
"""

import contextlib
import copy
import math
import subprocess
import sys
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreting import check, needs_triton, print_failures, run_interpreted

from apart_fast import kernels
from apart_fast.errors import UserError
from apart_fast.kernels import KERNELS, Crops, codec, point

EPS = 8 / 255
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
STORES = (torch.float32, torch.float16, torch.int8)


# --- inputs


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


# --- every Triton kernel against its twin


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


# batch, height, width, channels, padding: one tile and many, full and part tiles, odd and even
SHAPES = ((1, 1, 1, 1, 0), (2, 5, 7, 3, 2), (3, 8, 6, 1, 4), (2, 32, 32, 3, 4), (1, 33, 31, 3, 1))


def start_case(device, shape, kind):
    p = Problem(*shape, store=kind if isinstance(kind, torch.dtype) else torch.float32, device=device)
    start = {}
    if kind == "noise":
        start = {"noise": p.perturbation()}
    elif kind != "plain":
        start = dict(store=p.store, scale=p.scalar(1.7 * EPS), eps=EPS)
    compare("start", p.images, p.crops, p.padding, **start)


def learned_step_case(device, shape, dtype, d0, alpha):
    p = Problem(*shape, device=device)
    x = kernels.start(p.images, p.crops, p.padding)[0]
    g = p.gradient(dtype)
    g.flatten()[::5] = math.nan
    compare("learned_step", x, p.perturbation(EPS) if d0 else None, g, p.scalar(alpha), EPS)


def update_omega_case(device, shape, store, dtype):
    p = Problem(*shape, store=store, device=device)
    code = torch.tensor([-1, 0, 1, 3, 4, 5], dtype=torch.int8, device=device)[
        torch.from_numpy(p.rng.integers(0, 6, p.shape)).to(device)
    ]
    sizes = dict(alpha=p.scalar(0.004), alpha_omega=p.scalar(1.3 * EPS), eps=EPS)
    compare("update_omega", p.gradient(dtype), code, p.store, p.crops, padding=p.padding, **sizes, exact=False)


def update_omega_nan_case(device):
    """NaN gradients leave omega as it is and show in the gradients of the step sizes."""
    p = Problem(2, 5, 7, 3, 2, device=device)
    g = p.gradient()
    g[0] = math.nan
    code = torch.full(p.shape, 4, dtype=torch.int8, device=device)
    sizes = dict(alpha=p.scalar(0.004), alpha_omega=p.scalar(EPS), eps=EPS)
    compare("update_omega", g, code, p.store, p.crops, padding=p.padding, **sizes, exact=False)


POINT_SHAPES = ((1, 1, 1, 1), (2, 3, 5, 7), (1, 64, 8, 8), (3, 17, 9, 11))


def _activation(device, shape, dtype, layout, exact_in_bfloat16):
    rng = np.random.default_rng(sum(shape))
    values = rng.integers(-16, 17, shape) / 8 if exact_in_bfloat16 else rng.standard_normal(shape)
    values[rng.random(shape) < 0.1] = 0
    signs = torch.from_numpy(rng.integers(-1, 2, shape).astype(np.int8)).to(device)
    return laid_out(torch.from_numpy(values).to(device, dtype), layout), signs


def capture_sign_case(device, shape, dtype, layout):
    g, _ = _activation(device, shape, dtype, layout, False)
    g[..., ::3] = math.nan
    g[..., 1::3] *= -1
    compare("capture_sign", g)


def add_sign_case(device, shape, dtype, layout):
    # the interpreter truncates to bfloat16 where a GPU rounds: there, use sums that bfloat16 holds exactly
    exact_in_bfloat16 = dtype == torch.bfloat16 and device == "cpu"
    a, s = _activation(device, shape, dtype, layout, exact_in_bfloat16)
    alpha = torch.tensor(0.25 if exact_in_bfloat16 else 0.0123, device=device)
    compare("add_sign", a, s, alpha)


def sign_dot_case(device, shape, dtype, layout):
    compare("sign_dot", *_activation(device, shape, dtype, layout, False), exact=False)


def projected_step_case(device, shape, dtype, bound):
    p = Problem(*shape, device=device)
    x = kernels.start(p.images, p.crops, p.padding)[0]
    g = p.gradient(dtype)
    g.flatten()[::5] = math.nan
    compare("projected_step", x, (x + p.perturbation()).clamp(0, 1), g, 2 / 255, bound)


def far_case(device):
    """Images and store of more than 2**31 elements; on a CPU the memory is reserved and only the last rows touched."""
    p = Problem(2, 32, 32, 3, 2, store=torch.int8, device=device)
    first = torch.arange(2, device=device)
    images = torch.empty(2**31 // (32 * 32 * 3) + 9, 32, 32, 3, dtype=torch.uint8, device=device)
    store = torch.empty(2**31 // (36 * 36 * 3) + 9, 36, 36, 3, dtype=torch.int8, device=device)
    rows, indices = images.shape[0] - 1 - first, store.shape[0] - 1 - first
    images[rows], store[indices] = p.images[:2], p.store[:2]
    far, near = (replace(p.crops, rows=r, indices=i) for r, i in ((rows, indices), (first, first)))
    start = dict(scale=p.scalar(EPS), eps=EPS)
    got = KERNELS["start"].triton_launcher(images, far, 2, store=store, **start)
    expected = kernels.start(p.images, near, 2, store=p.store, **start)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    sizes = dict(padding=2, alpha=p.scalar(0.004), alpha_omega=p.scalar(EPS), eps=EPS)
    code, g = torch.full(p.shape, 5, dtype=torch.int8, device=device), p.gradient()
    KERNELS["update_omega"].triton_launcher(g, code, store, far, **sizes)
    kernels.update_omega(g, code, p.store, near, **sizes)
    assert torch.equal(store[indices], p.store[:2])


def _cases():
    """(function, arguments) of every comparison; pairs of choices rather than all combinations."""
    for i, shape in enumerate(SHAPES):
        for kind in ("plain", "noise", *STORES):
            yield start_case, (shape, kind)
        for k, dtype in enumerate(FLOATS):
            yield learned_step_case, (shape, dtype, (i + k) % 2 == 0, EPS if k == 0 else 0.6 * EPS)
            yield update_omega_case, (shape, STORES[k], FLOATS[(i + k) % 3])
            yield projected_step_case, (shape, dtype, (EPS, math.inf)[(i + k) % 2])
    for i, shape in enumerate(POINT_SHAPES):
        for k, dtype in enumerate(FLOATS):
            layout = ("contiguous", "channels_last", "gaps")[(i + k) % 3]
            for case in (capture_sign_case, add_sign_case, sign_dot_case):
                yield case, (shape, dtype, layout)
    yield update_omega_nan_case, ()
    yield far_case, ()


def _name(case, args):
    words = [str(a).replace("torch.", "").replace(", ", "x").strip("()") for a in args]
    return " ".join([case.__name__.removesuffix("_case"), *words])


CASES = {_name(case, args): (case, args) for case, args in _cases()}


@pytest.fixture(scope="module")
def interpreted():
    return run_interpreted(__file__)


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_triton_kernel_equals_twin(name, request):
    check(CASES, name, request)


# --- the twins against naive loops


def naive_crop(padded, offset, flip, height, width):
    top, left = (int(v) for v in offset)
    view = padded[top : top + height, left : left + width]
    return view[:, ::-1] if flip else view


def naive_pixels(p):
    """Pad, crop and flip image by image, in float64."""
    _, height, width, _ = p.shape
    pad = ((p.padding,) * 2, (p.padding,) * 2, (0, 0))
    out = []
    for row, offset, flip in zip(p.crops.rows, p.crops.offsets, p.crops.flips, strict=True):
        image = np.pad(p.images[row].numpy() / 255, pad, constant_values=0.5)
        out.append(naive_crop(image, offset, flip, height, width))
    return np.stack(out)


def naive_omega(p):
    _, height, width, _ = p.shape
    stored = p.store.double().numpy() / (127 if p.store.dtype == torch.int8 else 1)
    crops = zip(p.crops.indices, p.crops.offsets, p.crops.flips, strict=True)
    return np.stack([naive_crop(stored[i], offset, flip, height, width) for i, offset, flip in crops])


problems = st.builds(
    Problem,
    batch=st.integers(1, 4),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.sampled_from((1, 3)),
    padding=st.integers(0, 4),
    store=st.sampled_from((*STORES, torch.float64)),
    seed=st.integers(0, 2**32),
)


@settings(max_examples=40, deadline=None)
@given(problems)
def test_start_twin_equals_naive_loop(p):
    pixels, omega = naive_pixels(p), naive_omega(p)
    call = (p.images, p.crops, p.padding)
    x, d0, x0 = kernels.start(*call, dtype=torch.float64)
    assert d0 is None and x0 is x
    np.testing.assert_array_equal(x, pixels)

    noise = p.perturbation(dtype=torch.float64)
    x, d0, x0 = kernels.start(*call, dtype=torch.float64, noise=noise)
    np.testing.assert_array_equal(d0, noise)
    np.testing.assert_array_equal(x0, np.clip(pixels + noise.numpy(), 0, 1))

    scale = p.scalar(1.7 * EPS, torch.float64)
    memory = dict(store=p.store, scale=scale, eps=EPS)
    x, d0, x0 = kernels.start(*call, dtype=torch.float64, **memory)
    np.testing.assert_array_equal(d0, np.clip(1.7 * EPS * omega, -EPS, EPS))
    np.testing.assert_array_equal(x0, np.clip(pixels + d0.numpy(), 0, 1))


@settings(max_examples=40, deadline=None)
@given(problems)
def test_update_omega_twin_equals_naive_loop(p):
    g, omega, before = p.gradient(torch.float64), naive_omega(p), p.store.clone()
    code = torch.from_numpy(p.rng.choice([-1, 0, 1, 3, 4, 5], p.shape)).to(torch.int8)
    s0, m = (code.numpy() + 1) % 4 - 1, code.numpy() > 2
    alpha, alpha_omega = 0.004, 1.3 * EPS
    sizes = dict(alpha=p.scalar(alpha, torch.float64), alpha_omega=p.scalar(alpha_omega, torch.float64), eps=EPS)
    grads = kernels.update_omega(g, code, p.store, p.crops, padding=p.padding, **sizes)

    assert grads.dtype == torch.float64
    expected = (g.numpy() * m * s0).sum(), (g.numpy() * m * (abs(alpha_omega * omega) <= EPS) * omega).sum()
    np.testing.assert_allclose(grads, expected, rtol=1e-12, atol=1e-12)

    new = np.clip(omega + alpha / (alpha_omega + 1e-7) * np.sign(g.numpy()), -1, 1)
    expected = before.numpy().copy()
    positions = (p.crops.indices, p.crops.offsets.tolist(), p.crops.flips)
    for k, (i, (top, left), flip) in enumerate(zip(*positions, strict=True)):
        value = new[k, :, ::-1] if flip else new[k]
        value = np.rint(value * 127) if before.dtype == torch.int8 else value
        expected[i, top : top + value.shape[0], left : left + value.shape[1]] = value.astype(expected.dtype)
    # the border of the crop and the other rows must be untouched, to the bit
    np.testing.assert_array_equal(p.store, expected)


@settings(max_examples=40, deadline=None)
@given(problems, st.sampled_from((torch.float32, torch.float64)), st.booleans())
def test_learned_step_twin_equals_naive_formula(p, dtype, with_d0):
    x = kernels.start(p.images, p.crops, p.padding, dtype=dtype)[0]
    d0 = p.perturbation(EPS, dtype) if with_d0 else None
    g = p.gradient(dtype)
    alpha, eps = p.scalar(0.6 * EPS, dtype), torch.tensor(EPS, dtype=dtype).numpy()
    x1, code = kernels.learned_step(x, d0, g, alpha, EPS)

    s0 = np.sign(g.numpy())
    pre = alpha.numpy() * s0 + (0 if d0 is None else d0.numpy())
    moved = x.numpy() + np.clip(pre, -eps, eps)
    m = (abs(pre) <= eps) & (moved >= 0) & (moved <= 1)
    np.testing.assert_array_equal(x1, np.clip(moved, 0, 1))
    np.testing.assert_array_equal(code, s0 + 4 * m)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_learned_step_counts_ties_as_inside(dtype):
    eps = 1 / 32
    x = torch.tensor([0.0, eps, 0.5, 1 - eps, 1.0, 0.0, 1.0], dtype=dtype).view(1, 1, 7, 1)
    g = torch.tensor([0.0, -1, 1, 1, 0, -1, math.nan], dtype=dtype).view(1, 1, 7, 1)
    x1, code = kernels.learned_step(x, None, g, torch.tensor(eps, dtype=dtype), eps)
    assert x1.flatten().tolist() == [0, 0, 0.5 + eps, 1, 1, 0, 1]
    assert code.flatten().tolist() == [4, 3, 5, 5, 4, -1, 4]
    # alpha one bit above eps is outside
    above = torch.tensor(eps, dtype=dtype).nextafter(torch.tensor(1.0, dtype=dtype))
    assert kernels.learned_step(x, None, g, above, eps)[1].flatten().tolist() == [4, -1, 1, 1, 4, -1, 4]


def test_step_size_equal_to_eps_is_a_tie_in_float32():
    """8/255 is not a float32: it must be rounded before it is compared, or FGSM's gradient for alpha is 0."""
    x = torch.full((1, 2, 2, 1), 0.5)
    code = kernels.learned_step(x, None, torch.ones_like(x), torch.tensor(EPS), EPS)[1]
    assert (code == 5).all()


@pytest.mark.parametrize("store", [torch.float64, torch.int8])
def test_gradients_of_the_step_sizes_equal_autograd(store):
    """Random smooth loss of x1; both clamps, both masks and the crop are active, no element lies on a bound."""
    p = Problem(4, 8, 6, 3, 2, store=store)
    p.store[p.store == 0] = 1
    alpha, alpha_omega = (p.scalar(v * EPS, torch.float64).requires_grad_() for v in (0.7, 1.6))
    slope = p.rng.standard_normal(p.shape)
    g0, weight = p.gradient(torch.float64), torch.from_numpy(slope)
    g0[g0 == 0] = 1

    omega, x = torch.from_numpy(naive_omega(p)), torch.from_numpy(naive_pixels(p))
    d0 = (alpha_omega * omega).clamp(-EPS, EPS)
    x1 = (x + (d0 + alpha * g0.sign()).clamp(-EPS, EPS)).clamp(0, 1)
    x1.retain_grad()
    (torch.sin(3 * x1) * weight).sum().backward()

    call = (p.images, p.crops, p.padding)
    memory = dict(store=p.store, scale=alpha_omega, eps=EPS)
    got_x, got_d0, _ = kernels.start(*call, dtype=torch.float64, **memory)
    got_x1, code = kernels.learned_step(got_x, got_d0, g0, alpha, EPS)
    torch.testing.assert_close(got_x1, x1)
    sizes = dict(alpha=alpha, alpha_omega=alpha_omega, eps=EPS)
    grads = kernels.update_omega(x1.grad, code, p.store, p.crops, padding=p.padding, **sizes)
    assert 0 < (code > 2).double().mean() < 1 and (alpha_omega * omega).abs().max() > EPS
    torch.testing.assert_close(grads, torch.stack((alpha.grad, alpha_omega.grad)), rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(*[st.integers(1, 5)] * 4),
    st.sampled_from((*FLOATS, torch.float64)),
    st.sampled_from(("contiguous", "channels_last", "gaps")),
    st.sampled_from((1, 7, 1 << 20)),
)
def test_block_point_twins_equal_naive_formulas(shape, dtype, layout, chunk):
    v, s = _activation("cpu", shape, dtype, layout, False)
    v[..., ::2] = math.nan
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    with mock.patch.object(point, "CHUNK", chunk):
        signs = kernels.capture_sign(v)
        assert signs.dtype == torch.int8
        assert torch.equal(signs, (v > 0).to(torch.int8) - (v < 0).to(torch.int8))

        alpha = torch.tensor(0.0123, dtype=wide)
        got = kernels.add_sign(v, s, alpha)
        torch.testing.assert_close(got, (v.to(wide) + alpha * s).to(dtype), rtol=0, atol=0, equal_nan=True)

        v = torch.nan_to_num(v, nan=0.5)
        dot = kernels.sign_dot(v, s)
        assert dot.dtype == wide and dot.shape == ()
        torch.testing.assert_close(dot.double(), (v.double() * s).sum(), rtol=1e-5, atol=1e-5)
    if layout != "gaps":
        assert signs.stride() == got.stride() == v.stride()


def test_sign_dot_of_many_half_precision_values():
    """bfloat16 sums of millions of values must not be accumulated in bfloat16."""
    grad = torch.full((3, 1 << 20), 0.1, dtype=torch.bfloat16)
    expected = grad[0, 0].item() * grad.numel()
    assert kernels.sign_dot(grad, torch.ones_like(grad, dtype=torch.int8)).item() == pytest.approx(expected, rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(problems, st.sampled_from(FLOATS), st.sampled_from((EPS, 0.0, math.inf)), st.booleans())
def test_projected_step_twin_equals_naive_formula(p, dtype, bound, channels_first):
    x = kernels.start(p.images, p.crops, p.padding)[0]
    xk, g = (x + p.perturbation()).clamp(0, 1), p.gradient(dtype)
    g.flatten()[::4] = math.nan
    step, limit = np.float32(2 / 255), np.float32(bound)
    moved = xk.numpy() + step * np.nan_to_num(np.sign(g.float().numpy()))
    expected = np.clip(np.clip(moved, x.numpy() - limit, x.numpy() + limit), 0, 1)
    if channels_first:
        x, xk, g, expected = (
            x.permute(0, 3, 1, 2),
            xk.permute(0, 3, 1, 2),
            g.permute(0, 3, 1, 2),
            expected.transpose(0, 3, 1, 2),
        )
    np.testing.assert_array_equal(kernels.projected_step(x, xk.contiguous(), g, 2 / 255, bound), expected)


# --- storage and bad input


def test_every_pixel_and_stored_number_decodes_to_the_correctly_rounded_quotient():
    pixels, stored = torch.arange(256).to(torch.uint8), torch.arange(-127, 128).to(torch.int8)
    expected = (
        np.arange(256, dtype=np.float32) / np.float32(255),
        np.arange(-127, 128).astype(np.float32) / np.float32(127),
    )
    np.testing.assert_array_equal(codec.decode(pixels, torch.float32), expected[0])
    np.testing.assert_array_equal(codec.decode(stored, torch.float32), expected[1])
    assert torch.equal(codec.encode(codec.decode(stored, torch.float32), torch.int8), stored)


def test_int8_rounds_half_to_even():
    halves = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 126.5], dtype=torch.float64) / 127
    assert codec.encode(halves, torch.int8).tolist() == [0, 2, 2, 0, -2, 126]


def bad_calls():
    p = Problem(2, 4, 4, 3, 1)
    x = torch.zeros(p.shape)
    code = torch.zeros(p.shape, dtype=torch.int8)
    start = (p.crops, p.padding)
    memory = dict(store=p.store, scale=p.scalar(0.1), eps=EPS)
    sizes = dict(padding=p.padding, alpha=p.scalar(0.1), alpha_omega=p.scalar(0.1), eps=EPS)
    return {
        "float images": lambda: kernels.start(p.images.float(), *start),
        "half inputs": lambda: kernels.start(p.images, *start, dtype=torch.bfloat16),
        "noise and store": lambda: kernels.start(p.images, *start, noise=x, **memory),
        "store without scale": lambda: kernels.start(p.images, *start, store=p.store),
        "bfloat16 store": lambda: kernels.start(p.images, *start, **{**memory, "store": p.store.bfloat16()}),
        "unpadded store": lambda: kernels.start(p.images, *start, **{**memory, "store": p.store[:, 1:-1, 1:-1]}),
        "store without indices": lambda: kernels.start(p.images, replace(p.crops, indices=None), p.padding, **memory),
        "half x": lambda: kernels.learned_step(x.half(), None, x, p.scalar(0.1), EPS),
        "other shape": lambda: kernels.learned_step(x, None, x[:1], p.scalar(0.1), EPS),
        "float code": lambda: kernels.update_omega(x, x, p.store, p.crops, **sizes),
        "store of other padding": lambda: kernels.update_omega(x, code, p.store[:, 1:].contiguous(), p.crops, **sizes),
        "half attack": lambda: kernels.projected_step(x.half(), x.half(), x, 0.1, 0.1),
    }


@pytest.mark.parametrize("name", bad_calls())
def test_bad_input_is_one_line_of_user_error(name):
    with pytest.raises(UserError) as error:
        bad_calls()[name]()
    assert "\n" not in str(error.value)


def test_crops_without_memory_lead_to_no_row_of_omega():
    p = Problem(2, 4, 4, 3, 1)
    crops = replace(p.crops, indices=None)
    assert len(crops) == 2 and kernels.start(p.images, crops, p.padding)[0].shape == p.shape
    g, code = torch.zeros(p.shape), torch.zeros(p.shape, dtype=torch.int8)
    sizes = dict(padding=p.padding, alpha=p.scalar(0.1), alpha_omega=p.scalar(0.1), eps=EPS)
    for call in (
        lambda: kernels.update_omega(g, code, p.store, crops, **sizes),
        lambda: kernels.scatter_crop(p.store, g, crops),
    ):
        with pytest.raises(ValueError, match="no indices"):
            call()


@pytest.mark.parametrize(("old", "new"), [("step", "learned_step"), ("finish", "update_omega")])
def test_former_names_lead_to_the_kernels(old, new):
    with pytest.warns(DeprecationWarning, match=f"is now apart_fast.kernels.{new}"):
        assert getattr(kernels, old) is getattr(kernels, new)
    with pytest.raises(AttributeError, match="no attribute 'steps'"):
        kernels.steps  # noqa: B018


def test_inputs_that_require_gradients_are_accepted_outside_autograd():
    a = torch.randn(2, 3, 4, 5, requires_grad=True)
    s = kernels.capture_sign(a)
    assert not kernels.add_sign(a, s, torch.tensor(0.1)).requires_grad
    assert not kernels.sign_dot(a, s).requires_grad


def test_twins_work_where_triton_is_missing():
    """As on macOS: the import fails there, so it is made to fail here."""
    script = """
import sys
sys.modules["triton"] = None
import torch
from apart_fast import kernels
from apart_fast.kernels import aot, launch
assert not launch.HAS_TRITON
print(kernels.capture_sign(torch.tensor([-2.0, 0.0, 3.0])).tolist())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[-1, 0, 1]", done.stderr[-4000:]


if __name__ == "__main__":
    print_failures(CASES)
