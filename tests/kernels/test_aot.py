"""Every Triton kernel compiles for A100, H100 and B200 without a GPU, spills nothing and moves 128 bits at a time."""

import json
import os
import subprocess
import sys

import pytest
from interpreting import needs_triton

from apart_fast.kernels.aot import EXAMPLES, TARGETS, accesses

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
    assert row["registers"] <= 64, "fewer than half of the threads of a multiprocessor fit"
    for kind in example.wide:
        assert max(map(int, row[kind])) >= 128, f"{kind} (bits: count): {row[kind]}"
    # neither may differ from torch by an ulp: fused multiply-adds round once, approximate division does not round right
    assert "fma." not in row["ptx"] and "div.full" not in row["ptx"] and "rcp." not in row["ptx"]


@pytest.mark.parametrize("target", TARGETS)
def test_bfloat16_is_rounded_to_nearest_even(compiled, target):
    """The interpreter truncates, so that its tests cannot see this."""
    assert "cvt.rn.bf16" in compiled["add_sign bf16", target]["ptx"]


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
