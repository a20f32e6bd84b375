"""The fused update of the weights against its twin; run as `test_kernels.py` is."""

import copy
from unittest import mock

import pytest
import torch
from interpreting import check, needs_triton, print_failures, run_interpreted

from apart_fast.kernels.launch import Launch
from apart_fast.kernels.problems import UPDATES, update_call
from apart_fast.kernels.update import BLOCK, Tables, update_torch, update_triton


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


def given_of(device, *args):
    """(lists of tensors, settings) of a call of `update`."""
    call = update_call(device, *args)
    return list(call.args), call.options


def settings_case(device, name):
    given, settings = given_of(device, name)
    got = compare(given, settings, exact="weight_decay" not in settings or "overflow" in name)
    if "overflow" in name:
        for before, after in zip(given[0] + given[2], got[0] + got[2], strict=True):
            assert torch.equal(before, after)


def other_dtype_case(device, dtype):
    compare(*given_of(device, "average", dtype), launched=False, exact=True)


def other_layout_case(device):
    given, settings = given_of(device, "all")
    given[1][6] = given[1][6].contiguous()
    compare(given, settings)


def gaps_case(device):
    given, settings = given_of(device, "average")
    given[0][3] = torch.zeros(2 * BLOCK + 2, device=device)[::2]
    compare(given, settings, launched=False)


def misaligned_case(device):
    """The table of the kernel promises 16 bytes."""
    given, settings = given_of(device, "average")
    storage = torch.randn(BLOCK + 1, device=device)
    runs = []
    given[2][2] = storage[1:]
    with mock.patch.object(Launch, "run", lambda launch: runs.append(launch)):
        update_triton(*given, **settings)
    assert not runs


def steps_case(device):
    """Many steps with one `Tables`, with new gradients in each."""
    (mine, settings), tables = given_of(device, "all"), Tables()
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
    **{name: (settings_case, (name,)) for name in UPDATES},
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
