"""The source of an architecture as one file that needs nothing of this package."""

import ast
import sys
from importlib.util import find_spec

import pytest
import torch

from apart_fast.export.source import network_source
from apart_fast.models import MODELS, build_model
from tests.export.made_runs import STATISTICS, pixels

EXTERNAL = ["torchvision/resnet18", *(["timm/vit_tiny_patch16_224"] if find_spec("timm") else [])]


@pytest.mark.parametrize("normalize", [None, STATISTICS])
@pytest.mark.parametrize("name", [*MODELS, *EXTERNAL])
def test_it_makes_the_same_network(tmp_path, monkeypatch, name, normalize):
    own = name in MODELS
    size = (12, 16) if own else (32, 32)
    channels = 3 if normalize or not own else 1
    width = 0.0625 if own else 1.0
    description = dict(num_classes=4, in_channels=channels, image_size=size, width=width, normalize=normalize)
    model = build_model(name, **description).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    names = ["plain", 'quo"te', "two\nlines\\", "\u732b\U0001f408"]
    text = network_source({"name": name, **description}, names, 'a title\n""" ; raise', "1", "weights.pt")
    for node in ast.walk(ast.parse(text)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert not any(module.startswith("apart_fast") for module in modules)
    assert text.isascii() and max(map(len, text.splitlines())) < 200
    space = {"__name__": "network", "__file__": str(tmp_path / "network.py")}
    for module in [module for module in sys.modules if module.partition(".")[0] == "apart_fast"]:
        monkeypatch.setitem(sys.modules, module, None)  # an import of it would fail
    exec(compile(text, "network.py", "exec"), space)
    made = space["load"]()
    assert space["CLASSES"] == names and not made.training
    x = pixels(2, size, channels)
    with torch.no_grad():
        assert torch.allclose(made(x), model(x), atol=1e-5)
