"""Start of an adversarial step: crop, flip and scale the images and perturb them (APART step 1, arXiv 2010.08034).

Bytes an element (float32 out): no start 1 + 4; noise 1 + 4 + 8; memory 1 + S + 12, with S the store's element size.
"""

import torch
from torch import Tensor

from apart_fast.errors import UserError
from apart_fast.kernels.codec import LEVELS, check_store, load_value
from apart_fast.kernels.crop import Crops, gather_crop, source_pixel
from apart_fast.kernels.dispatch import on_gpu
from apart_fast.kernels.launch import Launch, cdiv, clip, jit, tl

GRAY = 0.5  # what lies outside the image
BLOCK = 1024


def _check(
    images: Tensor,
    crops: Crops,
    padding: int,
    dtype: torch.dtype,
    noise: Tensor | None,
    store: Tensor | None,
    scale: Tensor | None,
    eps: float | None,
) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or not images.is_contiguous():
        raise UserError(f"images are {images.dtype} {tuple(images.shape)}: give contiguous uint8 [N, H, W, C]")
    if dtype not in (torch.float32, torch.float64):
        raise UserError(f"inputs cannot be made in {dtype}, which loses small perturbations: use float32 or float64")
    if store is not None:
        if noise is not None:
            raise UserError("give noise or store, not both")
        if crops.indices is None or scale is None or eps is None:
            raise UserError("a start from the store needs indices, scale and eps")
        _, height, width, channels = images.shape
        check_store(store, (height + 2 * padding, width + 2 * padding, channels))


