"""benchmarks/strong.py: chosen on validation images alone, and what is chosen judged beside PGD-10."""

import json

import pytest

from apart_fast.errors import UserError
from benchmarks import judging, strong, sweep
from benchmarks import time_to_accuracy as timing


@pytest.fixture
def config(image_folder, tmp_path, monkeypatch, tiny_recipe):
    more = dict(batch_size=16, test_images=6, epochs=1, cycle=1, ema=0.9, best_of="both", val_every=1)
    tiny_recipe("fastat-small", **more)
    monkeypatch.setattr(strong, "CANDIDATES", {"fgsm": {"method": "fgsm"}, "wide": {"method": "fgsm", "eps": "16/255"}})
    monkeypatch.setattr(strong, "REFERENCE", "n-fgsm")  # quicker
    return strong.Config(
        data_dir=image_folder, recipe="fastat-small", candidates=("fgsm", "wide"), seeds=(0, 1), device="cpu",
        runs=tmp_path / "runs", out=tmp_path / "out", strong_images=4, autoattack_images=0,
    )  # fmt: skip


def validated(accuracies):
    """What `judging.validate` gives: (clean, PGD-20) by name, the same for both seeds."""
    return lambda *_: {
        (name, seed): {"clean": {"accuracy": clean}, "pgd-20": {"accuracy": robust}}
        for name, (clean, robust) in accuracies.items()
        for seed in (0, 1)
    }


def test_all_of_it(config, capsys, monkeypatch):
    monkeypatch.setattr(judging, "validate", validated({"n-fgsm": (0.5, 0.3), "fgsm": (0.6, 0.2), "wide": (0.4, 0.4)}))
    strong.main(config)  # wide is more robust, and less accurate than the reference
    found = json.loads((config.out / "strong.json").read_text())
    assert found["choice"]["chosen"] == "fgsm" and [row["name"] for row in found["choice"]["rows"]][0] == "n-fgsm"
    assert {row["attack"]: row["images"] for row in found["judged"]} == {"clean": 6, "pgd-20": 6, "pgd-50": 4}
    assert all(set(row["by seed"]) == {"fgsm", "n-fgsm"} for row in found["judged"])
    # what was not chosen has not seen the test images; best.pt is what counts
    assert not (config.folder("wide", 0) / "evaluation.json").exists()
    assert json.loads((config.folder("fgsm", 1) / "evaluation.json").read_text())["checkpoint"] == "best.pt"
    text = (config.out / "strong.md").read_text()
    assert text in capsys.readouterr().out and "**fgsm**" in text and "| wide | method fgsm, eps 16/255 | 40.0%" in text
    assert (config.out / "fgsm-0" / "metrics.jsonl").is_file()

    # again: nothing is trained or judged a second time
    monkeypatch.setattr(sweep, "train", lambda _: pytest.fail("trained again"))
    monkeypatch.setattr(judging, "evaluate", lambda *_, **__: pytest.fail("judged again"))
    strong.main(config)
    monkeypatch.setattr(judging, "validate", validated({"n-fgsm": (0.7, 0.3), "fgsm": (0.6, 0.2), "wide": (0.4, 0.4)}))
    with pytest.raises(UserError, match="no candidate has n-fgsm's clean accuracy on validation images, 70.0%"):
        strong.main(config)


def test_validation_is_of_the_weights_that_count_and_not_repeated(config, monkeypatch):
    config.stages = ("train",)
    strong.main(config)
    job = judging.Job(("clean", "pgd-20"))
    first = judging.validate(config, job)
    assert {result["n"] for one in first.values() for result in one.values()} == {6} and len(first) == 6
    monkeypatch.setattr(judging, "evaluate", lambda *_, **__: pytest.fail("judged again"))
    assert judging.validate(config, job) == first
    file = config.folder("fgsm", 0) / "validation.json"  # one of an earlier version
    found = json.loads(file.read_text())
    del found["results"]
    file.write_text(json.dumps(found | {"attacks": first["fgsm", 0]}))
    assert judging.validate(config, job) == first
    # the time to accuracy takes the same runs
    runs = sweep.finished(timing.Config(
        data_dir=config.data_dir, recipe="fastat-small", methods=("fgsm", "n-fgsm"), seeds=(0, 1), device="cpu",
        runs=config.runs, out=config.out,
    ))  # fmt: skip
    assert len(runs) == 4
    # an unfinished run ends the choice
    (config.folder("wide", 1) / "summary.json").unlink()
    with pytest.raises(UserError, match="not finished in .*: wide-1: let the stage train end"):
        strong.choose(config)


def test_the_difference_is_taken_within_a_seed():
    found = strong.difference([0.32, 0.34, 0.33], [0.30, 0.31, 0.32])
    assert found["mean"] == pytest.approx(0.02)
    assert found["interval"] == pytest.approx((0.02 - 0.02484, 0.02 + 0.02484), abs=1e-5)
    assert strong.difference([0.3], [0.2]) == {"mean": pytest.approx(0.1), "interval": None}


def test_seeds_that_are_not_judged_are_left_out_and_named(config, monkeypatch):
    results = {("fgsm", 0): (0.4, 9), ("n-fgsm", 0): (0.3, 9), ("fgsm", 1): (0.6, 9), ("n-fgsm", 1): (0.1, 5)}
    monkeypatch.setattr(sweep, "finished", lambda _: {key: key for key in results})
    judged = {key: {"pgd-20": {n: {"accuracy": accuracy, "n": n}}} for key, (accuracy, n) in results.items()}
    monkeypatch.setattr(judging, "results", judged.__getitem__)
    (row,) = strong.compare(config, "fgsm")
    assert row["seeds"] == [0] and row["images"] == 9 and row["difference"]["mean"] == pytest.approx(0.1)
    choice = {"chosen": "fgsm", "images": 6, "rows": []}
    assert "| PGD-20 (9), seeds 0 only | 40.0% | 30.0% | +10.0 |" in strong.to_markdown(config, choice, [row])


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (dict(candidates=("apart", "apert")), "--candidates apert: choose from apart,"),
        (dict(candidates=("apart", "apart")), "--candidates apart apart: give at least 1, and each once"),
        (dict(candidates=()), "give at least 1"),
        (dict(seeds=(0,)), "--seeds 0: give at least 2"),
        (dict(seeds=(1, 1)), "--seeds 1 1: give at least 2, and each once"),
        (dict(stages=("judge", "judge")), "--stages judge judge: give each once"),
        (dict(stages=("chose",)), "--stages chose: choose from train, choose, judge, table"),
        (dict(autoattack_images=-1), "--autoattack-images -1 is too small"),
        (dict(recipe="strang"), "unknown recipe 'strang'"),
    ],
)
def test_settings_that_make_no_sense_are_told(tmp_path, settings, line):
    with pytest.raises(UserError, match=line):
        strong.main(strong.Config(**dict(runs=tmp_path / "runs", out=tmp_path / "out") | settings))
