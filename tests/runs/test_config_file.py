"""Settings in a file: YAML, or the config.json of a run; flags win."""

from dataclasses import replace
from pathlib import Path

import pytest

from apart_fast.cli import main
from apart_fast.commands import table
from apart_fast.errors import UserError
from apart_fast.files import to_json
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.config_file import read_settings


@pytest.fixture
def write(tmp_path):
    def write(text, name="mine.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def settings_of(words, monkeypatch):
    """What `train.py` with these words would train with."""
    found = []
    monkeypatch.setattr(table, "TRAIN", found.append)
    table.read_train_words([str(word) for word in words])()
    return found[0]


def test_flags_win_over_the_file_and_the_file_over_the_recipe(write, monkeypatch):
    path = write("recipe: strong\nlr: 1e-1\nbatch-size: 64\namp: true\neps: 8/255\npoints: [layer1.*.conv1]\nema: 0\n")
    found = settings_of(["--config", path, "--lr", "0.05", "--no-amp"], monkeypatch)
    assert found == TrainConfig.of(
        "strong", config=path, lr=0.05, batch_size=64, eps="8/255", points=("layer1.*.conv1",), ema=0.0
    )
    assert found.epochs == 100 and type(found.ema) is float
    assert settings_of([f"--config={path}", "--recipe", "strong"], monkeypatch).batch_size == 64
    with pytest.raises(UserError, match="--recipe small and the recipe strong of .* contradict each other"):
        settings_of(["--config", path, "--recipe", "small"], monkeypatch)
    plain = settings_of(["--config", write("lr: 0.3"), "--recipe", "small"], monkeypatch)
    assert (plain.recipe, plain.lr, plain.width) == ("small", 0.3, 0.25)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr: 1e-3", {"lr": 1e-3}),  # text in YAML 1.1
        ("eta: 5e-08", {"eta": 5e-8}),
        ("epochs: 010", {"epochs": 10}),  # 8 in YAML 1.1
        ("eps: 0.031\neval-eps: 8/255", {"eps": "0.031", "eval_eps": "8/255"}),
        ("out: 2026-11-25", {"out": Path("2026-11-25")}),  # a date in YAML 1.1
        ("train_images: null\nval_images: 10 # ten", {"train_images": None, "val_images": 10}),
        ("schedule: multistep\nmilestones: [10, 20]", {"schedule": "multistep", "milestones": (10, 20)}),
        ('{"lr": 2, "data_dir": "d\\u00e4"}', {"lr": 2.0, "data_dir": Path("dä")}),
        ("---\nlr: 1.\n...\n", {"lr": 1.0}),
    ],
)
def test_values_are_read_as_they_are_meant(write, text, expected):
    found = read_settings(write(text))
    assert found == expected and list(map(type, found.values())) == list(map(type, expected.values()))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("learning_rate: 0.1", "learning_rate is not known"),
        ("epoch: 3", "epoch is not known, did you mean epochs?"),
        ("optimizer: {lr: 0.1}", "optimizer is not known, and settings are not nested"),
        ("lr: {peak: 0.1}", "lr is an object instead of a number"),
        ("lr: 0.1\nlr: 0.2", "lr is given twice"),
        ("batch-size: 1\nbatch_size: 2", "batch_size is given twice"),
        ("lr: fast", "lr is text instead of a number"),
        ("lr: 0.1 0.2", "lr is text instead of a number"),
        ("epochs: 3.5", "epochs is a number instead of a whole number"),
        ("epochs: true", "epochs is true or false instead of a whole number"),
        ("amp: yes", "amp is text instead of true or false"),
        ("model: 5", "model is a whole number instead of text"),
        ("points: layer1", "points is text instead of a list"),
        ("milestones: [1, a]", "milestones[1] is text instead of a whole number"),
        ("schedule: step", "schedule is text instead of one of triangle, onecycle"),
        ("recipe: papper", "recipe is text instead of one of paper"),
        ("lr: .nan", "lr is not finite"),
        ("data_dir: ''", "data_dir is empty"),
        ("", "it is empty"),
        ("# nothing", "it is empty"),
        ("- lr", "it is a list"),
        ("lr", "it is no list of names and values"),
        ("1: 2", "1 is not known"),
        ("[a]: 2", "a name is no text"),
        ("lr: [", "line "),
        ("lr: 0.1\n\tepochs: 3", "line 2"),
        ("lr: 1\n---\nlr: 2", "line "),
        ("lr: !!python/object/apply:os.system ['true']", "python/object"),
        ("lr: &a [*a]", "lr is a list instead of a number"),
        ("lr: *b", "line "),
        ("a: " + "[" * 5000, "nested too deeply"),
        (b"lr: \xff", "utf-8"),
        (b"\x00\x01", "#x0000"),
        (b"lr: 1\n" + b"#" * 2**20, "too large"),
        (f"epochs: {'9' * 5000}", "integer string conversion"),
    ],
)
def test_what_it_cannot_mean_is_one_line(write, capsys, text, reason):
    path = write(text)
    with pytest.raises(SystemExit) as end:
        main(["train", "--config", str(path)])
    error = capsys.readouterr().err
    assert end.value.code == 2 and reason in error and str(path) in error and error.count("\n") == 1