def start_torch(
    images: Tensor,
    crops: Crops,
    padding: int,
    *,
    dtype: torch.dtype = torch.float32,
    noise: Tensor | None = None,
    store: Tensor | None = None,
    scale: Tensor | None = None,
    eps: float | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Plain PyTorch twin of `start`."""
    _check(images, crops, padding, dtype, noise, store, scale, eps)
    out_hw = images.shape[1:3]
    fill = GRAY if padding else None
    x = gather_crop(images, crops.rows, crops, out_hw, fill, padding=padding, dtype=dtype)
    if store is not None:
        assert scale is not None and eps is not None  # _check saw to it
        omega = gather_crop(store, crops.omega_rows, crops, out_hw, dtype=dtype)
        d0 = (scale * omega).clamp_(-eps, eps)
    elif noise is not None:
        d0 = noise
    else:
        return x, None, x
    return x, d0, (x + d0).clamp_(0, 1)


@jit(scalars=("rows_ptr", "offsets_ptr", "flips_ptr", "indices_ptr", "scale_ptr"))
def _start_kernel(
    images_ptr,  # u8 [M, H, W, C]
    rows_ptr,  # i64 [B]
    offsets_ptr,  # i64 [B, 2]
    flips_ptr,  # u8 [B]
    noise_ptr,  # f32 [B, H, W, C] or None
    store_ptr,  # [N, H + 2 PADDING, W + 2 PADDING, C] or None
    indices_ptr,  # i64 [B] or None
    scale_ptr,  # f32 [] or None
    x_ptr,  # f32 [B, H, W, C]
    d0_ptr,  # the same or None
    x0_ptr,  # the same or None
    eps,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    PADDING: tl.constexpr,
    LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    example = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = e < H * W * C
    row, col, channel = source_pixel(offsets_ptr, flips_ptr, example, e, W, C)

    image_ptr = images_ptr + tl.load(rows_ptr + example) * (H * W * C)
    r = row - PADDING
    c = col - PADDING
    inside = (r >= 0) & (r < H) & (c >= 0) & (c < W)
    pixel = tl.load(image_ptr + (r * W + c) * C + channel, mask=mask & inside, other=0)
    x = tl.where(inside, tl.div_rn(pixel.to(tl.float32), 255.0), 0.5)

    first = example * (H * W * C)
    tl.store(x_ptr + first + e, x, mask=mask)
    if x0_ptr is not None:
        if noise_ptr is not None:
            d0 = tl.load(noise_ptr + first + e, mask=mask, other=0)
        else:
            omega_ptr = store_ptr + tl.load(indices_ptr + example) * ((H + 2 * PADDING) * (W + 2 * PADDING) * C)
            omega = load_value(omega_ptr + (row * (W + 2 * PADDING) + col) * C + channel, mask, LEVELS)
            d0 = clip(tl.load(scale_ptr) * omega, -eps, eps)
            tl.store(d0_ptr + first + e, d0, mask=mask)
        tl.store(x0_ptr + first + e, clip(x + d0, 0.0, 1.0), mask=mask)


def plan_start(
    images: Tensor,
    crops: Crops,
    padding: int,
    *,
    dtype: torch.dtype = torch.float32,
    noise: Tensor | None = None,
    store: Tensor | None = None,
    scale: Tensor | None = None,
    eps: float | None = None,
) -> Launch:
    """The launch of `start`; its outputs are (x, d0, x0)."""
    _check(images, crops, padding, dtype, noise, store, scale, eps)
    if dtype != torch.float32:
        raise TypeError(f"the Triton kernel makes float32, not {dtype}")
    _, height, width, channels = images.shape
    batch = len(crops)
    x = torch.empty((batch, height, width, channels), dtype=dtype, device=images.device)
    d0 = None if noise is None else noise.contiguous()
    x0 = None if noise is None and store is None else torch.empty_like(x)
    memory: tuple = (None, None, None)
    if store is not None:
        d0 = torch.empty_like(x)
        memory = (store, crops.omega_rows.contiguous(), scale)
    return Launch(
        kernel=_start_kernel,
        grid=(batch, cdiv(height * width * channels, BLOCK)),
        args=(
            images,
            crops.rows.contiguous(),
            crops.offsets.contiguous(),
            crops.flips.contiguous().view(torch.uint8),
            None if noise is None else d0,
            *memory,
            x,
            None if store is None else d0,
            x0,
            0.0 if eps is None else float(eps),
        ),
        constexprs=dict(
            H=height,
            W=width,
            C=channels,
            PADDING=padding,
            LEVELS=0 if store is None else LEVELS.get(store.dtype, 0),
            BLOCK=BLOCK,
        ),
        outputs=(x, d0, x if x0 is None else x0),
    )


def start_triton(
    images: Tensor,
    crops: Crops,
    padding: int,
    *,
    dtype: torch.dtype = torch.float32,
    noise: Tensor | None = None,
    store: Tensor | None = None,
    scale: Tensor | None = None,
    eps: float | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Triton launcher of `start` (same arguments; float32 only)."""
    return plan_start(images, crops, padding, dtype=dtype, noise=noise, store=store, scale=scale, eps=eps).run()


@torch.no_grad()
def start(
    images: Tensor,
    crops: Crops,
    padding: int,
    *,
    dtype: torch.dtype = torch.float32,
    noise: Tensor | None = None,
    store: Tensor | None = None,
    scale: Tensor | None = None,
    eps: float | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Augmented images, the start of the perturbation and the perturbed images: (x, d0, x0), each [B, H, W, C].

    images: uint8 [M, H, W, C]; crops: of B examples, in the image padded with `padding` pixels of 0.5 grey on each
    side; dtype: of the outputs, float32 or float64.
    Without `noise` and `store`: d0 is None and x0 is x. noise [B, H, W, C] in `dtype`: d0 = noise.
    store [N, H + 2p, W + 2p, C] (see codec.py; rows `crops.indices`), scale 0-dim tensor, eps in [0, 1]:
    d0 = clip(scale * omega, -eps, eps) with omega cropped and flipped like its image. x0 = clip(x + d0, 0, 1).

    Source: APART step 1. UserError for a wrong dtype, shape or combination.
    """
    floats = [t for t in (noise, store, scale) if t is not None]
    call = start_triton if dtype != torch.float64 and on_gpu("start", images, *floats) else start_torch
    return call(images, crops, padding, dtype=dtype, noise=noise, store=store, scale=scale, eps=eps)
