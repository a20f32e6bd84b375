"""Robust accuracy over the epochs."""

import dataclasses
import json

import pytest

from apart_fast.analysis import curves
from apart_fast.analysis.settings import CurvesConfig
from apart_fast.cli import main
from apart_fast.errors import UserError


def measured(*runs, **settings):
    return curves.measure(CurvesConfig(runs=runs, **settings))


def test_best_last_and_drop_of_seeds(write_run):
    a = write_run("a", [0.1, 0.4, 0.4, 0.3], method="fgsm", seed=1)
    b = write_run("b", [0.2, 0.3, 0.5, 0.5], method="fgsm", seed=0)
    numbers = measured(a, b)
    assert [(run["name"], run["seed"]) for run in numbers["runs"]] == [("b", 0), ("a", 1)]
    second = numbers["runs"][1]
    assert second["best"] == {"epoch": 2, "value": 0.4} and second["drop"] == pytest.approx(0.1)
    summary = numbers["methods"]["fgsm"]
    assert summary["seeds"] == 2
    assert summary["best"] == pytest.approx({"mean": 0.45, "min": 0.4, "max": 0.5})
    assert summary["last"] == pytest.approx({"mean": 0.4, "min": 0.3, "max": 0.5})
    assert summary["drop"] == pytest.approx({"mean": 0.05, "min": 0.0, "max": 0.1})


def test_runs_of_one_method_with_other_settings_stay_apart(write_run):
    a = write_run("a", [0.1, 0.2], method="apart", step_decay=400.0, probe_images=10)
    b = write_run("b", [0.1, 0.2], method="apart", step_decay=1200.0)
    c = write_run("c", [0.1, 0.2], method="pgd")
    assert list(measured(a, b, c)["methods"]) == ["apart (step decay 400.0)", "apart (step decay 1200.0)", "pgd-10"]
    again = write_run("again", [0.1, 0.2], method="pgd-10", val_every=1)
    with pytest.raises(UserError, match="c and again are one run twice"):
        measured(c, again)


def test_how_a_run_was_asked_for_does_not_part_its_seeds(write_run):
    a = write_run("a", [0.1, 0.2], recipe="small", width=0.25)
    b = write_run("b", [0.1, 0.2], seed=1, width=0.25, omega_device="host", config=a / "config.json", log=("wandb",))
    assert measured(a, b)["methods"]["apart"]["seeds"] == 2


def test_runs_that_looked_within_different_radii_are_not_put_together(write_run):
    a = write_run("a", [0.1, 0.2], eval_eps="8/255")
    with pytest.raises(UserError, match=r"different radii \(8/255, 4/255\): add --judge"):
        measured(a, write_run("b", [0.1, 0.2], seed=1, eval_eps="4/255"))
    c = write_run("c", [0.1, 0.2], seed=1, eval_eps=str(8 / 255))
    assert measured(a, c)["methods"]["apart"]["seeds"] == 2


def test_two_folders_of_images_are_two_data_sets(write_run, tmp_path):
    a = write_run("a", [0.1, 0.2], dataset="folder", data_dir=tmp_path / "cats")
    b = write_run("b", [0.1, 0.2], dataset="folder", data_dir=tmp_path / "dogs", seed=1)
    assert len(measured(a, b)["methods"]) == 2


def test_one_measure_for_all_runs(write_run):
    every = write_run("every", [0.1, 0.2], key="val_pgd20", method="fgsm")
    some = write_run("some", [None, 0.2], key="val_pgd20", method="apart")
    probed = write_run("probed", [0.1, 0.2], method="pgd-10")
    assert measured(every)["measure"] == "val_pgd20"
    numbers = measured(every, some)
    assert numbers["measure"] == "val_pgd20" and numbers["runs"][1]["epochs"] == [2]
    assert measured(probed)["measure"] == "probe_pgd10"
    with pytest.raises(UserError, match="in common: add --judge"):
        measured(every, probed)


def test_curves_refuse_what_is_not_a_finished_run(write_run, tmp_path):
    run = write_run("a", [0.1])
    with pytest.raises(UserError, match="kept no weights"):
        measured(run, judge=True)
    for content in (b"", b"\x93NUMPY\x00\xff\n", b'{"epoch": 1, "probe_pgd10": "none"}\n'):
        (run / "metrics.jsonl").write_bytes(content)
        with pytest.raises(UserError, match="recorded no robust accuracy"):
            measured(run)
    (run / "summary.json").unlink()
    with pytest.raises(UserError, match="is not finished"):
        measured(run)
    with pytest.raises(UserError, match="no runs"):
        measured()


