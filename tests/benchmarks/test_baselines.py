"""The rivals of the benchmarks compute what they are said to compute, and the benchmarks measure what they say."""

import pytest
import torch

from apart_fast.measure.interleave import Timings, interleave, spread
from benchmarks import checks


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_released_step_gives_the_numbers_of_ours(dtype):
    checks.check_released(dtype, steps=3 if dtype == torch.float64 else 1)


def test_a_wrong_step_does_not_pass_the_gate(monkeypatch):
    pair = checks.make_pair(torch.float64)
    pair.apart.alpha_blocks = 0.9 * pair.apart.alpha_blocks
    where = torch.full((4, 2), 1), torch.tensor([True, False] * 2)
    assert pair.step(torch.arange(4), *where)["loss"] > pair.tolerance
    monkeypatch.setattr(checks, "make_pair", lambda dtype: pair)
    with pytest.raises(AssertionError, match="differs by .* in step 0"):
        checks.check_released()


def test_the_released_step_runs_in_bfloat16():
    pair = checks.make_pair(torch.float32)
    pair.released.amp = torch.bfloat16
    differences = pair.step(torch.arange(4), torch.full((4, 2), 1), torch.tensor([True, False] * 2))
    assert 1e-5 < differences["start loss"] < 0.02
    assert all(p.grad.dtype == torch.float32 for p in pair.released.model.parameters())


def test_pgd_and_the_floor_are_whole():
    checks.check_pgd()
    checks.check_floor()


def test_rivals_take_turns():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "abc"}
    timings = interleave(runs, rounds=3, warm_up=1, calls=2)
    assert "".join(calls) == "aabbcc" + "ccbbaa" + "aabbcc" + "ccbbaa"
    assert all(len(seconds) == 3 for seconds in timings.seconds.values())


def test_ratios_are_taken_within_a_round():
    timings = Timings({"slow": [4.0, 40.0, 8.2], "fast": [2.0, 20.0, 4.0]})  # the machine was busy in round 2
    assert timings.ratio("slow", "fast").median == 2.0
    assert timings.with_sum("both", {"slow": 1, "fast": 3}).seconds["both"] == [10.0, 100.0, 20.2]
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == spread([5.0, 4.0, 3.0, 2.0, 1.0])
    assert str(spread([1.0, 2.0, 3.0, 4.0, 5.0])) == "3 [2, 4]" and str(spread([7.0])) == "7 [7, 7]"
