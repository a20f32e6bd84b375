"""The page about networks elsewhere does what it says."""

import re
import sys
from pathlib import Path

import pytest

from apart_fast.export.settings import ExportConfig
from apart_fast.export.write import export_network
from tests.export.made_runs import make_run

PAGE = (Path(__file__).parents[2] / "docs" / "elsewhere.md").read_text()


def test_the_examples_run(tmp_path, monkeypatch, capsys):
    folder = make_run(tmp_path / "runs" / "mine", "nowhere", image_size=(32, 32))
    export_network(ExportConfig(folder, "robustbench"))
    export_network(ExportConfig(folder, "torch-export", out=tmp_path / "model.pt2"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(folder / "robustbench")
    monkeypatch.delitem(sys.modules, "network", raising=False)
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(examples) == 3
    for example in examples:
        exec(compile(example, "elsewhere.md", "exec"), {})
    sys.modules.pop("network", None)
    out = capsys.readouterr().out
    assert "'test'" in out and "['circle', 'cross', 'square']" in out


@pytest.mark.parametrize("name", ["safetensors", "onnx", "torch-export", "robustbench"])
def test_every_format_has_a_row(name):
    assert re.search(rf"^\| `{name}` \|", PAGE, re.M)
