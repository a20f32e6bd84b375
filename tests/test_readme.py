"""What the README shows does what it says."""

import re
from pathlib import Path

from apart_fast import METHODS, get_method

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(compile(example, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "omega (128, 3, 40, 40)" in out and "pgd-5" in out


def test_the_table_of_methods_is_that_of_the_code():
    rows = {m[1]: int(m[2]) for m in re.finditer(r"^\| `([a-z+-]+)`.*\| (\d+) F \|$", README, re.M)}
    assert rows == {name: get_method(name).passes for name in rows}
    named = set(re.findall(r"^\| `([a-z+]+(?:-rs|-fgsm)?)(?:-k)?`.*F \|$", README, re.M))
    assert named == set(METHODS)


def test_files_it_points_to_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (Path(__file__).parent.parent / target).exists(), target
