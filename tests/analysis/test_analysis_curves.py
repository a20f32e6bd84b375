"""Robust accuracy over the epochs, and the gradients that the perturbation generator receives."""

import dataclasses
import json
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from apart_fast.analysis import curves, gradients
from apart_fast.analysis.cache import ResultCache, result_key
from apart_fast.analysis.curves import CurvesConfig
from apart_fast.analysis.gradients import GradientsConfig
from apart_fast.analysis.series import open_series
from apart_fast.cli import main
from apart_fast.errors import UserError
from apart_fast.evaluation.attacks import predict
from apart_fast.files import to_json
from apart_fast.models import build_model
from apart_fast.models.default_points import default_points
from apart_fast.runs.config import TrainConfig
from apart_fast.step.points import BlockPoints, match_points

# ---- runs


@pytest.fixture(scope="module")
def trained(settings, tmp_path_factory):
    """A run of APART with the weights of each of its 3 epochs."""
    out = tmp_path_factory.mktemp("runs") / "apart-0"
    with pytest.raises(SystemExit) as end:
        main(["train", *settings, "--keep-weights", "1", "--no-test", "--out", str(out)])
    assert not end.value.code
    return out


@pytest.fixture
def write_run(tmp_path):
    """Writes the records of a finished run that never was: values of `key`, one for each epoch (None: not there)."""

    def write(name, values, key="probe_pgd10", **settings):
        folder = tmp_path / "written" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(to_json(TrainConfig(out=folder, **settings)))
        (folder / "summary.json").write_text("{}")
        lines = [{"epoch": i + 1} | ({} if v is None else {key: v}) for i, v in enumerate(values)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return write


def measured(*runs, **settings):
    return curves.measure(CurvesConfig(runs=runs, **settings))


# ---- cache


def test_cache_keeps_results_between_calls_and_survives_damage(tmp_path):
    path = tmp_path / "new" / "cache.json"
    ResultCache(path).put("a", [1.5, float("nan")])
    again = ResultCache(path)
    assert again.get("a")[0] == 1.5 and math.isnan(again.get("a")[1]) and again.get("b") is None
    for damage in ("{", "[1]", "\xff"):
        path.write_bytes(damage.encode("latin-1"))
        assert ResultCache(path).get("a") is None
    ResultCache(path).put("c", 1)
    assert ResultCache(path).get("c") == 1 and [file.name for file in path.parent.iterdir()] == ["cache.json"]


def test_result_key_sees_weights_and_settings(tmp_path):
    a, b = tmp_path / "a.pt", tmp_path / "b.pt"
    a.write_bytes(b"1"), b.write_bytes(b"2")
    keys = {result_key(a, {"eps": 1}), result_key(a, {"eps": 2}), result_key(b, {"eps": 1})}
    assert len(keys) == 3 and result_key(a, {"x": 1, "y": 2}) == result_key(a, {"y": 2, "x": 1})


# ---- curves


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
    b = write_run("b", [0.1, 0.2], seed=1, width=0.25, omega_device="host")
    assert measured(a, b)["methods"]["apart"]["seeds"] == 2


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


def curve_lines(figure):
    return {line.get_label(): line for line in figure.axes[0].lines if not line.get_label().startswith("_")}


def test_figure_shows_the_mean_over_seeds_and_the_published_epochs_of_the_runs(write_run):
    runs = [
        write_run(f"{m}-{s}", [0.1, 0.2 + 0.1 * s, 0.3], method=m, seed=s) for m in ("apart", "fgsm") for s in (0, 1)
    ]
    lines = curve_lines(curves.draw(measured(*runs, published=True)))
    assert list(lines["apart (2 seeds)"].get_ydata()) == pytest.approx([10, 25, 30])
    assert list(lines["apart, published, full size"].get_xdata()) == [1, 3]
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


# ---- gradients of one network


class Linear(nn.Module):
    """Two classes, logits +-(w . x): the loss is monotone along w, so that FGSM is the strongest attack."""

    def __init__(self, pixels):
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, pixels))

    def forward(self, x):
        score = x.permute(0, 2, 3, 1).flatten(1) @ self.w
        return torch.stack([score, -score], 1)


def batch(n=6, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, size, size, 3, generator=generator), torch.randint(2, (n,), generator=generator)


def residual(name="preact_resnet18"):
    torch.manual_seed(0)
    return build_model(name, num_classes=2, width=0.0625, image_size=(16, 16))


def test_a_linear_loss_is_linear():
    images, labels = batch()
    images = 0.3 + 0.4 * images  # no clipping at 0 and 1
    model = Linear(images[0].numel())
    found = gradients.measure_network(model.eval(), images, labels, [], eps=0.03, batch_size=4, seed=0)
    assert found["fgsm_pgd_cosine"] == pytest.approx(1) and found["gradient_alignment"] == pytest.approx(1)
    assert found["fgsm_gain"] == pytest.approx(found["pgd_gain"], rel=1e-4) and found["blocks"] == []
    # dCE/dx = -2 (1 - p) w for the right class of probability p
    p = predict(model, images).softmax(1).gather(1, labels[:, None])[:, 0]
    assert found["input_gradient"] == pytest.approx((2 * (1 - p) * model.w.norm()).mean().item(), rel=1e-5)
    assert found["fgsm_gain"] > 0


