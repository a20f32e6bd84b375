"""Networks of torchvision and timm: a step with block points in them, and images of other sizes than theirs."""

import importlib.util

import pytest
import torch

from apart_fast import Apart, UserError, build_model
from apart_fast.models import size as sizes

timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is an optional extra")


def step(model, size, points=None):
    apart = Apart(model, 2, (size, size, 3), points=points)
    apart.alpha_blocks = [1e-3] * len(apart.points)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8, generator=generator)
    assert apart.step(images, torch.arange(2), torch.arange(2)).loss.isfinite()
    assert apart.step_sizes.grad.isfinite().all()
    return apart


@pytest.mark.parametrize(
    ("name", "points", "count", "as_made"),
    [
        ("resnet18", ["layer*.*.bn2:output"], 8, False),
        ("resnet18", ["layer*.*.bn2:output", "layer?.?", "relu:output"], 17, True),
        ("mobilenet_v3_small", ["features.*:output"], 201, False),
        ("mobilenet_v3_small", ["features.*:output"], 201, True),
        ("squeezenet1_1", ["*.expand3x3:output", "*.squeeze_activation:output", "*.expand3x3_activation"], 24, True),
    ],
)
def test_torchvision_takes_points_where_it_works_in_place(name, points, count, as_made):
    torch.manual_seed(0)
    model = build_model(f"torchvision/{name}", 4, image_size=(32, 32))
    if as_made:  # `build_model` switches some of it off
        for module in model.modules():
            if hasattr(module, "inplace"):
                module.inplace = True
    assert len(step(model, 32, points).points) == count


@timm
@pytest.mark.parametrize(
    ("name", "points", "count"),
    [
        ("resnet10t", ["layer*.*.bn2:output", "*.act2:output"], 8),
        ("mobilenetv3_small_050", ["blocks.*.*.bn1:output"], 12),
    ],
)
def test_timm_takes_points_where_it_works_in_place(name, points, count):
    torch.manual_seed(0)
    assert len(step(build_model(f"timm/{name}", 4, image_size=(32, 32)), 32, points).points) == count


@timm
@pytest.mark.parametrize(("name", "size"), [("vit_tiny_patch16_224", 32), ("deit_tiny_patch16_224", 224)])
def test_vision_transformers_of_timm_are_made_for_the_images_and_have_points(name, size):
    torch.manual_seed(0)
    apart = step(build_model(f"timm/{name}", 4, image_size=(size, size)), size)
    assert [name for name, _ in apart.points.points] == [f"blocks.{i}.attn" for i in range(12)]


@timm
@pytest.mark.parametrize(
    ("name", "size", "line"),
    [
        ("vit_tiny_patch16_224", (28, 28), "patches of 16x16, which must divide them"),
        ("efficientformer_l1", (32, 32), "cannot take 32x32 images with 3 channels: .*; it is made for 224x224"),
    ],
)
def test_images_that_a_network_of_timm_cannot_take(name, size, line):
    with pytest.raises(UserError, match=f"timm/{name} .*{line}"):
        build_model(f"timm/{name}", 4, image_size=size)


def test_a_network_too_wide_for_the_memory_is_refused_before_it_is_made():
    for width in (1e3, 1e6, 1e12):
        with pytest.raises(UserError, match=r"preact_resnet18 of width .* needs at least .* GB of memory"):
            build_model("preact_resnet18", 10, width=width)


def test_a_network_too_large_to_be_trained_is_refused(monkeypatch):
    monkeypatch.setattr(sizes, "available_bytes", lambda: 1e6)
    with pytest.raises(UserError, match="a training of x needs at least 0.002 GB of memory, and 0.001 GB are free"):
        sizes.refuse_too_large(2e6, "a training of x")
    sizes.refuse_too_large(1e6, "a training of x")
