"""Compiles every kernel for given GPUs ahead of time, without a GPU, and reads what came out.

python -m apart_fast.kernels.aot            prints a table: registers, spills, widths of the global accesses
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from apart_fast.errors import UserError
from apart_fast.kernels.crop import Crops
from apart_fast.kernels.launch import HAS_TRITON, Launch
from apart_fast.kernels.learned_step import plan_learned_step
from apart_fast.kernels.point import plan_add_sign, plan_capture_sign, plan_sign_dot
from apart_fast.kernels.projected_step import plan_projected_step
from apart_fast.kernels.relu_point import plan_relu_add_sign, plan_relu_capture_sign, plan_relu_sign_dot
from apart_fast.kernels.start import plan_start
from apart_fast.kernels.update import COLUMNS, plan_update
from apart_fast.kernels.update_omega import plan_update_omega

if TYPE_CHECKING:
    from triton.compiler import ASTSource

TARGETS = (80, 90, 100)  # A100, H100/H200, B200
POINTERS = {
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
}
ACCESS = re.compile(r"\b(ld|st)\.global(?:\.[a-zA-Z]\w*(?:::\w+)*)*?(?:\.v(\d))?\.[bfsu](\d+)\s")
ALIGNED = [["tt.divisibility", 16]]

bf16, fp16, fp32, i8 = torch.bfloat16, torch.float16, torch.float32, torch.int8


B, N = 128, 50_000  # examples in a batch, and in all


class Example(NamedTuple):
    """One way to call a kernel, on meta tensors; `wide`: its "loads" and "stores" that must reach 128 bits."""

    name: str
    plan: Callable[[], Launch]
    wide: tuple[str, ...] = ()


def _empty(*shape: int, dtype: torch.dtype = fp32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _crops(batch: int) -> Crops:
    which = _empty(batch, dtype=torch.int64)
    return Crops(which, which, _empty(batch, 2, dtype=torch.int64), _empty(batch, dtype=torch.bool))


def _start(
    height: int, width: int, channels: int, padding: int, *, noise: bool = False, store: torch.dtype | None = None
) -> Callable[[], Launch]:
    def plan() -> Launch:
        images = _empty(N, height, width, channels, dtype=torch.uint8)
        start: dict[str, Any] = {"noise": _empty(B, height, width, channels)} if noise else {}
        if store is not None:
            omega = _empty(N, height + 2 * padding, width + 2 * padding, channels, dtype=store)
            start = dict(store=omega, scale=_empty(), eps=8 / 255)
        return plan_start(images, _crops(B), padding, **start)

    return plan


def _update_omega(
    height: int, width: int, channels: int, padding: int, *, store: torch.dtype, g: torch.dtype
) -> Callable[[], Launch]:
    def plan() -> Launch:
        omega = _empty(N, height + 2 * padding, width + 2 * padding, channels, dtype=store)
        g1 = _empty(B, height, width, channels, dtype=g)
        code = _empty(B, height, width, channels, dtype=i8)
        sizes = dict(alpha=_empty(), alpha_omega=_empty())
        return plan_update_omega(g1, code, omega, _crops(B), padding=padding, **sizes, eps=8 / 255)

    return plan


def _learned_step(shape: tuple[int, ...], g: torch.dtype) -> Callable[[], Launch]:
    return lambda: plan_learned_step(_empty(*shape), _empty(*shape), _empty(*shape, dtype=g), _empty(), 8 / 255)


def _projected(shape: tuple[int, ...], g: torch.dtype) -> Callable[[], Launch]:
    return lambda: plan_projected_step(_empty(*shape), _empty(*shape), _empty(*shape, dtype=g), 2 / 255, 8 / 255)


def _update(*scalars: str, **options: Any) -> Callable[[], Launch]:
    """Of 56 tensors with 11,172,170 numbers, as PreActResNet-18 has; `scalars`: what is given besides lr, momentum."""

    def plan() -> Launch:
        table, chunks = _empty(56, COLUMNS, dtype=torch.int64), _empty(10_938, 2, dtype=torch.int32)
        given: dict[str, Any] = options | {name: _empty() for name in ("lr", "momentum", *scalars)}
        return plan_update(table, chunks, **given)

    return plan


def _at_point(
    plan: Callable[..., Launch], *dtypes: torch.dtype | None, shape: tuple[int, ...] | None = None
) -> Callable[[], Launch]:
    """`plan` on activations and signs at a block point, of these dtypes, and a 0-dim float32 for each None."""
    return lambda: plan(*(_empty() if dtype is None else _empty(*(shape or POINT), dtype=dtype) for dtype in dtypes))


CIFAR, FASHION, ODD = (32, 32, 3, 4), (28, 28, 1, 4), (31, 33, 3, 2)
TINY, IMAGENET = (64, 64, 3, 4), (224, 224, 3, 4)
BATCH, ODD_BATCH, POINT, ODD_POINT = (B, 32, 32, 3), (3, 31, 33, 3), (B, 64, 32, 32), (3, 5, 31, 33)

# what trainings launch (tests/cuda_free/test_compiled.py compares them), except for other sizes of images
EXAMPLES = (
    Example("start plain", _start(*CIFAR), ("stores",)),
    Example("start noise", _start(*CIFAR, noise=True), ("loads", "stores")),
    Example("start store fp32", _start(*CIFAR, store=fp32), ("stores",)),
    Example("start store fp16", _start(*CIFAR, store=fp16), ("stores",)),
    Example("start store int8", _start(*CIFAR, store=i8), ("stores",)),
    Example("start store fp16 28x28x1", _start(*FASHION, store=fp16), ("stores",)),
    Example("start store fp16 31x33x3", _start(*ODD, store=fp16)),
    Example("start store fp16 64x64x3", _start(*TINY, store=fp16), ("stores",)),
    Example("start store fp16 224x224x3", _start(*IMAGENET, store=fp16), ("stores",)),
    Example("start store int8 224x224x3", _start(*IMAGENET, store=i8), ("stores",)),
    Example("learned_step fp32", _learned_step(BATCH, fp32), ("loads", "stores")),
    Example("learned_step fp32 odd", _learned_step(ODD_BATCH, fp32)),
    Example("update_omega store fp32", _update_omega(*CIFAR, store=fp32, g=fp32), ("loads",)),
    Example("update_omega store fp16", _update_omega(*CIFAR, store=fp16, g=fp32), ("loads",)),
    Example("update_omega store int8", _update_omega(*CIFAR, store=i8, g=fp32), ("loads",)),
    Example("update_omega store fp16 28x28x1", _update_omega(*FASHION, store=fp16, g=fp32), ("loads",)),
    Example("update_omega store fp16 31x33x3", _update_omega(*ODD, store=fp16, g=fp32)),
    Example("update_omega store fp16 64x64x3", _update_omega(*TINY, store=fp16, g=fp32), ("loads",)),
    Example("update_omega store fp16 224x224x3", _update_omega(*IMAGENET, store=fp16, g=fp32), ("loads",)),
    Example("update_omega store int8 224x224x3", _update_omega(*IMAGENET, store=i8, g=fp32), ("loads",)),
    Example("capture_sign bf16", _at_point(plan_capture_sign, bf16), ("loads", "stores")),
    Example("capture_sign fp16", _at_point(plan_capture_sign, fp16), ("loads", "stores")),
    Example("capture_sign fp32", _at_point(plan_capture_sign, fp32), ("loads", "stores")),
    Example("add_sign bf16", _at_point(plan_add_sign, bf16, i8, None), ("loads", "stores")),
    Example("add_sign fp16", _at_point(plan_add_sign, fp16, i8, None), ("loads", "stores")),
    Example("add_sign fp32", _at_point(plan_add_sign, fp32, i8, None), ("loads", "stores")),
    Example("sign_dot bf16", _at_point(plan_sign_dot, bf16, i8), ("loads",)),
    Example("sign_dot fp16", _at_point(plan_sign_dot, fp16, i8), ("loads",)),
    Example("sign_dot fp32", _at_point(plan_sign_dot, fp32, i8), ("loads",)),
    Example("relu_capture_sign bf16", _at_point(plan_relu_capture_sign, bf16, bf16), ("loads", "stores")),
    Example("relu_capture_sign fp16", _at_point(plan_relu_capture_sign, fp16, fp16), ("loads", "stores")),
    Example("relu_capture_sign fp32", _at_point(plan_relu_capture_sign, fp32, fp32), ("loads", "stores")),
    Example("relu_capture_sign bf16 odd", _at_point(plan_relu_capture_sign, bf16, bf16, shape=ODD_POINT)),
    Example("relu_add_sign bf16", _at_point(plan_relu_add_sign, bf16, i8, None), ("loads", "stores")),
    Example("relu_add_sign fp16", _at_point(plan_relu_add_sign, fp16, i8, None), ("loads", "stores")),
    Example("relu_add_sign fp32", _at_point(plan_relu_add_sign, fp32, i8, None), ("loads", "stores")),
    Example("relu_add_sign bf16 odd", _at_point(plan_relu_add_sign, bf16, i8, None, shape=ODD_POINT)),
    Example("relu_sign_dot bf16", _at_point(plan_relu_sign_dot, bf16, bf16, i8), ("loads", "stores")),
    Example("relu_sign_dot fp16", _at_point(plan_relu_sign_dot, fp16, fp16, i8), ("loads", "stores")),
    Example("relu_sign_dot fp32", _at_point(plan_relu_sign_dot, fp32, fp32, i8), ("loads", "stores")),
    Example("relu_sign_dot bf16 odd", _at_point(plan_relu_sign_dot, bf16, bf16, i8, shape=ODD_POINT)),
    Example("projected_step", _projected(BATCH, fp32), ("loads", "stores")),
    Example("update", _update(weight_decay=2e-4), ("loads", "stores")),
    Example("update average", _update("rate", weight_decay=2e-4), ("loads", "stores")),
    Example("update scaled", _update("scale", "found_inf", "rate", weight_decay=2e-4), ("loads", "stores")),
    Example("update scaled alone", _update("scale", "found_inf", weight_decay=2e-4), ("loads", "stores")),
    Example("update ascent", _update(weight_decay=1200.0, maximize=True), ("loads", "stores")),
    Example(
        "update scaled ascent", _update("scale", "found_inf", weight_decay=1200.0, maximize=True), ("loads", "stores")
    ),
)


class Specialisation(NamedTuple):
    """What Triton compiles a kernel anew for: types of its arguments by name, constants among them (None, 1 and
    constexprs), and the arguments that are multiples of 16 bytes, or of 16."""

    signature: dict[str, str]
    constants: dict[str, Any]
    aligned: frozenset[str]


def specialise(launch: Launch) -> Specialisation:
    """How Triton's JIT specialises a launch. Tensors are taken to begin at multiples of 16 bytes, as torch allocates
    memory; views of them may not."""
    names = launch.kernel.arg_names
    values = dict(zip(names, launch.args, strict=False)) | launch.constexprs
    loose = {param.name for param in launch.kernel.params if param.do_not_specialize_on_alignment}
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    aligned = set()
    for name in names:
        v = values[name]
        if isinstance(v, torch.Tensor):
            signature[name] = POINTERS[v.dtype]
            multiple = v.storage_offset() * v.element_size() % 16 == 0
        elif name in launch.constexprs or v is None or (isinstance(v, int) and v == 1):
            signature[name], constants[name], multiple = "constexpr", v, False
        elif isinstance(v, float):
            signature[name], multiple = "fp32", False
        else:
            signature[name], multiple = "i32" if v < 2**31 else "i64", v % 16 == 0
        if multiple and name not in loose:
            aligned.add(name)
    return Specialisation(signature, constants, frozenset(aligned))


def source(launch: Launch) -> "ASTSource":
    """The triton ASTSource that a GPU would compile for this launch."""
    from triton.compiler import ASTSource

    signature, constants, aligned = specialise(launch)
    attributes = {(i,): ALIGNED for i, name in enumerate(signature) if name in aligned}
    return ASTSource(launch.kernel, signature, constants, attributes)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread, and bytes of stack, local memory (spills) and shared memory, from Triton's own cuobjdump."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {name: int(n) for name, n in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", text)}
    names = {"registers": "REG", "stack": "STACK", "local": "LOCAL", "shared": "SHARED"}
    return {name: found[key] for name, key in names.items()}


def accesses(ptx: str) -> dict[str, dict[int, int]]:
    """The global "loads" and "stores" in the code: how many (value) have how many bits (key)."""
    counts: dict[str, Counter[int]] = {"ld": Counter(), "st": Counter()}
    for kind, vector, bits in ACCESS.findall(ptx):
        counts[kind][int(vector or 1) * int(bits)] += 1
    return {"loads": dict(sorted(counts["ld"].items())), "stores": dict(sorted(counts["st"].items()))}


def compile_all(targets: Sequence[int] = TARGETS, examples: Sequence[Example] = EXAMPLES) -> list[dict[str, Any]]:
    """Compiles each example for each target (compute capability * 10, e.g. 90) and returns one row for each: name,
    target, wide (see Example), ptx (text) and the items of `resources` and `accesses`.

    UserError where Triton is missing or set to interpret.
    """
    if not HAS_TRITON:
        raise UserError("Triton is not installed: there is nothing to compile")
    import triton
    from triton.backends.compiler import GPUTarget

    if triton.knobs.runtime.interpret:
        raise UserError("TRITON_INTERPRET is set: unset it to compile the kernels")
    rows = []
    for example in examples:
        launch = example.plan()
        for cc in targets:
            options = {"num_warps": launch.num_warps, **launch.options}
            compiled = triton.compile(source(launch), target=GPUTarget("cuda", cc, 32), options=options)
            ptx = compiled.asm["ptx"]
            row = {"name": example.name, "target": cc, "wide": example.wide, "ptx": ptx}
            rows.append(row | resources(compiled.asm["cubin"]) | accesses(ptx))
    return rows


def main() -> None:
    """Prints the table of `compile_all`."""
    line = "{name:37} {target:>6} {registers:>9} {local:>6} {stack:>5} {shared:>6}  {loads:24} {stores}"
    titles = ("name", "target", "registers", "local", "stack", "shared")
    print(line.format(**{t: t for t in titles}, loads="loads (bits x count)", stores="stores"))
    for row in compile_all():
        for kind in ("loads", "stores"):
            row[kind] = " ".join(f"{bits}x{count}" for bits, count in row[kind].items())
        print(line.format(**row))


if __name__ == "__main__":
    main()