def test_cosine_is_undefined_for_a_zero_and_does_not_underflow():
    a = torch.tensor([[1.0, 0], [0, 0], [1e-30, 0]])
    found = gradients.cosine(a, torch.tensor([[1.0, 1], [1, 1], [1e-30, 1e-30]]))
    assert found[0] == pytest.approx(0.5**0.5) and found[1].isnan() and found[2] == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("name", ["preact_resnet18", "preact_resnet50"])  # 50: the shortcut takes the activation too
def test_block_gradients_are_those_whose_signs_apart_takes(name):
    images, labels = batch(4, 16)
    model = residual(name).train()
    points = match_points(model, default_points(model))
    blocks = BlockPoints(model, default_points(model))
    leaf = images.clone().requires_grad_()
    with blocks.capturing() as signs:
        F.cross_entropy(predict(model, leaf), labels, reduction="sum").backward()
    blocks.remove()
    with gradients._capturing(model, points) as passed:
        loss = F.cross_entropy(predict(model, leaf), labels, reduction="sum")
        found = torch.autograd.grad(loss, [passed[point] for point in points])
    assert all(torch.equal(g.sign().to(torch.int8), s) for g, s in zip(found, signs, strict=True))
    inputs, norms = gradients.gradient_norms(model, images, labels, points)
    assert torch.allclose(norms, torch.stack([g.flatten(1).norm(dim=1) for g in found], 1).double(), rtol=1e-4)
    assert torch.allclose(inputs, leaf.grad.flatten(1).norm(dim=1).double(), rtol=1e-4)
    assert all(not module._forward_pre_hooks for module in model.modules())


def test_measuring_leaves_the_network_as_it_was_and_batches_do_not_matter_in_eval_mode():
    images, labels = batch(7, 16)
    model = residual().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    points = match_points(model, default_points(model))
    found = [
        gradients.measure_network(model, images, labels, points, eps=0.03, batch_size=n, seed=0) for n in (7, 3, 7)
    ]
    assert not model.training and all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert found[0] == found[2] and len(found[0]["blocks"]) == 8
    for key in ("gradient_alignment", "fgsm_gain", "pgd_gain"):
        assert found[0][key] == pytest.approx(found[1][key], rel=1e-3, abs=1e-5)


def test_training_mode_is_used_for_the_norms():
    images, labels = batch(6, 16)
    model = residual()
    found = gradients.measure_network(model.eval(), images, labels, [], eps=0.03, batch_size=6, seed=0)
    expected, _ = gradients.gradient_norms(model.train(), images, labels, [])
    assert found["input_gradient"] == pytest.approx(expected.mean().item(), rel=1e-5)


# ---- gradients of runs


def test_every_keeps_the_last_epoch():
    assert gradients.measured_epochs([1, 2, 3, 4, 5], 2) == [1, 3, 5]
    assert gradients.measured_epochs([2, 4, 6, 8], 3) == [2, 8]
    with pytest.raises(UserError, match="--every 0"):
        GradientsConfig(runs=(), every=0).check()


def test_gradients_of_a_run_are_kept_and_drawn(trained, image_folder, tmp_path, monkeypatch, capsys):
    config = GradientsConfig(runs=(trained,), data_dir=image_folder, out=tmp_path, every=2, device="cpu")
    gradients.run(config)
    numbers = json.loads((tmp_path / "gradients.json").read_text())
    (run,) = numbers["runs"]
    records = open_series([trained], weights=True)[0].records
    assert run["epochs"] == [1, 3] and run["points"][0] == "layer1.0.relu1:output" and len(run["blocks"][0]) == 8
    assert run["alpha"] == [records[0]["alpha"], records[2]["alpha"]] and len(run["alpha_blocks"][1]) == 8
    assert all(-1 <= value <= 1 for key in ("fgsm_pgd_cosine", "gradient_alignment") for value in run[key])
    assert "last epoch 3: cos(FGSM, PGD-20)" in capsys.readouterr().out
    assert all((tmp_path / name).stat().st_size for name in ("gradients.png", "gradients.svg"))

    cache = tmp_path / "gradients-cache.json"
    cache.write_text(json.dumps(dict.fromkeys(json.loads(cache.read_text()), {"blocks": []})))
    assert gradients.measure(config)["runs"] == [run]  # what is no result is measured anew
    monkeypatch.setattr(gradients, "measure_network", lambda *_, **__: pytest.fail("measured twice"))
    assert gradients.measure(config)["runs"] == [run]
    with pytest.raises(pytest.fail.Exception):  # another eps is another result
        gradients.measure(dataclasses.replace(config, eps="4/255"))


def test_figure_of_methods_without_learned_steps_and_without_numbers(trained, image_folder, tmp_path):
    fixed = tmp_path / "fgsm-0"
    shutil.copytree(trained, fixed)
    for name, old, new in (("config.json", '"apart"', '"fgsm"'), ("metrics.jsonl", '"alpha', '"no_alpha')):
        (fixed / name).write_text((fixed / name).read_text().replace(old, new))
    numbers = gradients.measure(GradientsConfig(runs=(fixed,), data_dir=image_folder, out=tmp_path, images=4, every=3))
    (run,) = numbers["runs"]
    assert run["method"] == "fgsm" and run["alpha"] == [None] and run["alpha_blocks"] == [None]
    run["gradient_alignment"] = [math.nan]  # a network that is sure of every image has no direction
    panels = gradients.draw(numbers).axes
    assert [text.get_text() for text in panels[4].texts][-1] == "none in these runs"
    assert len(panels[2].lines) == 8 and not panels[5].lines
