"""docs/coming-from.md: commands of the right columns mean what the left ones say. That each of them is read by its
program is looked at in `tests/test_readme.py`."""

import re

import pytest

from apart_fast.runs.config import TrainConfig
from apart_fast.step.methods import get_method
from tests.test_readme import PAGES, PROGRAM, parse

PAGE = PAGES["docs/coming-from.md"]
ROWS = [re.match(r"^\| (.*?) \| (.*) \|$", line) for line in PAGE.splitlines() if line.startswith("| ")]
PAIRS = {row[1]: row[2] for row in ROWS if row[1] != "there"}


def here(beginning):
    """The settings beside what begins so on the left."""
    (right,) = [right for left, right in PAIRS.items() if left.replace("`", "").startswith(beginning)]
    return parse(re.search(r"`([^`]+)`", right)[1])


def given(beginning):
    """What they set."""
    settings, plain = vars(here(beginning)), vars(TrainConfig())
    return {name: value for name, value in settings.items() if value != plain[name]}


def test_every_program_has_its_part():
    assert len(PAIRS) >= 35
    titles = re.findall(r"^## (.*)$", PAGE, re.M)
    assert [title.split(" (")[0] for title in titles] == [
        *("The released APART script", "fast_adversarial", "robustness", "torchattacks"),
    ]
    commands = [code for right in PAIRS.values() for code in re.findall(r"`([^`]+)`", right)]
    assert sum(bool(PROGRAM.match(code)) for code in commands) >= 30


@pytest.mark.parametrize(
    ("there", "settings"),
    [
        ("APART/train.py --layerwise", {"device": "cuda:0", "step_decay": 400.0}),  # all else is the released run's
        ("max_lr 0.2", {"step_decay": 400.0}),
        ("without layerwise", {"method": "fgsm+"}),
        ("weight_decay 2e-4", {}),
        ("epsilon 0.031", {}),
        (
            "python train_fgsm.py",
            dict(method="fgsm-rs", eps="8/255", epochs=15, cycle=15, weight_decay=5e-4, normalize=True, amp=True),
        ),
        ("lr-schedule cyclic", {"epochs": 15, "cycle": 15}),
        (
            "python -m robustness.main",
            dict(method="pgd-7", eps="8/255", epochs=150, lr=0.1, weight_decay=5e-4, schedule="multistep")
            | {"milestones": (50, 100)},
        ),
    ],
)
def test_what_they_mean(there, settings):
    assert given(there) == settings


def test_the_step_of_fgsm_rs_is_theirs():
    method = get_method("fgsm-rs")
    assert (method.start, method.steps) == ("uniform", 1) and method.step_size == pytest.approx(10 / 8)


def test_the_loop_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(compile(example, "coming-from.md", "exec"), {})
    assert "accuracy" in capsys.readouterr().out
