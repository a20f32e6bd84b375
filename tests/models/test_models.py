"""Models: sizes, shapes, perturbation points, normalisation, and errors for names and values that do not fit."""

import importlib.util
import sys

import pytest
import torch
from torch import nn

from apart_fast.errors import UserError
from apart_fast.models import MODELS, build_model, default_points
from apart_fast.step.points import match_points


def entering(model, shape):
    """What is perturbed at each default point, by submodule name, in a forward on grey images."""
    modules, seen, handles = dict(model.named_modules()), {}, []
    for name, side in match_points(model, default_points(model)):
        if side == "input":
            hook = modules[name].register_forward_pre_hook(lambda m, args, name=name: seen.update({name: args[0]}))
        else:
            hook = modules[name].register_forward_hook(lambda m, args, out, name=name: seen.update({name: out}))
        handles.append(hook)
    with torch.no_grad():
        model.eval()(torch.full(shape, 0.5))
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("preact_resnet18", 11_172_170),
        ("preact_resnet34", 21_280_330),
        ("preact_resnet50", 23_513_162),
        ("wide_resnet28_10", 36_479_194),
        ("wide_resnet34_10", 46_160_474),
    ],
)
def test_parameter_counts_with_ten_classes(name, parameters):
    with torch.device("meta"):
        model = MODELS[name](10)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_preact_resnet18_perturbs_303104_values_at_8_points():
    seen = entering(build_model("preact_resnet18", 10), (1, 3, 32, 32))
    assert list(seen) == [f"layer{i}.{j}.relu1" for i in range(1, 5) for j in range(2)]
    assert sum(a.numel() for a in seen.values()) == 303_104
    assert all((a >= 0).all() for a in seen.values())


@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("preact_resnet34", 16),
        ("preact_resnet50", 16),
        ("wide_resnet28_10", 12),
        ("wide_resnet34_10", 15),
        ("torchvision/resnet18", 8),
    ],
)
def test_number_of_points(name, points):
    width = 1.0 if "/" in name else 0.0625
    assert len(entering(build_model(name, 10, width=width), (1, 3, 32, 32))) == points


@pytest.mark.parametrize("name", ["preact_resnet50", "wide_resnet28_10"])
def test_the_point_is_at_the_convolution_where_the_shortcut_reads_the_activation_too(name):
    model = build_model(name, 10, width=0.0625)
    for point in default_points(model):
        block = model.get_submodule(point.rpartition(".")[0])
        assert point.endswith(".conv1" if block.shortcut is not None else ".relu1:output")


