"""Update of the weights: SGD, a GradScaler's unscaling and overflow, and the average of the weights, in one launch.

Bytes an element of float32: p, g, v in, p, v out: 20; with an average, which is read and written, 28. One pass over all
tensors of a group, whose addresses the kernel reads from a table. It works on lists of tensors, in place.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from apart_fast.kernels.dispatch import on_gpu
from apart_fast.kernels.launch import Launch, cdiv, jit, tl
from apart_fast.kernels.layout import is_dense, laid_out_like, same_layout

BLOCK = 1024
COLUMNS = 5  # of the table: addresses of p, g, v and average (0: none), number of elements


def update_torch(
    params: list[Tensor],
    grads: list[Tensor],
    velocities: list[Tensor],
    averages: list[Tensor] | None = None,
    *,
    lr: Tensor,
    momentum: Tensor,
    weight_decay: float = 0.0,
    maximize: bool = False,
    scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    rate: Tensor | None = None,
) -> None:
    """Plain PyTorch twin of `update`."""
    if found_inf is not None and scale is not None:
        grads = list(torch._foreach_mul(grads, (1 / scale).to(grads[0].dtype)))
    before = None if found_inf is None else [t.clone() for t in (*params, *velocities)]
    torch._foreach_mul_(velocities, momentum)
    torch._foreach_add_(velocities, grads, alpha=-1.0 if maximize else 1.0)
    if weight_decay:
        torch._foreach_add_(velocities, params, alpha=weight_decay)
    torch._foreach_sub_(params, torch._foreach_mul(velocities, lr))
    if found_inf is not None and before is not None:
        overflow = found_inf.bool()
        for old, new in zip(before, (*params, *velocities), strict=True):
            torch.where(overflow, old, new, out=new)
    if averages is not None:
        assert rate is not None
        average_torch(averages, params, rate)


def average_torch(averages: list[Tensor], params: list[Tensor], rate: Tensor) -> None:
    """`average <- average + rate * (p - average)`, each as rounded by torch."""
    differences = list(torch._foreach_sub(params, averages))
    torch._foreach_mul_(differences, rate)
    torch._foreach_add_(averages, differences)


@jit
def _update_block(
    p_ptr, g_ptr, v_ptr, a_ptr, mask, lr, momentum, inverse, skip, rate, weight_decay,
    MAXIMIZE: tl.constexpr, DECAY: tl.constexpr, SCALED: tl.constexpr, CHECKED: tl.constexpr, AVERAGED: tl.constexpr,
):  # fmt: skip
    p = tl.load(p_ptr, mask=mask)
    g = tl.load(g_ptr, mask=mask)
    v = tl.load(v_ptr, mask=mask)
    if SCALED:
        g = g * inverse
    new_v = v * momentum
    if MAXIMIZE:
        new_v = new_v - g
    else:
        new_v = new_v + g
    if DECAY:
        new_v = new_v + p * weight_decay
    new_p = p - new_v * lr
    if CHECKED:
        new_v = tl.where(skip, v, new_v)
        new_p = tl.where(skip, p, new_p)
    tl.store(v_ptr, new_v, mask=mask)
    tl.store(p_ptr, new_p, mask=mask)
    if AVERAGED:
        a = tl.load(a_ptr, mask=mask)
        tl.store(a_ptr, a + (new_p - a) * rate, mask=mask)


@jit(scalars=("lr_ptr", "momentum_ptr", "scale_ptr", "found_inf_ptr", "rate_ptr"))
def _update_kernel(
    table_ptr,  # i64 [tensors, 5]
    chunks_ptr,  # i32 [programs, 2]: tensor, and which block of it
    lr_ptr,  # f32 []
    momentum_ptr,  # f32 []
    scale_ptr,  # f32 [] or None
    found_inf_ptr,  # f32 [] or None
    rate_ptr,  # f32 [] or None
    weight_decay,
    MAXIMIZE: tl.constexpr,
    DECAY: tl.constexpr,
    SCALED: tl.constexpr,
    CHECKED: tl.constexpr,
    AVERAGED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    chunk = chunks_ptr + 2 * tl.program_id(0)
    row = table_ptr + 5 * tl.load(chunk).to(tl.int64)
    first = tl.load(chunk + 1).to(tl.int64) * BLOCK
    n = tl.load(row + 4)
    # in elements of 4 bytes: the launcher has seen that all addresses are multiples of 16 bytes
    p_ptr = tl.multiple_of(tl.load(row).to(tl.pointer_type(tl.float32)), 16)
    g_ptr = tl.multiple_of(tl.load(row + 1).to(tl.pointer_type(tl.float32)), 16)
    v_ptr = tl.multiple_of(tl.load(row + 2).to(tl.pointer_type(tl.float32)), 16)
    a_ptr = tl.multiple_of(tl.load(row + 3).to(tl.pointer_type(tl.float32)), 16)
    lr = tl.load(lr_ptr)
    momentum = tl.load(momentum_ptr)
    inverse = 1.0
    if SCALED:
        inverse = tl.div_rn(1.0, tl.load(scale_ptr))
    skip = False
    if CHECKED:
        skip = tl.load(found_inf_ptr) != 0.0
    rate = 0.0
    if AVERAGED:
        rate = tl.load(rate_ptr)
    i = first + tl.arange(0, BLOCK)
    if first + BLOCK <= n:  # without a mask, which would keep the accesses narrow
        _update_block(
            p_ptr + i, g_ptr + i, v_ptr + i, a_ptr + i, None, lr, momentum, inverse, skip, rate, weight_decay,
            MAXIMIZE, DECAY, SCALED, CHECKED, AVERAGED,
        )  # fmt: skip
    else:
        _update_block(
            p_ptr + i, g_ptr + i, v_ptr + i, a_ptr + i, i < n, lr, momentum, inverse, skip, rate, weight_decay,
            MAXIMIZE, DECAY, SCALED, CHECKED, AVERAGED,
        )  # fmt: skip


class Tables:
    """What the kernel reads of the tensors of one group; copied to their device only when an address has changed.

    While a CUDA graph is captured, the copy becomes part of the graph: its source is host memory that nobody else
    writes to, and that was pinned in a call before.
    """

    def __init__(self) -> None:
        self._kept_for: tuple[list[int], torch.device] | None = None  # sizes, and where the chunks lie
        self._chunks = torch.empty(0)
        self._rows: list[list[int]] = []
        self._table = torch.empty(0)
        self._spare: tuple[Tensor, Tensor] | None = None  # pinned on the host, and on the device
        self._captured: list[tuple[Tensor, ...]] = []  # what graphs read

    def get(self, rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor] | None:
        """(table int64 [tensors, 5], chunks int32 [programs, 2]) on the device; None: captured, and no call before."""
        wanted = [row[-1] for row in rows], device
        capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        if capturing:
            if wanted != self._kept_for or self._spare is None:
                return None
            (host, table), self._spare = self._spare, None
            host.copy_(torch.tensor(rows))
            table.copy_(host, non_blocking=True)
            self._captured.append((host, table, self._chunks))
            return table, self._chunks
        if wanted != self._kept_for:
            chunks = [(k, block) for k, size in enumerate(wanted[0]) for block in range(cdiv(size, BLOCK))]
            self._chunks, self._kept_for = _to(torch.tensor(chunks, dtype=torch.int32), device), wanted
            self._rows, self._spare = [], None
        if self._spare is None and device.type == "cuda":
            host = torch.empty(len(rows), COLUMNS, dtype=torch.int64, pin_memory=True)
            self._spare = host, torch.empty(len(rows), COLUMNS, dtype=torch.int64, device=device)
        if rows != self._rows:
            self._table, self._rows = _to(torch.tensor(rows), device), rows
        return self._table, self._chunks


_shared = Tables()  # of calls that bring none: benchmarks and checks, which repeat one call


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def plan_update(
    table: Tensor,
    chunks: Tensor,
    *,
    lr: Tensor,
    momentum: Tensor,
    weight_decay: float = 0.0,
    maximize: bool = False,
    scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    rate: Tensor | None = None,
) -> Launch:
    """The launch of `update` for the tensors of a table; with `rate` they have averages. It has no outputs."""
    scale = scale if found_inf is not None else None
    return Launch(
        kernel=_update_kernel,
        grid=(len(chunks),),
        args=(table, chunks, lr, momentum, scale, found_inf, rate, float(weight_decay)),
        constexprs=dict(
            MAXIMIZE=maximize,
            DECAY=bool(weight_decay),
            SCALED=scale is not None,
            CHECKED=found_inf is not None,
            AVERAGED=rate is not None,
            BLOCK=BLOCK,
        ),
        outputs=(),
    )


def update_triton(
    params: list[Tensor],
    grads: list[Tensor],
    velocities: list[Tensor],
    averages: list[Tensor] | None = None,
    *,
    tables: Tables | None = None,
    **settings: Any,
) -> None:
    """Triton launcher of `update`; tensors that the kernel cannot take go to the twin.

    It takes float32, dense, laid out alike and aligned to 16 bytes, as a parameter and what autograd and `zeros_like`
    make for it are.
    """
    if all(p.shape == g.shape for p, g in zip(params, grads, strict=True)) and all(map(is_dense, params)):
        grads = [laid_out_like(g, p) for p, g in zip(params, grads, strict=True)]
    given = [params, grads, velocities, *([averages] if averages is not None else [])]
    found = None
    if all(_fit(*each) for each in zip(*given, strict=True)):
        addresses = [[t.data_ptr() for t in each] for each in zip(*given, strict=True)]
        if all(address % 16 == 0 for row in addresses for address in row):
            none = [0] * (COLUMNS - 1 - len(given))
            rows = [[*row, *none, p.numel()] for row, p in zip(addresses, params, strict=True) if p.numel()]
            found = (_shared if tables is None else tables).get(rows, params[0].device) if rows else None
    if found is None:
        update_torch(params, grads, velocities, averages, **settings)
        return
    if averages is None:
        settings["rate"] = None
    plan_update(*found, **settings).run()
    for changed in (params, velocities, averages or []):
        torch.autograd.graph.increment_version(changed)  # what autograd has kept of them is no longer what it was


def _fit(p: Tensor, *others: Tensor) -> bool:
    fits = all(t.dtype == torch.float32 and t.device == p.device for t in (p, *others)) and is_dense(p)
    return fits and all(same_layout(t, p) for t in others)


@torch.no_grad()
def update(
    params: list[Tensor],
    grads: list[Tensor],
    velocities: list[Tensor],
    averages: list[Tensor] | None = None,
    *,
    lr: Tensor,
    momentum: Tensor,
    weight_decay: float = 0.0,
    maximize: bool = False,
    scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    rate: Tensor | None = None,
    tables: Tables | None = None,
) -> None:
    """`v <- momentum v + g + weight_decay p; p <- p - lr v; average <- average + rate (p - average)`, in place.

    params, grads, velocities, averages (None: there are none): lists of floats, one of each for a parameter, on one
    device; lr, momentum, rate (with averages): 0-dim tensors there; weight_decay: a number; maximize: `- g`.
    found_inf: 0-dim, not 0 where a gradient overflowed: then params and velocities keep their values, without the host
    knowing. scale: 0-dim, by which the gradients are divided first (with found_inf).
    tables: keeps what the kernel reads of these tensors from call to call; None: one that all such calls share.
    """
    settings: dict[str, Any] = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, maximize=maximize)
    settings |= dict(scale=scale, found_inf=found_inf, rate=rate)
    if launched(params):
        update_triton(params, grads, velocities, averages, tables=tables, **settings)
    else:
        update_torch(params, grads, velocities, averages, **settings)


def launched(params: Sequence[Tensor]) -> bool:
    """Whether `update` goes to the kernel for these parameters."""
    return on_gpu("update", *params)
