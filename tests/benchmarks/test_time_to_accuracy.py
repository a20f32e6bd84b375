"""benchmarks/time_to_accuracy.py: the first epoch from which on a target is held, and what was paid until then."""

import json
import math

import pytest

from apart_fast.errors import UserError
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.folder import RunFolder
from apart_fast.runs.reading import Run
from benchmarks import sweep
from benchmarks import time_to_accuracy as benchmark


@pytest.mark.parametrize(
    ("accuracies", "index"),
    [([0.1, 0.3, 0.2, 0.3, 0.4], 3), ([0.3, 0.3], 0), ([0.1, 0.4, 0.2], None), ([0.1, 0.3], 1), ([], None)],
)
def test_a_target_counts_from_where_it_is_held(accuracies, index):
    assert benchmark.reached(accuracies, 0.3) == index


def test_a_target_that_is_met_exactly_is_reached():
    assert [k for k in range(501) if benchmark.reached([k / 500], k / 5 / 100) is None] == []
    assert benchmark.reached([142 / 500], 28.6 / 100) is None


def test_a_seed_that_never_arrives_counts_as_the_slowest():
    assert benchmark.median([3.0, math.inf, 1.0]) == 3.0
    assert benchmark.median([3.0, math.inf, math.inf]) == math.inf
    assert benchmark.median([3.0, 4.0]) == 3.5 and benchmark.median([3.0, math.inf]) == math.inf


def test_a_row_has_seconds_and_passes_up_to_the_end_of_the_epoch():
    curves = {
        0: {"seconds": [10, 20, 30], "passes": [5, 10, 15], "accuracy": [0.2, 0.26, 0.31]},
        1: {"seconds": [11, 22, 33], "passes": [5, 10, 15], "accuracy": [0.3, 0.2, 0.27]},
        2: {"seconds": [12, 24, 36], "passes": [5, 10, 15], "accuracy": [0.1, 0.1, 0.2]},
    }
    row = benchmark.make_row("apart", curves, (25.0, 30.0))
    assert row["25"]["epochs"] == {0: 2, 1: 3, 2: None} and row["25"]["seconds"] == 33 and row["25"]["passes"] == 15
    assert row["30"]["seconds"] is None and row["30"]["seconds_by_seed"] == {0: 30, 1: None, 2: None}
    assert row["passes_of_a_step"] == 5
    text = benchmark.to_markdown([row], (25.0, 30.0), "")
    assert "| apart | 3 | 5 F | 33 (2 of 3) | not reached (1 of 3) | 0.00 (2 of 3) |" in text


def test_all_of_it_at_a_tiny_size(image_folder, tmp_path, monkeypatch, capsys, tiny_recipe):
    tiny_recipe("small", batch_size=16)
    config = benchmark.Config(
        data_dir=image_folder, methods=("fgsm", "fgsm-pgi"), seeds=(0,), targets=(1e-3, 99.0), device="cpu",
        runs=tmp_path / "runs", out=tmp_path / "out",
    )  # fmt: skip
    benchmark.main(config)
    found = json.loads((config.out / "time_to_accuracy.json").read_text())
    for row, passes in zip(found["rows"], (5, 7), strict=True):
        one = found["curves"][row["method"]]["0"]
        assert one["passes"] == [42 * passes, 84 * passes] and 0 < one["seconds"][0] < one["seconds"][1]
        assert len(one["accuracy"]) == 2 and row["99"]["seconds"] is None
    assert found["images"] == 6
    text = (config.out / "time_to_accuracy.md").read_text()
    assert text in capsys.readouterr().out and "| fgsm-pgi | 1 | 7 F |" in text
    for ending in ("png", "svg"):
        assert (config.out / f"time_to_accuracy.{ending}").stat().st_size
    # again: nothing is trained a second time, another target is a new table only
    monkeypatch.setattr(sweep, "train", lambda _: pytest.fail("trained again"))
    config.targets = (50.0,)
    benchmark.main(config)
    assert f"step times: those in {config.out}/cost.json" in capsys.readouterr().out
    # nor do the times of another machine count
    file = config.out / "cost.json"
    file.write_text(file.read_text().replace('"cores": ', '"cores": 1000'))
    benchmark.main(config)
    assert '"cores": 1000' not in "".join(file.read_text().partition('"fgsm"')[1:])


def test_epochs_are_those_of_the_records(tmp_path):
    config = TrainConfig(method="fgsm", epochs=2, batch_size=10)
    lines = [{"epoch": 2, "val_pgd20": 0.4}, {"epoch": 1, "val_pgd20": 0.2}]
    found = benchmark.curve(Run("fgsm-0", RunFolder(tmp_path), config, {}, lines, {}), 20, 0.5)
    assert found == {"seconds": [1.0, 2.0], "passes": [100, 200], "accuracy": [0.2, 0.4]}
    for kept in (lines[:1], []):  # a damaged line was left out
        with pytest.raises(UserError, match="metrics.jsonl has no val_pgd20 of epochs? .*1"):
            benchmark.curve(Run("fgsm-0", RunFolder(tmp_path), config, {}, kept, {}), 20, 0.5)


@pytest.mark.parametrize("recipe", ["small", "fastat"])
def test_another_number_of_epochs_suits_every_schedule(recipe):
    config = benchmark.Config(recipe=recipe, epochs=7)
    config.check()
    made = config.wanted("apart", 0)
    assert made.epochs == 7 and (made.cycle == 7) == (made.schedule == "triangle")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (dict(targets=()), "--targets : give at least 1"),
        (dict(seeds=(0, 0)), "--seeds 0 0: give at least 1, and each once"),
        (dict(targets=(130.0,)), "--targets 130.0 is too large"),
        (dict(methods=("pgd",)), "give its whole name, pgd-10"),
        (dict(methods=("pdg-10",)), "did you mean pgd"),
        (dict(epochs=0), "epochs 0 is too small"),
        (dict(train=False), "no finished run"),
    ],
)
def test_settings_that_make_no_sense_are_told(tmp_path, settings, line):
    config = benchmark.Config(**dict(runs=tmp_path / "runs", out=tmp_path / "out") | settings)
    with pytest.raises(UserError, match=line):
        benchmark.main(config)
