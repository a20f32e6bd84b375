"""Calls of every kernel on which it must agree with its twin: full and part tiles, odd sizes, gaps, NaN, zeros.

For the tests and for `verify.py`. `CALLS` has a builder for each kernel of `KERNELS`, `example_arguments` some of each.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from apart_fast.kernels import codec
from apart_fast.kernels.crop import Crops
from apart_fast.kernels.start import start_torch
from apart_fast.kernels.update import BLOCK

EPS = 8 / 255
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
STORES = (torch.float32, torch.float16, torch.int8)
LAYOUTS = ("contiguous", "channels_last", "gaps")
EDGES = (0.0, -0.0, math.nan, math.inf, -math.inf)
# batch, height, width, channels, padding: one tile and many, full and part tiles, odd and even
SHAPES = ((1, 1, 1, 1, 0), (2, 5, 7, 3, 2), (3, 8, 6, 1, 4), (2, 32, 32, 3, 4), (1, 33, 31, 3, 1))
POINT_SHAPES = ((1, 1, 1, 1), (2, 3, 5, 7), (1, 64, 8, 8), (3, 17, 9, 11))
MIXES = (*((layout,) * 3 for layout in LAYOUTS), LAYOUTS, LAYOUTS[::-1])
# of the tensors of an update: none, one, part, whole and several blocks of numbers
SIZES = ((1,), (BLOCK - 1,), (BLOCK,), (BLOCK + 1,), (0,), (3, 5, 7), (8, 4, 3, 3), (2 * BLOCK + 5,))
_SGD = dict(lr=0.3, momentum=0.9)
UPDATES: dict[str, dict[str, Any]] = {  # settings of an update; with a rate there are averages
    "plain": _SGD,
    "decay": dict(**_SGD, weight_decay=0.02),
    "ascent": dict(**_SGD, weight_decay=1.5, maximize=True),
    "scaled": dict(**_SGD, weight_decay=0.02, scale=1024.0, found_inf=0.0),
    "unscaled before": dict(**_SGD, found_inf=0.0),
    "overflow": dict(**_SGD, weight_decay=0.02, scale=1024.0, found_inf=1.0),
    "two overflows": dict(**_SGD, scale=1024.0, found_inf=2.0, maximize=True),
    "average": dict(**_SGD, weight_decay=0.02, rate=0.125),
    "all": dict(**_SGD, weight_decay=0.02, scale=2.0**16, found_inf=0.0, rate=0.001),
    "overflow and average": dict(**_SGD, scale=2.0**16, found_inf=1.0, rate=0.25),
}

Shape = tuple[int, ...]
Device = torch.device | str


class Call(NamedTuple):
    """A kernel of `KERNELS` and what it is called with; `exact`: no sums in it, so that all bits are to agree."""

    kernel: str
    args: tuple
    options: dict[str, Any]
    exact: bool = True


class Problem:
    """Random images, crops and store of one step on `device`; the store is wider than the batch."""

    def __init__(
        self,
        batch: int,
        height: int,
        width: int,
        channels: int,
        padding: int,
        *,
        store: torch.dtype = torch.float32,
        seed: int = 0,
        device: Device = "cpu",
    ):
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

    def gradient(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Values around 0, some exactly 0 and -0."""
        values = self.rng.standard_normal(self.shape)
        values[self.rng.random(self.shape) < 0.1] = 0
        g = torch.from_numpy(values).to(self.device, dtype)
        g.flatten()[::7] *= -0.0
        return g

    def perturbation(self, size: float = 1.5 * EPS, dtype: torch.dtype = torch.float32) -> Tensor:
        """Values in [-size, size], some exactly +-EPS and 0."""
        d = torch.from_numpy(self.rng.uniform(-size, size, self.shape)).to(dtype)
        choice = torch.from_numpy(self.rng.integers(0, 8, self.shape))
        for k, value in enumerate((EPS, -EPS, 0.0)):
            d[choice == k] = value
        return d.to(self.device)

    def scalar(self, value: float, dtype: torch.dtype = torch.float32) -> Tensor:
        """0-dim."""
        return torch.tensor(value, dtype=dtype, device=self.device)

    def pixels(self) -> Tensor:
        """The cropped images as float32 [B, H, W, C], made by the twin."""
        return start_torch(self.images, self.crops, self.padding)[0]


def laid_out(values: Tensor, layout: str) -> Tensor:
    """A 4-D tensor in the given layout; "gaps" has memory between its elements."""
    if layout == "channels_last":
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "gaps":
        wide = torch.empty(*values.shape[:3], 2 * values.shape[3], dtype=values.dtype, device=values.device)
        return wide[..., ::2].copy_(values)
    return values.contiguous()


