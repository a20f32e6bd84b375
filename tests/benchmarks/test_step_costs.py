"""benchmarks/step_costs.py: whose step was timed where."""

import json

import pytest

from apart_fast.errors import UserError
from apart_fast.runs.environment import environment
from benchmarks import step_costs
from benchmarks.methods import Config


@pytest.fixture
def config(image_folder, tmp_path, tiny_recipe):
    tiny_recipe("small", batch_size=8)
    return Config(data_dir=image_folder, device="cpu", runs=tmp_path / "runs", out=tmp_path / "out")


def test_the_times_of_others_stay_and_the_reference_is_timed_along(config, capsys):
    first = step_costs.measure_costs(config, ("standard",), 1)
    assert first["standard"]["over_reference"]["median"] < 1
    second = step_costs.measure_costs(config, ("fgsm",), 2)
    steps = json.loads((config.out / "cost.json").read_text())["steps"]
    assert [*steps] == ["standard", "pgd-10", "fgsm"] and steps["fgsm"]["rounds"] == 2
    found = step_costs.costs(config, ("standard", "fgsm", "n-fgsm"))
    assert found == {**first, **second} and not capsys.readouterr().out
    assert not step_costs.taken_here(found, 1)  # not in one process
    assert step_costs.taken_here(second, 2) and not step_costs.taken_here(second, 3)
    config.threads = 1
    assert not step_costs.costs(config, ("fgsm",))
    assert "cost.json is of other settings for fgsm: not used" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("field", "value"), [("device", "Another CPU"), ("torch", "1.0"), ("cores", 1000), ("threads", 77)]
)
def test_times_of_another_machine_are_told_apart(field, value):
    cost = {"seconds": 1.0, "over_reference": None, "rounds": 5, "environment": environment()}
    assert step_costs.taken_here({"fgsm": cost}, 5)
    elsewhere = cost | {"environment": environment() | {field: value}}
    assert not step_costs.taken_here({"fgsm": elsewhere}, 5)
    assert field != "threads" or step_costs.taken_here({"fgsm": elsewhere}, 5, 77)
    assert step_costs.where({"fgsm": elsewhere}).startswith(str(elsewhere["environment"]["device"]))


@pytest.mark.parametrize("text", ['{"steps": []}', '{"steps": {"fgsm": 3}}', '{"steps": {"fgsm": {"seconds": null}}}'])
def test_a_damaged_file_is_told(config, text):
    config.out.mkdir()
    (config.out / "cost.json").write_text(text)
    with pytest.raises(UserError, match="cost.json is damaged .*remove it, and the steps are timed again"):
        step_costs.costs(config, ("fgsm",))
