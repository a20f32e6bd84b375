"""What a network may give: [B, classes], or one line, in judging and in training alike."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from apart_fast import Apart, UserError, evaluate
from apart_fast.evaluation.attacks import pgd
from apart_fast.models.logits import check_logits, check_parameters
from apart_fast.models.modes import evaluating
from tests.evaluation.networks import Linear, data

IMAGES, LABELS = data(12)


class Giving(Linear):
    """Gives `change` of its logits."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(super().forward(x))


WRONG = {
    r"gives \[\d+, 2, 1, 1\] for \d+ images: flatten them": lambda z: z[:, :, None, None],
    r"gives \[\d+, 5, 2\]": lambda z: z[:, None].expand(-1, 5, -1),
    "gives a tuple": lambda z: (z, z),
    "gives a list": lambda z: [z],
    "gives a dict": lambda z: {"logits": z},
    "gives a SimpleNamespace": lambda z: SimpleNamespace(logits=z),
    "gives a NoneType": lambda z: None,
    r"gives \[\d+\] for \d+ images": lambda z: z[:, 0],
    r"gives \[\d+, 1\] for \d+ images: it needs a logit for each of two classes": lambda z: z[:, :1],
    r"gives \[1, 2\] for \d+ images": lambda z: z.mean(0, keepdim=True),
    r"gives \[\] for": lambda z: z.sum(),
    "gives torch.int64": lambda z: z.round().long(),
}


@pytest.mark.parametrize("line", WRONG)
def test_what_is_no_logits_is_refused_by_all_in_one_line(line):
    model = Giving(WRONG[line])
    with pytest.raises(UserError, match=line) as error:
        evaluate(model, IMAGES, LABELS, attacks=["clean"], progress=False)
    assert "\n" not in str(error.value)
    with evaluating(model), pytest.raises(UserError, match=line):
        pgd(model, IMAGES / 255.0, LABELS, eps=0.1, step=0.1, steps=1)
    apart = Apart(model, len(IMAGES), IMAGES.shape[1:], method="fgsm")
    with pytest.raises(UserError, match=line):
        apart.step(IMAGES, LABELS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_in_half_precision_become_float32(dtype):
    settings = dict(attacks=["clean", "pgd-3"], progress=False)
    half = evaluate(Giving(lambda z: z.to(dtype)), IMAGES, LABELS, **settings)
    plain = evaluate(Linear(), IMAGES, LABELS, **settings)
    assert [r.correct for r in half.attacks.values()] == pytest.approx(
        [r.correct for r in plain.attacks.values()], abs=1
    )
    assert check_logits(torch.zeros(3, 2, dtype=dtype), 3).dtype == torch.float32
    assert check_logits(torch.zeros(3, 2, dtype=torch.float64), 3).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_of_another_precision_is_told_what_to_do(dtype):
    line = rf"linear.weight is {dtype}.*: call model.float\(\)"
    with pytest.raises(UserError, match=line):
        evaluate(Linear().to(dtype), IMAGES, LABELS, progress=False)
    with pytest.raises(UserError, match=line):
        pgd(Linear().eval().to(dtype), IMAGES / 255.0, LABELS, eps=0.1, step=0.1, steps=1)
    with pytest.raises(UserError, match=line):
        Apart(Linear().to(dtype), 12, IMAGES.shape[1:], method="fgsm")


def test_a_model_that_takes_float32_pixels_may_compute_in_half_precision():
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Linear().bfloat16()

        def forward(self, x):
            return self.inner(x.bfloat16())

    assert evaluate(Inside(), IMAGES, LABELS, attacks=["pgd-2"], progress=False).n == 12


def test_other_errors_of_a_model_are_its_own():
    def fail(z):
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        evaluate(Giving(fail), IMAGES, LABELS, progress=False)


def test_a_model_without_parameters_is_judged_but_not_trained():
    class Mean(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    assert evaluate(Mean(), IMAGES, LABELS, attacks=["clean", "fgsm"], progress=False).n == 12
    with pytest.raises(UserError, match="no parameters"):
        Apart(Mean(), 12, IMAGES.shape[1:], method="fgsm")
    check_parameters(Linear().double(), torch.float64)
