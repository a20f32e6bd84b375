"""What several test files of a run need."""

import pytest
from torch import nn

from apart_fast.training import execution


@pytest.fixture
def graphs_without_compiler(monkeypatch):
    """`--compile` makes the same graphs as with inductor and runs them as they are."""
    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compile_(self, backend="aot_eager", **options))
    monkeypatch.setattr(execution, "compiler_fault", lambda device: None)
