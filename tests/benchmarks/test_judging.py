"""benchmarks/judging.py and sweep.py: nothing that was judged, trained or written by others is lost."""

import json

import pytest

from apart_fast.errors import UserError
from apart_fast.runs.folder import RunFolder
from benchmarks import judging, methods, sweep


@pytest.fixture
def config(image_folder, tmp_path, tiny_recipe):
    """One run of FGSM that has not begun."""
    tiny_recipe("small", batch_size=16, test_images=6, epochs=1, cycle=1)
    return methods.Config(
        data_dir=image_folder, methods=("fgsm",), seeds=(0,), device="cpu", strong_images=4,
        runs=tmp_path / "runs", out=tmp_path / "out", stages=("train", "judge"),
    )  # fmt: skip


def images(config, attack="pgd-50"):
    """On how many the table says that the run was judged."""
    config.stages = ("table",)
    methods.main(config)
    (row,) = json.loads((config.out / "table.json").read_text())["rows"]
    return row[attack]["images"]


def test_other_numbers_of_images_stay_beside_one_another(config, monkeypatch, capsys):
    methods.main(config)
    config.stages, config.strong_images = ("judge",), 2
    methods.main(config)
    file = config.folder("fgsm", 0) / "judged.json"
    assert [*json.loads(file.read_text())["results"]["pgd-50"]] == ["4", "2"]
    assert images(config) == 2
    config.strong_images = 0
    assert images(config) == 4  # as many results: the larger one
    evaluation = json.loads((config.folder("fgsm", 0) / "evaluation.json").read_text())
    assert evaluation["attacks"]["pgd-50"]["n"] == 4 and evaluation["dataset"] == "folder"
    monkeypatch.setattr(judging, "evaluate", lambda *_, **__: pytest.fail("judged again"))
    config.stages, config.strong_images = ("judge",), 4
    methods.main(config)

    # what earlier versions left, one result for each attack, counts
    kept = file.read_text()
    file.unlink()
    methods.main(config)
    # a damaged file is no reason to judge for hours again without a word
    file.write_text(kept.replace('"n": 4', '"n": null'))
    with pytest.raises(UserError, match="judged.json is damaged .*remove it, and the run is judged again"):
        methods.main(config)


def test_an_evaluation_of_somebody_else_stays(config, capsys):
    config.stages = ("train",)
    methods.main(config)
    file = config.folder("fgsm", 0) / "evaluation.json"
    theirs = json.dumps({"checkpoint": "best.pt", "eps": 0.1, "attacks": {"autoattack": {"n": 10_000}}})
    file.write_text(theirs)
    config.stages = ("judge",)
    methods.main(config)
    assert file.read_text() == theirs
    assert f"note: {file} is of another evaluation and stays" in capsys.readouterr().out
    assert images(config, "pgd-20") == 6


def test_one_number_of_images_for_an_attack(monkeypatch):
    found = [{"pgd-50": {500: {"accuracy": 0.1}, 200: {"accuracy": 0.2}}}, {"pgd-50": {200: {"accuracy": 0.3}}}, {}]
    monkeypatch.setattr(judging, "results", found.__getitem__)
    runs = {("fgsm", seed): seed for seed in range(3)}
    most, asked = ([*judging.on_alike_images(runs, judging.usual_jobs(n, 0)).values()] for n in (1000, 500))
    assert most == [{"pgd-50": {"accuracy": 0.2}}, {"pgd-50": {"accuracy": 0.3}}, {}]
    assert asked == [{"pgd-50": {"accuracy": 0.1}}, {}, {}]


def test_an_unfinished_run_goes_on_on_the_device_of_now(config, monkeypatch, capsys):
    wanted = config.wanted("fgsm", 0)
    wanted.device, wanted.threads = "cuda", 3
    RunFolder(config.folder("fgsm", 0)).create(wanted)
    told = []
    monkeypatch.setattr(sweep, "train", told.append)
    config.stages, config.threads = ("train",), 1
    methods.main(config)
    assert told[0].device == "cpu" and told[0].resume == config.folder("fgsm", 0)
    assert "goes on with the --threads that it began with: 3" in capsys.readouterr().out


def test_a_stopped_sweep_says_how_to_go_on(config, monkeypatch, capsys):
    def stopped(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        methods.main(config)
    assert "goes on when the same command is given again" in capsys.readouterr().out


def test_where_nothing_can_lie_is_refused_before_work(config, monkeypatch):
    monkeypatch.setattr(sweep, "train", lambda _: pytest.fail("trained"))
    runs, file = config.runs, config.runs.parent / "file"
    file.write_text("mine")
    RunFolder(runs / "other-0").create(config.wanted("fgsm", 0))
    for out, line in ((runs, "of the runs"), (runs / "other-0", "of a run"), (file, "file")):
        config.out = out
        with pytest.raises(UserError, match=line):
            methods.main(config)
    config.out = runs.parent / "out"
    (runs / "fgsm-0").mkdir()
    (runs / "fgsm-0" / "last.pt").write_text("mine")
    with pytest.raises(UserError, match="fgsm-0 holds files, but no run: remove it, or choose another --runs"):
        methods.main(config)
    for stage in ("judge", "pictures"):
        config.stages = (stage,)
        with pytest.raises(UserError, match="no finished run"):
            methods.main(config)
