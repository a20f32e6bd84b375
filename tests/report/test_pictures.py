"""The pictures that a run leaves."""

import pytest
import torch

from apart_fast.loaders import Split
from apart_fast.report import pictures
from tests.viewing import Flattening, Viewing


@pytest.mark.parametrize("kind", [Flattening, Viewing])
def test_perturbations_are_drawn_and_every_module_keeps_its_mode(kind, tmp_path):
    model = kind(3).to(memory_format=torch.channels_last).train()
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    split = Split(torch.randint(0, 256, (4, 12, 12, 3), dtype=torch.uint8), torch.arange(4) % 3)
    pictures.perturbations(model, split, ["a", "b", "c"], 8 / 255, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert model.training and not model.norm.training and model.conv1.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