def activation(
    device: Device, shape: Shape, dtype: torch.dtype, layout: str, exact_in_bfloat16: bool
) -> tuple[Tensor, Tensor]:
    """(values in the given layout, int8 signs), some of both 0."""
    rng = np.random.default_rng(sum(shape))
    values = rng.integers(-16, 17, shape) / 8 if exact_in_bfloat16 else rng.standard_normal(shape)
    values[rng.random(shape) < 0.1] = 0
    signs = torch.from_numpy(rng.integers(-1, 2, shape).astype(np.int8)).to(device)
    return laid_out(torch.from_numpy(values).to(device, dtype), layout), signs


def relu_tensors(
    shape: Shape,
    dtype: torch.dtype,
    layouts: Sequence[str],
    device: Device = "cpu",
    edges: bool = True,
    seed: int = 0,
) -> list[Tensor]:
    """grad, z and s, each in its layout. Values are multiples of 1/8, so that bfloat16 holds z + 0.25 exactly (the
    interpreter truncates to bfloat16 where a GPU rounds); every fourth is one of EDGES, in all pairs."""
    generator = torch.Generator().manual_seed(seed)
    grad, z = (torch.randint(-16, 17, shape, generator=generator) / 8 for _ in range(2))
    if edges:
        pairs = torch.tensor([(g, v) for g in (*EDGES, 1.0) for v in (*EDGES, 1.0, -1.0)])
        n = grad.flatten()[::4].numel()
        grad.flatten()[::4], z.flatten()[::4] = pairs.repeat(n, 1)[:n].T
    s = torch.randint(-1, 2, shape, generator=generator, dtype=torch.int8)
    values = (grad.to(device, dtype), z.to(device, dtype), s.to(device))
    return [laid_out(t, layout) for t, layout in zip(values, layouts, strict=True)]


# --- a call of each kernel


def start_call(device: Device, shape: Shape, kind: str | torch.dtype) -> Call:
    """kind: "plain", "noise", or the dtype of a store."""
    p = Problem(*shape, store=kind if isinstance(kind, torch.dtype) else torch.float32, device=device)
    options: dict[str, Any] = {}
    if kind == "noise":
        options = {"noise": p.perturbation()}
    elif kind != "plain":
        options = dict(store=p.store, scale=p.scalar(1.7 * EPS), eps=EPS)
    return Call("start", (p.images, p.crops, p.padding), options)


def learned_step_call(device: Device, shape: Shape, dtype: torch.dtype, d0: bool, alpha: float) -> Call:
    p = Problem(*shape, device=device)
    g = p.gradient(dtype)
    g.flatten()[::5] = math.nan
    return Call("learned_step", (p.pixels(), p.perturbation(EPS) if d0 else None, g, p.scalar(alpha), EPS), {})


def update_omega_call(device: Device, shape: Shape, store: torch.dtype, dtype: torch.dtype) -> Call:
    p = Problem(*shape, store=store, device=device)
    codes = torch.tensor([-1, 0, 1, 3, 4, 5], dtype=torch.int8, device=device)
    code = codes[torch.from_numpy(p.rng.integers(0, 6, p.shape)).to(device)]
    sizes = dict(padding=p.padding, alpha=p.scalar(0.004), alpha_omega=p.scalar(1.3 * EPS), eps=EPS)
    return Call("update_omega", (p.gradient(dtype), code, p.store, p.crops), sizes, exact=False)


def projected_step_call(device: Device, shape: Shape, dtype: torch.dtype, bound: float) -> Call:
    p = Problem(*shape, device=device)
    x = p.pixels()
    g = p.gradient(dtype)
    g.flatten()[::5] = math.nan
    return Call("projected_step", (x, (x + p.perturbation()).clamp(0, 1), g, 2 / 255, bound), {})


def capture_sign_call(device: Device, shape: Shape, dtype: torch.dtype, layout: str) -> Call:
    g, _ = activation(device, shape, dtype, layout, False)
    g[..., ::3] = math.nan
    g[..., 1::3] *= -1
    return Call("capture_sign", (g,), {})


def add_sign_call(device: Device, shape: Shape, dtype: torch.dtype, layout: str) -> Call:
    # the interpreter truncates to bfloat16 where a GPU rounds: there, use sums that bfloat16 holds exactly
    exact_in_bfloat16 = dtype == torch.bfloat16 and torch.device(device).type == "cpu"
    a, s = activation(device, shape, dtype, layout, exact_in_bfloat16)
    return Call("add_sign", (a, s, torch.tensor(0.25 if exact_in_bfloat16 else 0.0123, device=device)), {})


def sign_dot_call(device: Device, shape: Shape, dtype: torch.dtype, layout: str) -> Call:
    return Call("sign_dot", activation(device, shape, dtype, layout, False), {}, exact=False)


