"""The gradients that the perturbation generator receives."""

import dataclasses
import json
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from apart_fast.analysis import gradients
from apart_fast.analysis import network_gradients as network
from apart_fast.analysis.inputs import every_nth, open_runs
from apart_fast.analysis.settings import GradientsConfig
from apart_fast.errors import UserError
from apart_fast.evaluation.attacks import predict
from apart_fast.models import build_model
from apart_fast.models.default_points import default_points
from apart_fast.step.points import BlockPoints, match_points

# ---- of one network


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
    found = network.measure_network(model.eval(), images, labels, [], eps=0.03, batch_size=4, seed=0)
    assert found["fgsm_pgd_cosine"] == pytest.approx(1) and found["gradient_alignment"] == pytest.approx(1)
    assert found["fgsm_gain"] == pytest.approx(found["pgd_gain"], rel=1e-4) and found["blocks"] == []
    # dCE/dx = -2 (1 - p) w for the right class of probability p
    p = predict(model, images).softmax(1).gather(1, labels[:, None])[:, 0]
    assert found["input_gradient"] == pytest.approx((2 * (1 - p) * model.w.norm()).mean().item(), rel=1e-5)
    assert found["fgsm_gain"] > 0


def test_cosine_is_undefined_for_a_zero_and_does_not_underflow():
    a = torch.tensor([[1.0, 0], [0, 0], [1e-30, 0]])
    found = network.cosine(a, torch.tensor([[1.0, 1], [1, 1], [1e-30, 1e-30]]))
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
    blocks = BlockPoints(model, default_points(model), keep=torch.clone)
    with blocks.capturing() as found:
        torch.autograd.grad(F.cross_entropy(predict(model, leaf), labels, reduction="sum"), leaf)
    blocks.remove()
    assert all(torch.equal(g.sign().to(torch.int8), s) for g, s in zip(found, signs, strict=True))
    inputs, norms = network.gradient_norms(model, images, labels, points)
    assert torch.allclose(norms, torch.stack([g.flatten(1).norm(dim=1) for g in found], 1).double(), rtol=1e-4)
    assert torch.allclose(inputs, leaf.grad.flatten(1).norm(dim=1).double(), rtol=1e-4)
    assert all(not module._forward_pre_hooks for module in model.modules())


def test_block_gradients_of_a_network_that_works_in_place_are_those_of_its_twin():
    images, labels = batch(4, 16)
    found = []
    for inplace in (False, True):
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace), nn.Flatten(), nn.Linear(6 * 14 * 14, 5)
        model = nn.Sequential(*layers)
        found.append(network.gradient_norms(model, images, labels, [("1", "output"), ("2", "input"), ("2", "output")]))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=0)
    with pytest.raises(UserError, match="'9:input' matches no submodule"):
        network.gradient_norms(model, images, labels, [("9", "input")])


def test_measuring_leaves_the_network_as_it_was_and_batches_do_not_matter_in_eval_mode():
    images, labels = batch(7, 16)
    model = residual().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    points = match_points(model, default_points(model))
    found = [network.measure_network(model, images, labels, points, eps=0.03, batch_size=n, seed=0) for n in (7, 3, 7)]
    assert not model.training and all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert found[0] == found[2] and len(found[0]["blocks"]) == 8
    for key in ("gradient_alignment", "fgsm_gain", "pgd_gain"):
        assert found[0][key] == pytest.approx(found[1][key], rel=1e-3, abs=1e-5)


def test_training_mode_is_used_for_the_norms():
    images, labels = batch(6, 16)
    model = residual()
    found = network.measure_network(model.eval(), images, labels, [], eps=0.03, batch_size=6, seed=0)
    expected, _ = network.gradient_norms(model.train(), images, labels, [])
    assert found["input_gradient"] == pytest.approx(expected.mean().item(), rel=1e-5)


# ---- of runs


def test_every_keeps_the_last_epoch():
    assert every_nth([1, 2, 3, 4, 5], 2) == [1, 3, 5]
    assert every_nth([2, 4, 6, 8], 3) == [2, 8]
    with pytest.raises(UserError, match="--every 0"):
        GradientsConfig(runs=(), every=0).check()


def test_gradients_of_a_run_are_kept_and_drawn(trained, image_folder, tmp_path, monkeypatch, capsys):
    config = GradientsConfig(runs=(trained,), data_dir=image_folder, out=tmp_path, every=2, device="cpu")
    gradients.run(config)
    numbers = json.loads((tmp_path / "gradients.json").read_text())
    (run,) = numbers["runs"]
    records = open_runs([trained], weights=True)[0].records
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
