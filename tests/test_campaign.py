"""The campaign itself: what it draws, and that it sees what it is to see."""

import json
import random

import campaign
import pytest
from faults import contents, damages, inputs, kills

SEED = 5


@pytest.mark.parametrize("part", [kills, damages, inputs])
def test_a_larger_campaign_begins_as_a_smaller_one(part):
    few, many = (list(part.cases(SEED, count)) for count in (15, 40))
    assert [str(case) for case in many[:15]] == [str(case) for case in few]
    assert len({case.name for case in many}) == 40


def test_kills_fall_into_all_phases():
    drawn = list(kills.cases(SEED, 200))
    counts = {phase: sum(case.phase == phase for case in drawn) for phase in kills.PHASES}
    assert all(abs(counts[phase] / 200 - share) < 0.02 for phase, share in kills.PHASES.items()), counts
    assert {case.signal for case in drawn} == set(kills.SIGNALS)


def test_every_family_of_inputs_has_a_share():
    everything = inputs.everything()
    assert len({case.name for case in everything}) == len(everything)
    assert {case.family for case in everything} == set(inputs.SHARES)
    assert {case.family for case in inputs.cases(SEED, 300)} == set(inputs.SHARES)


@pytest.mark.parametrize("way", damages.WAYS)
def test_damage_changes_bytes_and_is_the_same_each_time(way):
    whole = bytes(random.Random(0).randbytes(50_000))
    one, other = bytearray(whole), bytearray(whole)
    damages.WAYS[way](one, random.Random(1))
    damages.WAYS[way](other, random.Random(1))
    assert one == other != whole


def test_differences_are_seen_and_clocks_are_not():
    one = {"loss": 1.0, "seconds": 2.0, "inner": {"a": 1, "date": "x"}}
    assert contents.difference(one, {**one, "seconds": 9.0, "inner": {"a": 1, "date": "y"}}) is None
    assert contents.difference(one, {**one, "inner": {"a": 2}}) == "inner.a"
    assert contents.difference(one, {**one, "more": 1}) == "more"
    assert contents.difference(one, None) is not None


def test_what_was_written_is_seen(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "data" / ".apart_fast").mkdir(parents=True)
    before = contents.snapshot(tmp_path)
    (tmp_path / "data" / ".apart_fast" / "images.npz").write_text("derived: allowed")
    assert contents.written(before, contents.snapshot(tmp_path)) == []
    (tmp_path / "data" / ".apart_fast" / ".images.npz.x.tmp").write_text("half")
    (tmp_path / "run" / "config.json").write_text('{"half": ')
    assert contents.written(before, contents.snapshot(tmp_path)) == [
        "data/.apart_fast/.images.npz.x.tmp",
        "run/config.json",
    ]
    assert contents.leftovers(tmp_path) == [".images.npz.x.tmp"] and contents.half_written(tmp_path) == "config.json"


def test_figures(tmp_path):
    done = {
        "kill-0": {"part": "kills", "outcome": "ok", "detail": "", "case": "", "counted": {"phase": "epoch"}},
        "kill-1": {"part": "kills", "outcome": "traceback", "detail": "x", "case": "", "counted": {}},
    }
    figures = campaign.summed_up(done, campaign.read_words(["--seed", "3"]), 1.0)
    assert figures["outcomes"]["kills"]["ok"] == figures["outcomes"]["kills"]["traceback"] == 1
    assert figures["failures"][0]["reproduce"] == "python tests/campaign.py --seed 3 --keep --only kill-1"
    campaign.write(tmp_path / "new" / "figures.json", figures)
    assert json.loads((tmp_path / "new" / "figures.json").read_text())["counted"]["kills"]["phase"] == {"epoch": 1}
