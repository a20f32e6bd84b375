"""What a method does not use is told when a run begins, and its card leaves it out."""

import json

import pytest

from apart_fast.cli import main
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.unused import lines, unused


@pytest.mark.parametrize(
    ("method", "given", "told"),
    [
        ("liet", dict(label_smoothing=0.4), ["draws its labels anew in each pass: --label-smoothing 0.4"]),
        ("liet", dict(recipe="fastat"), ["draws its labels anew in each pass: --label-smoothing 0.4"]),
        ("fgsm", dict(label_smoothing=0.4), []),
        ("fgsm", dict(omega_dtype="int8"), ["remembers nothing of each example: --omega-dtype int8"]),
        ("standard", dict(eps="4/255"), ["perturbs nothing: --eps 4/255"]),
        ("trades-10", dict(eps="4/255"), []),
        ("pgd-10", dict(eta=1e-7), ["learns no step sizes: --eta 1e-07"]),
        ("fgsm-pgi", dict(omega_dtype="float32", step_decay=400.0), ["learns no step sizes: --step-decay 400.0"]),
        ("fgsm+", dict(points=("a", "b"), step_decay=400.0), ["has no block steps: --points a b"]),
        ("fgsm", dict(recipe="strong"), []),  # what it sets for APART
        ("apart", dict(omega_dtype="int8", eta=1e-7, step_decay=400.0, label_smoothing=0.1, points=("a",)), []),
    ],
)
def test_each_setting_is_told(method, given, told):
    config = TrainConfig.of(**{"recipe": "paper"} | given, method=method)
    assert lines(config) == [f"note: {method} {line} does not apply" for line in told]
    assert len(unused(config)) == len(told)


@pytest.mark.parametrize(
    ("method", "told"),
    [
        *(
            (name, True)
            for name in ("fgsm-rs-cs", "fgsm-mep-cs", "fgsm-uap", "fgsm-cuap", "awp-pgd-2", "liet", "fgsm-pgi")
        ),
        *((name, False) for name in ("apart", "trades-2", "atta-1", "apart+js")),
    ],
)
def test_batches_that_are_parts_of_one_are_told_where_that_is_another_training(method, told):
    said = lines(TrainConfig(method=method, batch_size=32, grad_accum=4))
    assert bool(said) == told and lines(TrainConfig(method=method)) == []
    if told:
        assert "with --grad-accum 4 at those of 32 images" in said[0]


def test_a_run_says_so_and_its_card_leaves_it_out(capsys, settings, tmp_path):
    flags = ("--method", "liet", "--label-smoothing", "0.4", "--eta", "1e-7", "--epochs", "1", "--cycle", "1")
    with pytest.raises(SystemExit) as end:
        main(["train", *settings, *flags, "--out", str(tmp_path / "run")])
    assert not end.value.code
    out = capsys.readouterr().out
    assert out.count("does not apply") == 2 and "--label-smoothing 0.4" in out and "--eta 1e-07" in out
    training = json.loads((tmp_path / "run" / "card.json").read_text())["training"]
    assert "label_smoothing" not in training and training["lr"] == 0.05
