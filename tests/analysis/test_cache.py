"""Results kept between calls."""

import json
import math

import pytest

from apart_fast.analysis.cache import ResultCache, result_key


def test_cache_keeps_results_between_calls_and_survives_damage(tmp_path):
    path = tmp_path / "new" / "cache.json"
    ResultCache(path).put("a", [1.5, float("nan")])
    again = ResultCache(path)
    assert again.get("a")[0] == 1.5 and math.isnan(again.get("a")[1]) and again.get("b") is None
    for damage in ("{", "[1]", "\xff"):
        path.write_bytes(damage.encode("latin-1"))
        with pytest.warns(UserWarning, match="cache.json is damaged"):
            assert ResultCache(path).get("a") is None
    path.write_text('{"b": 2}')  # of a version without checksums
    ResultCache(path).put("c", 1)
    again = ResultCache(path)
    assert (
        again.get("b") == 2 and again.get("c") == 1 and [file.name for file in path.parent.iterdir()] == ["cache.json"]
    )


@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_a_flipped_bit_is_noticed(tmp_path):
    """In figures that would still look like figures; the other results stay."""
    path = tmp_path / "cache.json"
    cache = ResultCache(path)
    cache.put("a", {"correct": 231})
    cache.put("b", ["0110", 0.5])
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = ResultCache(path)
        # what is no longer sealed is taken for a result of an older version, and `valid` refuses it
        assert found.get("a") in ({"correct": 231}, None) or "correct" not in found.get("a")
        assert found.get("b") in (["0110", 0.5], None) or isinstance(found.get("b"), dict)
    path.write_bytes(whole.replace(b"231", b"233"))
    assert ResultCache(path).get("a") is None and ResultCache(path).get("b") == ["0110", 0.5]


def test_result_key_sees_weights_and_settings(tmp_path):
    a, b = tmp_path / "a.pt", tmp_path / "b.pt"
    a.write_bytes(b"1"), b.write_bytes(b"2")
    keys = {result_key(a, {"eps": 1}), result_key(a, {"eps": 2}), result_key(b, {"eps": 1})}
    assert len(keys) == 3 and result_key(a, {"x": 1, "y": 2}) == result_key(a, {"y": 2, "x": 1})


def test_only_what_is_missing_or_damaged_is_made(tmp_path):
    path = tmp_path / "cache.json"
    made = []

    def make():
        made.append(len(made))
        return made[-1]

    def found(key):
        return ResultCache(path).get_or_make(key, lambda value: isinstance(value, int), make)

    assert [found("a"), found("a"), found("b")] == [0, 0, 1]
    path.write_text(json.dumps({"a": "no number", "b": 1}))
    assert [found("a"), found("b"), found("a")] == [2, 1, 2]