def test_json_is_read_alike(write):
    for text, reason in (('{"lr": 1, "lr": 2}', "lr is given twice"), ('{"lr": NaN}', "not finite"), ("{", "line 1")):
        with pytest.raises(UserError, match=reason):
            read_settings(write(text, "mine.json"))


def test_a_missing_file_is_told(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UserError, match=f"no settings at {path}: name a YAML file"):
            read_settings(path)


def test_what_a_run_has_written_gives_its_settings(tmp_path, monkeypatch):
    saved = TrainConfig.of("strong", out=tmp_path, eta=6e-8, points=("a", "b"), data_dir=Path("d\U0001f600"))
    (tmp_path / "config.json").write_text(to_json(saved))
    for path in (tmp_path / "config.json", tmp_path):
        found = settings_of(["--config", path, "--out", "new"], monkeypatch)
        assert found == TrainConfig.of(**{**vars(saved), "out": Path("new"), "config": path})
    assert settings_of(["--config", tmp_path], monkeypatch).out is None  # the run there stays as it is
    other = tmp_path / "copy.yaml"
    other.write_text((tmp_path / "config.json").read_text().replace("\\ud83d\\ude00", ""))
    assert settings_of(["--config", other], monkeypatch).eta == 6e-8


def test_a_resumed_run_takes_the_same_file_and_no_other_settings(tmp_path, write, monkeypatch):
    path = write("lr: 0.1\nrecipe: small")
    config = settings_of(["--config", path, "--resume", "auto", "--out", tmp_path / "run"], monkeypatch)
    saved = replace(config, resume=None)
    assert config.resumed(saved).lr == 0.1
    write("lr: 0.3\nrecipe: small")
    config = settings_of(["--config", path, "--resume", "x"], monkeypatch)
    with pytest.raises(UserError, match="a resumed run keeps its settings: leave out --lr"):
        config.resumed(saved)


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--data-dir", "data"], "data_dir", Path("data")),
        (["--data_dir=data"], "data_dir", Path("data")),
        (["--download"], "download", True),
        (["--progress"], "progress", True),
    ],
)
def test_a_default_that_is_named_counts_in_a_resumed_run(words, name, value, tmp_path, monkeypatch):
    saved = TrainConfig(out=tmp_path, data_dir=Path("/old"), download=False, progress=False, epochs=60, seed=3)
    config = settings_of(["--resume", tmp_path, *words], monkeypatch)
    assert config.resumed(saved) == replace(saved, **{name: value})


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["--epochs", "30"], "--epochs"),
        (["--seed=0"], "--seed"),
        (["--recipe", "paper"], "--recipe"),
        (["--no-amp"], "--amp"),
    ],
)
def test_a_default_that_is_named_must_not_change_a_run(words, flag, tmp_path, monkeypatch):
    saved = TrainConfig.of("small", out=tmp_path, epochs=60, seed=3, amp=True)
    config = settings_of(["--resume", tmp_path, *words], monkeypatch)
    with pytest.raises(UserError, match=f"keeps its settings: leave out {flag}"):
        config.resumed(saved)


def test_a_default_that_a_file_names_counts_in_a_resumed_run(tmp_path, write, monkeypatch):
    saved = TrainConfig(out=tmp_path, data_dir=Path("/old"), lr=0.1)
    path = write("data-dir: data")
    assert settings_of(["--config", path, "--resume", "x"], monkeypatch).resumed(saved).data_dir == Path("data")
    path = write("lr: 0.2")
    with pytest.raises(UserError, match="leave out --lr"):
        settings_of(["--config", path, "--resume", "x"], monkeypatch).resumed(saved)