def relu_capture_sign_call(device: Device, shape: Shape, dtype: torch.dtype, layouts: Sequence[str]) -> Call:
    grad, z, _ = relu_tensors(shape, dtype, layouts, device)
    return Call("relu_capture_sign", (grad, z), {})


def relu_add_sign_call(device: Device, shape: Shape, dtype: torch.dtype, layouts: Sequence[str]) -> Call:
    _, z, s = relu_tensors(shape, dtype, layouts, device)
    return Call("relu_add_sign", (z, s, torch.tensor(0.25, device=device)), {})


def relu_sign_dot_call(
    device: Device, shape: Shape, dtype: torch.dtype, layouts: Sequence[str], edges: bool = False
) -> Call:
    """Sums of multiples of 1/8 are exact; with the edges they are NaN on both sides."""
    return Call("relu_sign_dot", tuple(relu_tensors(shape, dtype, layouts, device, edges)), {})


def update_call(device: Device, name: str, dtype: torch.dtype = torch.float32) -> Call:
    """Of tensors of all SIZES with the settings `UPDATES[name]`; some gradients are NaN or infinite."""
    numbers = UPDATES[name]
    rng = np.random.default_rng(0)

    def draw(factor: float = 1.0) -> list[Tensor]:
        # small, so that a sum is right to an ulp of 1
        made = [torch.from_numpy(rng.standard_normal(size) * factor / 4).to(device, dtype) for size in SIZES]
        return [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in made]

    params, grads, velocities = draw(), draw(numbers.get("scale", 1.0)), draw()
    grads[3][::7], grads[5][0] = math.nan, math.inf
    tensors = ("lr", "momentum", "scale", "found_inf", "rate")
    options = {k: torch.tensor(v, dtype=dtype, device=device) if k in tensors else v for k, v in numbers.items()}
    return Call("update", (params, grads, velocities, draw() if "rate" in numbers else None), options)


CALLS: dict[str, Callable[..., Call]] = {
    "start": start_call,
    "learned_step": learned_step_call,
    "update_omega": update_omega_call,
    "projected_step": projected_step_call,
    "capture_sign": capture_sign_call,
    "add_sign": add_sign_call,
    "sign_dot": sign_dot_call,
    "relu_capture_sign": relu_capture_sign_call,
    "relu_add_sign": relu_add_sign_call,
    "relu_sign_dot": relu_sign_dot_call,
    "update": update_call,
}


def example_arguments(
    shapes: Sequence[Shape] = SHAPES, point_shapes: Sequence[Shape] = POINT_SHAPES
) -> Iterator[tuple[str, tuple]]:
    """(kernel, what its builder in `CALLS` takes after the device); pairs of choices rather than all combinations."""
    for i, shape in enumerate(shapes):
        for kind in ("plain", "noise", *STORES):
            yield "start", (shape, kind)
        for k, dtype in enumerate(FLOATS):
            yield "learned_step", (shape, dtype, (i + k) % 2 == 0, EPS if k == 0 else 0.6 * EPS)
            yield "update_omega", (shape, STORES[k], FLOATS[(i + k) % 3])
            yield "projected_step", (shape, dtype, (EPS, math.inf)[(i + k) % 2])
    for i, shape in enumerate(point_shapes):
        for k, dtype in enumerate(FLOATS):
            for name in ("capture_sign", "add_sign", "sign_dot"):
                yield name, (shape, dtype, LAYOUTS[(i + k) % 3])
            for name in ("relu_capture_sign", "relu_add_sign", "relu_sign_dot"):
                yield name, (shape, dtype, MIXES[(i + k) % 5])
                yield name, (shape, dtype, MIXES[(i + k + 3) % 5])
    for name in UPDATES:
        yield "update", (name,)


# --- what a call leaves


@contextmanager
def poisoned() -> Iterator[None]:
    """New memory holds NaN or 113, so that an element that a kernel does not write is seen. For one thread alone."""
    before = torch.empty, torch.empty_like

    def poison(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, **kwargs: Any) -> Tensor:
            t = make(*args, **kwargs)
            return t.fill_(math.nan if t.is_floating_point() else 113)

        return made

    torch.empty, torch.empty_like = poison(torch.empty), poison(torch.empty_like)
    try:
        yield
    finally:
        torch.empty, torch.empty_like = before


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """All tensors among `values`, also those in crops, lists and tuples."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Crops):
            yield from tensors_in(vars(value).values())
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


def outcome(function: Callable, call: Call) -> tuple[list[Tensor | None], list[Tensor]]:
    """What `function` returns for the call, and the tensors that it was given, as it left them; the call's own stay
    as they are."""
    given = copy.deepcopy(call.args)  # keeps the strides
    with poisoned(), torch.no_grad():
        out = function(*given, **call.options)
    return list(out) if isinstance(out, tuple) else [out], list(tensors_in(given))
