"""The plain twins against naive loops, formulas and autograd."""

import math
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apart_fast import kernels
from apart_fast.kernels import codec, point
from apart_fast.kernels.problems import EPS, FLOATS, STORES, Problem, activation


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
    v, s = activation("cpu", shape, dtype, layout, False)
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


# --- storage


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
