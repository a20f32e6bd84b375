"""The fused update of the weights against its twin; run as `test_kernels.py` is."""

import copy
import math
from unittest import mock

import numpy as np
import pytest
import torch
from interpreting import check, needs_triton, print_failures, run_interpreted

from apart_fast.kernels.launch import Launch
from apart_fast.kernels.update import BLOCK, Tables, update_torch, update_triton

SIZES = ((1,), (BLOCK - 1,), (BLOCK,), (BLOCK + 1,), (0,), (3, 5, 7), (8, 4, 3, 3), (2 * BLOCK + 5,))
PLAIN = dict(lr=0.3, momentum=0.9)
SETTINGS = {
    "plain": PLAIN,
    "decay": dict(**PLAIN, weight_decay=0.02),
    "ascent": dict(**PLAIN, weight_decay=1200.0, maximize=True),
    "scaled": dict(**PLAIN, weight_decay=0.02, scale=1024.0, found_inf=0.0),
    "unscaled before": dict(**PLAIN, found_inf=0.0),
    "overflow": dict(**PLAIN, weight_decay=0.02, scale=1024.0, found_inf=1.0),
    "two overflows": dict(**PLAIN, scale=1024.0, found_inf=2.0, maximize=True),
    "average": dict(**PLAIN, weight_decay=0.02, rate=0.125),
    "all": dict(**PLAIN, weight_decay=0.02, scale=2.0**16, found_inf=0.0, rate=0.001),
    "overflow and average": dict(**PLAIN, scale=2.0**16, found_inf=1.0, rate=0.25),
}


def group(device, dtype=torch.float32, averages=True, scale=1.0):
    """Parameters, gradients, velocities and averages of all SIZES; some gradients are NaN or infinite."""
    rng = np.random.default_rng(0)

    def draw(factor=1.0):
        made = [torch.from_numpy(rng.standard_normal(size) * factor).to(device, dtype) for size in SIZES]
        return [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in made]

    params, grads, velocities = draw(), draw(scale), draw()
    grads[3][::7], grads[5][0] = math.nan, math.inf
    return [params, grads, velocities, draw() if averages else None]


def on(device, settings, dtype=torch.float32):
    numbers = ("lr", "momentum", "scale", "found_inf", "rate")
    return {k: torch.tensor(v, dtype=dtype, device=device) if k in numbers else v for k, v in settings.items()}


def compare(given, settings, launched=True, exact=False):
    """Twin and kernel on copies of `given`; `launched`: whether it is for the kernel."""
    expected, got = copy.deepcopy(given), copy.deepcopy(given)
    update_torch(*expected, **settings)
    runs = []
    real = Launch.run
    with mock.patch.object(Launch, "run", lambda launch: (runs.append(launch), real(launch))[1]):
        update_triton(*got, **settings)
    assert len(runs) == launched
    # torch adds alpha * p with a fused multiply-add, the kernel rounds twice
    tolerance = dict(rtol=0, atol=0) if exact else dict(rtol=1e-6, atol=1e-6)
    for mine, theirs in zip(got, expected, strict=True):
        for a, b in zip(mine or [], theirs or [], strict=True):
            torch.testing.assert_close(a, b, equal_nan=True, check_stride=True, **tolerance)
    return got


def settings_case(device, name):
    settings = on(device, SETTINGS[name])
    given = group(device, averages="rate" in settings, scale=SETTINGS[name].get("scale", 1.0))
    got = compare(given, settings, exact="weight_decay" not in settings or "overflow" in name)
    if "overflow" in name:
        for before, after in zip(given[0] + given[2], got[0] + got[2], strict=True):
            assert torch.equal(before, after)


def other_dtype_case(device, dtype):
    compare(group(device, dtype), on(device, SETTINGS["average"], dtype), launched=False, exact=True)


def other_layout_case(device):
    given = group(device)
    given[1][6] = given[1][6].contiguous()
    compare(given, on(device, SETTINGS["all"]))


def gaps_case(device):
    given = group(device)
    given[0][3] = torch.zeros(2 * BLOCK + 2, device=device)[::2]
    compare(given, on(device, SETTINGS["average"]), launched=False)


def misaligned_case(device):
    """The table of the kernel promises 16 bytes."""
    given = group(device)
    storage = torch.randn(BLOCK + 1, device=device)
    runs = []
    given[2][2] = storage[1:]
    with mock.patch.object(Launch, "run", lambda launch: runs.append(launch)):
        update_triton(*given, **on(device, SETTINGS["average"]))
    assert not runs


def steps_case(device):
    """Many steps with one `Tables`, with new gradients in each."""
    settings, tables = on(device, SETTINGS["all"]), Tables()
    mine = group(device, scale=2.0**16)
    theirs = copy.deepcopy(mine)
    for step in range(4):
        for grads in (mine[1], theirs[1]):
            for k in range(len(grads)):
                grads[k] = torch.full_like(grads[k], 2.0**16 * (step + 1))
        update_triton(*mine, **settings, tables=tables)
        update_torch(*theirs, **settings)
    for a, b in zip(sum(mine, []), sum(theirs, []), strict=True):
        torch.testing.assert_close(a, b, rtol=3e-6, atol=3e-6)


CASES = {
    **{name: (settings_case, (name,)) for name in SETTINGS},
    **{f"{dtype}": (other_dtype_case, (dtype,)) for dtype in (torch.float64, torch.float16, torch.bfloat16)},
    "other layout": (other_layout_case, ()),
    "gaps": (gaps_case, ()),
    "misaligned": (misaligned_case, ()),
    "steps": (steps_case, ()),
}


@pytest.fixture(scope="module")
def interpreted():
    return run_interpreted(__file__)


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_update_equals_twin(name, request):
    check(CASES, name, request)


def test_a_table_is_copied_when_an_address_changes():
    tables, cpu = Tables(), torch.device("cpu")
    rows = [[16, 32, 48, 0, BLOCK + 1], [64, 80, 96, 0, 3]]
    table, chunks = tables.get(rows, cpu)
    assert table.tolist() == rows and chunks.tolist() == [[0, 0], [0, 1], [1, 0]]
    again = tables.get([list(row) for row in rows], cpu)
    assert again[0] is table and again[1] is chunks
    rows = [rows[0], [64, 112, 96, 0, 3]]
    other = tables.get(rows, cpu)
    assert other[0] is not table and other[0].tolist() == rows and other[1] is chunks


if __name__ == "__main__":
    print_failures(CASES)