def test_an_unfinished_run_is_drawn_as_far_as_it_is_where_that_is_asked_for(write_run, tmp_path, capsys):
    ended, stopped = write_run("ended", [0.1, 0.2, 0.3], method="fgsm"), write_run("stopped", [0.2, 0.1], epochs=30)
    (stopped / "summary.json").unlink()
    words = ["analyze", "curves", str(ended), str(stopped), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2 and "stopped is not finished" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main([*words, "--unfinished"])
    assert not end.value.code
    assert "note: stopped is not finished: it ends at epoch 2 of 30" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "out" / "curves.json").read_text())
    assert [(run["finished"], run["last"]) for run in numbers["runs"]] == [(True, 0.3), (False, 0.1)]
    assert list(curve_lines(curves.draw(numbers))) == ["fgsm", "apart, to epoch 2 of 30"]
    ahead = curve_lines(curves.draw(measured(ended, stopped, unfinished=True, published=True)))
    assert max(ahead["apart, published, full size"].get_xdata()) == 29


def test_beside_published_curves_pgd_20_is_preferred(write_run):
    run = write_run("a", [None, 0.2], key="val_pgd20")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line | {"probe_pgd10": 0.3}) + "\n" for line in lines))
    assert measured(run)["measure"] == "probe_pgd10" and measured(run, published=True)["measure"] == "val_pgd20"


def test_published_curves_stand_beside_runs_of_their_data_and_radius_alone(write_run):
    other = write_run("other", [0.1, 0.2], dataset="svhn")
    with pytest.raises(UserError, match="other is of svhn, judged within 8/255: leave --published out"):
        measured(other, published=True)
    near = write_run("near", [0.1, 0.2], eval_eps="2/255")
    with pytest.raises(UserError, match="near is of cifar10, judged within 2/255"):
        measured(near, published=True)
    assert measured(write_run("same", [0.1, 0.2], eval_eps="0.031"), published=True)["published"]


def curve_lines(figure):
    return {line.get_label(): line for line in figure.axes[0].lines if not line.get_label().startswith("_")}


def test_figure_shows_the_mean_over_seeds_and_the_published_epochs_of_the_runs(write_run):
    runs = [
        write_run(f"{m}-{s}", [0.1, 0.2 + 0.1 * s, 0.3], method=m, seed=s) for m in ("apart", "fgsm") for s in (0, 1)
    ]
    lines = curve_lines(curves.draw(measured(*runs, published=True)))
    assert list(lines["apart (2 seeds)"].get_ydata()) == pytest.approx([10, 25, 30])
    assert list(lines["apart, published, full size"].get_xdata()) == [1, 3]
    assert list(lines["fgsm, published, full size"].get_ydata()) == pytest.approx([22.9, 25.4, 27.3])
    assert lines["fgsm, published, full size"].get_color() == lines["fgsm (2 seeds)"].get_color()
    alone = curve_lines(curves.draw(measured(runs[0], published=True)))
    assert list(alone) == ["apart", "apart, published, full size", "pgd-10, published, full size"]
    assert lines["apart, published, full size"].get_color() == lines["apart (2 seeds)"].get_color()
    assert list(curve_lines(curves.draw(measured(runs[0])))) == ["apart"]


def test_judging_is_resumed_and_says_the_same(trained, image_folder, tmp_path, monkeypatch, capsys):
    config = CurvesConfig(runs=(trained,), judge=True, data_dir=image_folder, out=tmp_path, device="cpu")
    judge, calls = curves._judge, []

    def stopping(*words):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return judge(*words)

    monkeypatch.setattr(curves, "_judge", stopping)
    with pytest.raises(KeyboardInterrupt):
        curves.run(config)
    curves.run(config)
    assert len(calls) == 1 + 1 + 2  # the first epoch is not judged again
    numbers = json.loads((tmp_path / "curves.json").read_text())
    run = numbers["runs"][0]
    assert numbers["measure"] == "test_pgd20" and run["epochs"] == [1, 2, 3] and run["images"] == 12
    assert all(robust <= clean for robust, clean in zip(run["robust"], run["clean"], strict=True))
    assert all((tmp_path / name).stat().st_size for name in ("curves.png", "curves.svg"))
    assert capsys.readouterr().out.startswith("apart, 1 seed: best ")
    monkeypatch.setattr(curves, "_judge", judge)
    cache = tmp_path / "curves-cache.json"
    cache.write_text(json.dumps(dict.fromkeys(json.loads(cache.read_text()), [0.5])))
    assert curves.measure(config)["runs"] == numbers["runs"]  # what is no pair is judged anew
    fresh = curves.measure(dataclasses.replace(config, out=tmp_path / "fresh"))
    assert fresh["runs"] == numbers["runs"]
