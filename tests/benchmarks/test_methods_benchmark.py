"""benchmarks/methods.py: one command trains, judges, times, tabulates and draws, and repeats nothing."""

import json
from dataclasses import replace

import pytest

from apart_fast.errors import UserError
from benchmarks import judging, methods, sweep
from benchmarks.methods_table import make_cell

SMALL = dict(batch_size=8, probe_images=6, test_images=6)


@pytest.fixture
def config(image_folder, tmp_path, tiny_recipe):
    tiny_recipe("small", **SMALL)
    return methods.Config(
        data_dir=image_folder,
        methods=("fgsm", "pgd-10"),
        seeds=(0,),
        device="cpu",
        runs=tmp_path / "runs",
        out=tmp_path / "out",
        strong_images=4,
        rounds=1,
    )


def test_all_of_it(config, capsys, monkeypatch, tiny_recipe):
    methods.main(config)
    table = json.loads((config.out / "table.json").read_text())["rows"]
    assert [row["method"] for row in table] == ["fgsm", "pgd-10"]
    for row in table:
        evaluation = json.loads((config.folder(row["method"], 0) / "evaluation.json").read_text())
        clean = evaluation["attacks"]["clean"]["accuracy"]
        assert row["clean"] == {"mean": clean, "deviation": None, "worst": clean, "seeds": 1, "images": 6}
        assert row["pgd-50"]["images"] == 4 and "autoattack" not in row
        card = json.loads((config.out / f"{row['method']}-0" / "card.json").read_text())
        assert card["evaluation"]["further"] == evaluation and set(card["model"]["files"]) >= {"last.pt"}
    ratios = {row["method"]: row["step"]["over_reference"]["median"] for row in table}
    assert ratios["pgd-10"] == 1 and ratios["fgsm"] < 1
    text = (config.out / "table.md").read_text()
    assert text.count("\n| ") == 4 and "| fgsm |" in text and text in capsys.readouterr().out
    for name in ("collapse", "curves", "gradients", "perturbations"):
        for ending in ("json", "png", "svg"):
            assert (config.out / f"{name}.{ending}").stat().st_size
    assert "pgd-10" in (config.out / "report.html").read_text()

    # again: nothing is trained or judged a second time
    monkeypatch.setattr(sweep, "train", lambda _: pytest.fail("trained again"))
    monkeypatch.setattr(judging, "evaluate", lambda *_, **__: pytest.fail("judged again"))
    methods.main(config)
    # an unfinished run is left out, and said so
    summary = config.folder("pgd-10", 0) / "summary.json"
    kept = summary.read_text()
    summary.unlink()
    config.stages = ("table",)
    methods.main(config)
    assert "pgd-10-0 is not finished: left out" in capsys.readouterr().out
    summary.write_text(kept)
    # and a run made with other settings is not taken for this one
    tiny_recipe("small", **SMALL, lr=0.1)
    with pytest.raises(UserError, match="made with another lr"):
        methods.main(config)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (dict(stages=("table",)), "no finished run"),
        (dict(stages=("tabel",)), "--stages tabel: choose from train, judge,"),
        (dict(methods=()), "--methods : give at least 1"),
        (dict(methods=("pgd",)), "give its whole name, pgd-10"),
        (dict(seeds=(0, 0)), "--seeds 0 0: give each once"),
        (dict(strong_images=-1), "--strong-images -1 is too small: give at least 0"),
        (dict(rounds=0), "--rounds 0 is too small"),
    ],
)
def test_what_cannot_be_done_is_said(config, settings, line):
    config = replace(config, **settings)
    with pytest.raises(UserError, match=line):
        methods.main(config)


def test_what_some_seeds_lack_is_said_in_the_table():
    row = {"seeds": [0, 1], "pgd-50": {"mean": 0.5, "worst": 0.5, "seeds": 1, "images": 100}}
    assert make_cell(row, "pgd-50", 200) == "50.0% (1 of 2 seeds, 100 images)"
    row["pgd-50"] |= {"seeds": 2, "images": 200}
    assert make_cell(row, "pgd-50", 200) == "50.0%" and make_cell(row, "autoattack", 200) == "-"
