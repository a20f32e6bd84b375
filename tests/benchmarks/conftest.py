"""What several tests of benchmarks need."""

import pytest

from apart_fast.runs.recipes import RECIPES


@pytest.fixture
def tiny_recipe(monkeypatch):
    """tiny_recipe(name, **settings): within the test the recipe trains a tiny network on the image folder."""
    usual = dict(dataset="folder", width=0.0625, val_images=6, epochs=2, cycle=2, lr=0.05, device="cpu", progress=False)
    return lambda name, **settings: monkeypatch.setitem(RECIPES, name, usual | settings)
