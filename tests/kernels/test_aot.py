"""Every Triton kernel compiles for A100, H100 and B200 without a GPU, spills nothing and moves 128 bits at a time."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from interpreting import needs_triton

from apart_fast.kernels import Crops
from apart_fast.kernels.aot import EXAMPLES, TARGETS, accesses, specialise
from apart_fast.kernels.point import plan_add_sign, plan_capture_sign
from apart_fast.kernels.relu_point import plan_relu_add_sign
from apart_fast.kernels.start import plan_start

pytestmark = needs_triton

SCRIPT = "import json; from apart_fast.kernels.aot import compile_all; print(json.dumps(compile_all()))"


@pytest.fixture(scope="module")
def compiled():
    """Rows of compile_all by (name, target), from a process in which Triton's interpreter is off."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return {(row["name"], row["target"]): row for row in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_kernel_compiles_without_spills_and_with_wide_accesses(compiled, example, target):
    row = compiled[example.name, target]
    assert f".target sm_{target}" in row["ptx"]
    assert row["local"] == 0 and row["stack"] <= 16, row
    # of 2048 threads of a multiprocessor half fit; of odd sizes, which are rare and narrow, a third
    assert row["registers"] <= (64 if example.wide else 80), row
    for kind in example.wide:
        assert max(map(int, row[kind])) >= 128, f"{kind} (bits: count): {row[kind]}"
    # neither may differ from torch by an ulp: fused multiply-adds round once, approximate division does not round right
    assert "fma." not in row["ptx"] and "div.full" not in row["ptx"] and "rcp." not in row["ptx"]


@pytest.mark.parametrize("target", TARGETS)
def test_bfloat16_is_rounded_to_nearest_even(compiled, target):
    """The interpreter truncates, so that its tests cannot see this."""
    assert "cvt.rn.bf16" in compiled["add_sign bf16", target]["ptx"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", ["start", "update_omega"])
def test_rows_of_a_large_store_are_addressed_in_64_bits(compiled, kernel, target):
    """ImageNet's has 2^37 numbers: the number of a row times its size does not fit into 32 bits."""
    row = 232 * 232 * 3
    ptx = compiled[f"{kernel} store fp16 224x224x3", target]["ptx"]
    lines = [line for line in ptx.splitlines() if re.search(rf", {row}\b|, {2 * row}\b", line)]
    assert lines and all(re.search(r"\b(mul|mad)\.(lo\.s64|wide)", line) for line in lines), lines


def test_addresses_of_single_numbers_make_no_kernel_anew():
    """Scalars and lists of examples are views into larger tensors, at any multiple of their size."""
    sizes, numbers = torch.empty(9, device="meta"), torch.empty(40, dtype=torch.int64, device="meta")
    z, s = torch.empty(2, 3, device="meta"), torch.empty(2, 3, dtype=torch.int8, device="meta")
    for plan in (plan_add_sign, plan_relu_add_sign):
        assert specialise(plan(z, s, sizes[2])) == specialise(plan(z, s, sizes[4]))
    images = torch.empty(50, 4, 4, 3, dtype=torch.uint8, device="meta")
    flips, offsets = (
        torch.empty(40, dtype=torch.bool, device="meta"),
        torch.empty(40, 2, dtype=torch.int64, device="meta"),
    )
    store = torch.empty(50, 4, 4, 3, device="meta")
    starts = [
        plan_start(
            images, Crops(numbers[at], numbers[at], offsets[at], flips[at]), 0, store=store, scale=scale, eps=0.1
        )
        for at, scale in ((slice(0, 8), sizes[0]), (slice(7, 15), sizes[1]))
    ]
    assert specialise(starts[0]) == specialise(starts[1])
    assert specialise(plan_capture_sign(sizes[1:])).aligned == {"s_ptr"}, "what is read in pieces of 16 bytes"


def test_more_than_2_to_the_31_numbers_are_counted_in_64_bits():
    for n, kind in ((2**31 - 16, "i32"), (2**31, "i64")):
        made = specialise(plan_capture_sign(torch.empty(n, dtype=torch.bfloat16, device="meta")))
        assert made.signature["n"] == kind


def test_accesses_reads_the_widths():
    ptx = """
        ld.global.b32 { %r1 }, [ %rd1 + 0 ];
        @%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
        ld.global.L1::evict_first.v2.b64 { %r1, %r2 }, [ %rd1 + 0 ];
        st.global.v4.b32 [ %rd3 + 0 ], { %r1, %r2, %r3, %r4 };
        st.global.b8 [ %rd3 + 0 ], { %rs1 };
        ld.param.b64 %rd1, [kernel_param_0];
    """
    assert accesses(ptx) == {"loads": {32: 1, 128: 2}, "stores": {8: 1, 128: 1}}