def test_activations_have_no_place_in_a_checkpoint():
    keys = [key for key in build_model("preact_resnet18", 10, width=0.0625).state_dict() if "layer2.0" in key]
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    inside = [f"bn1.{n}" for n in norm] + ["conv1.weight"] + [f"bn2.{n}" for n in norm]
    assert keys == [f"layer2.0.{key}" for key in (*inside, "conv2.weight", "shortcut.0.weight")]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [(8, 8), (9, 14), (28, 28), (33, 41)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_and_gray(name, size, channels):
    model = build_model(name, 7, in_channels=channels, image_size=size, width=0.0625)
    logits = model(torch.rand(2, channels, *size))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


def test_width_quarter_has_a_stem_of_16():
    model = build_model("preact_resnet18", 10, width=0.25)
    assert model.conv1.out_channels == 16
    assert model.linear.in_features == 128


def zero(*modules):
    for module in modules:
        nn.init.zeros_(module.weight)


def test_basic_shortcut_starts_from_the_raw_input():
    block = build_model("preact_resnet18", 10, width=0.25).eval().layer2[0]
    zero(block.conv2)
    x = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(block(x), block.shortcut(x))
    assert [type(m) for m in block.shortcut] == [nn.Conv2d]


def test_projecting_shortcuts_of_bottleneck_and_wide_block_start_from_the_activation():
    bottleneck = build_model("preact_resnet50", 10, width=0.25).eval().layer1[0]
    wide = build_model("wide_resnet28_10", 10, width=0.25).eval().layer1[0]
    zero(bottleneck.conv3, wide.conv2)
    for block, planes in ((bottleneck, 16), (wide, 4)):
        x = torch.randn(2, planes, 8, 8)
        torch.testing.assert_close(block(x), block.shortcut(torch.relu(block.bn1(x))))


@pytest.mark.parametrize("name", ["preact_resnet18", "preact_resnet50", "wide_resnet28_10", "torchvision/resnet18"])
def test_no_value_that_a_hook_sees_is_overwritten(name):
    model = build_model(name, 10, width=1.0 if "/" in name else 0.0625)
    seen = entering(model, (2, 3, 32, 32))
    versions = {key: a._version for key, a in seen.items()}
    assert versions == dict.fromkeys(seen, 0)


def test_normalisation_is_inside_first_and_in_the_state_dict():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)
    plain = build_model("preact_resnet18", 10, width=0.0625).eval()
    model = build_model("preact_resnet18", 10, width=0.0625, normalize=(mean, std)).eval()
    assert next(name for name, _ in model.named_children()) == "normalize"
    missing = model.load_state_dict(plain.state_dict(), strict=False)
    assert missing.missing_keys == ["normalize.mean", "normalize.std"]
    x = torch.rand(2, 3, 32, 32)
    normal = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(model(x), plain(normal))
    assert torch.equal(model.state_dict()["normalize.std"].flatten(), torch.tensor(std))


def test_torchvision_with_normalisation_and_gray_images():
    model = build_model("torchvision/resnet18", 5, in_channels=1, normalize=([0.5], [0.2]))
    assert model(torch.rand(2, 1, 32, 32)).shape == (2, 5)
    assert default_points(model) == ["model.layer*.*.conv1"]
    assert len(entering(model, (1, 1, 32, 32))) == 8


def test_models_without_known_blocks_say_so():
    with pytest.raises(UserError, match="no known perturbation points"):
        default_points(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("preact_resnet81", {}, "did you mean preact_resnet18"),
        ("torchvision/resnt18", {}, "did you mean torchvision/resnet18"),
        ("zzz", {}, "known: preact_resnet18"),
        ("nowhere/resnet18", {}, "unknown model 'nowhere/resnet18'"),
        ("torchvision/resnet18", {"width": 0.5}, "no width factor"),
        ("torchvision/vit_b_16", {}, "cannot take 32x32 images"),
        ("preact_resnet18", {"image_size": (7, 32)}, "too small"),
        ("preact_resnet18", {"width": 0}, "width 0"),
        ("preact_resnet18", {"width": float("nan")}, "width nan"),
        ("preact_resnet18", {"num_classes": 1}, "at least 2"),
        ("preact_resnet18", {"num_classes": 2.5}, "num_classes 2.5 is not an integer"),
        ("preact_resnet18", {"width": "1"}, "width '1' is not a number"),
        ("preact_resnet18", {"in_channels": 0}, "channels"),
        ("preact_resnet18", {"normalize": ((0.5,), (0.5,))}, "3 means"),
        ("preact_resnet18", {"normalize": ((0.5,) * 3, (0.5, 0.0, 0.5))}, "positive stds"),
    ],
)
def test_what_does_not_fit_is_a_user_error(name, arguments, message):
    with pytest.raises(UserError, match=message):
        build_model(name, **{"num_classes": 10, **arguments})


def test_timm_missing_is_a_user_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"apart_fast\[timm\]"):
        build_model("timm/resnet18", 10)


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is an optional extra")
def test_timm_by_name():
    model = build_model("timm/resnet18", 6, in_channels=1)
    assert model(torch.rand(2, 1, 32, 32)).shape == (2, 6)
    assert len(entering(model, (1, 1, 32, 32))) == 8
    with pytest.raises(UserError, match="did you mean timm/resnet18"):
        build_model("timm/resnet1", 6)
