"""Networks that hide their gradient: what can be found is found, and what cannot is not sold as robustness."""

import copy
import json
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F

from apart_fast.evaluation import attacks
from apart_fast.evaluation.attacks import differentiate, pgd
from apart_fast.evaluation.caution import cautions, mark
from apart_fast.evaluation.gradient import NOT_FINITE, ZERO, ascent_loss, gradient_marks
from apart_fast.evaluation.judge import Evaluator, describe, evaluate
from tests.evaluation.networks import EPS, Bumpy, Hiding, Linear, data, worst_case

IMAGES, LABELS = data(60)


class Saturated(Linear):
    """Logits so far apart that float32 rounds the label's probability to 1: cross-entropy has no gradient."""

    def forward(self, x):
        return super().forward(x) * 1000


def gradient_of(loss, logits):
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf).sum(), leaf)[0]


@pytest.mark.parametrize(
    ("how", "key"), [("nan", "gradient_not_finite"), ("round", "gradient_zero"), ("detach", "gradient_zero")]
)
@pytest.mark.parametrize("amp", [None, torch.bfloat16])
@pytest.mark.filterwarnings("ignore:found no first convolution")
def test_what_was_never_searched_is_counted_and_said(how, key, amp):
    settings = dict(attacks=["clean", "fgsm", "pgd-3"], batch_size=16, amp=amp, progress=False)
    with pytest.warns(UserWarning, match="no measure of robustness") as said:
        report = evaluate(Hiding(how), IMAGES, LABELS, **settings)
    assert len([w for w in said if "no measure" in str(w.message)]) == 2  # one line for each figure
    clean, *attacked = json.loads(report.to_json())["attacks"].values()
    other = {"gradient_not_finite", "gradient_zero"} - {key}
    assert clean[key] == 0
    for result in attacked:
        assert result[key] == result["correct"] > worst_case(IMAGES, LABELS, EPS).sum()  # all that stand
        assert result[other.copy().pop()] == 0
    line = describe(asdict(report))
    assert line.startswith("clean ") and "\n" not in line and line.count("no measure of robustness") == 2
    assert [line.partition(":")[0] for line in report.cautions] == ["fgsm", "pgd-3"]


def test_an_honest_network_is_not_accused(recwarn):
    report = evaluate(Linear(), IMAGES, LABELS, attacks=["clean", "fgsm", "pgd-5"], restarts=2, progress=False)
    assert report.cautions == [] and "measure" not in describe(asdict(report)) and not list(recwarn)
    assert {result.gradient_zero + result.gradient_not_finite for result in report.attacks.values()} == {0}


def test_images_that_fall_all_the_same_are_not_counted():
    """Half of the images have no gradient; noise alone fools some of them."""

    class Half(Hiding):
        def forward(self, x):
            blind = x.flatten(1)[:, 0] > 0.5
            return torch.where(blind[:, None], super().forward(x), self.linear(x.permute(0, 2, 3, 1).flatten(1)))

    images, labels = data(100)
    with pytest.warns(UserWarning, match="no measure"):
        report = evaluate(Half("round"), images, labels, eps=0.2, attacks=["pgd-3"], restarts=5, progress=False)
    result = report.attacks["pgd-3"]
    blind = (images[:, 0, 0, 0] > 127) & (Linear()(images.permute(0, 3, 1, 2) / 255).argmax(1) == labels)
    assert 0 < result.gradient_zero == result.correct < blind.sum()


def test_a_training_is_told_once():
    evaluator = Evaluator(Hiding("nan"), eps=EPS, batch_size=32, calls=3)
    with pytest.warns(UserWarning, match="pgd-2: no measure") as said:
        for _ in range(3):
            evaluator(IMAGES, LABELS, ["pgd-2"])
    assert len(said) == 1


def test_pgd_says_it_too():
    with pytest.warns(UserWarning, match="had no gradient to follow"):
        pgd(Hiding("nan").eval(), IMAGES / 255.0, LABELS, eps=EPS, step=EPS, steps=1)


def test_saturated_logits_hide_nothing():
    robust = worst_case(IMAGES, LABELS, EPS)
    for attack in ("fgsm", "pgd-10"):
        result = evaluate(Saturated(), IMAGES, LABELS, attacks=[attack], progress=False).attacks[attack]
        assert (result.correct, result.gradient_zero) == (robust.sum(), 0)


def test_the_loss_has_the_bits_of_cross_entropy_unless_that_is_rounded_away():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 7, generator=generator) * torch.logspace(-1, 2.5, 200)[:, None]
    labels = torch.where(torch.arange(200) % 3 > 0, logits.argmax(1), torch.arange(200) % 7)
    plain = gradient_of(lambda z: F.cross_entropy(z, labels, reduction="sum"), logits)
    mine = gradient_of(lambda z: ascent_loss(z, labels), logits)
    gone = F.cross_entropy(logits, labels, reduction="none") == 0
    assert 20 < gone.sum() < 150
    assert torch.equal(mine[~gone], plain[~gone])
    # where it is gone, float64 knows its direction
    shrunk = logits.double() - logits.double().max(1, keepdim=True).values
    near = gone & ((shrunk < 0) & (shrunk > -600)).any(1)
    exact = gradient_of(lambda z: F.cross_entropy(z, labels, reduction="none"), shrunk)
    others = exact.scatter(1, labels[:, None], 0)
    exact.scatter_(1, labels[:, None], -others.sum(1, keepdim=True))  # float64 rounds 1 - p too
    torch.testing.assert_close(mine[near].double(), (exact / others.sum(1, keepdim=True))[near], rtol=1e-4, atol=1e-4)
    assert near.sum() > 20


def test_a_class_that_is_ruled_out_disturbs_nobody():
    logits, labels = torch.tensor([[50.0, 0.0, -torch.inf], [1.0, 0.0, -torch.inf]]), torch.tensor([0, 0])
    gradient = gradient_of(lambda z: ascent_loss(z, labels), logits)
    assert torch.equal(gradient[0], torch.tensor([-1.0, 1.0, 0.0])) and gradient.isfinite().all()


def test_marks_of_gradients():
    gradient = torch.zeros(5, 2, 2, 3)
    gradient[1, 0, 0, 0], gradient[2, 1, 1, 2], gradient[3, 0, 1, 0], gradient[4] = 1e-45, torch.nan, -torch.inf, 1
    assert gradient_marks(gradient).tolist() == [ZERO, 0, NOT_FINITE, NOT_FINITE, 0]
    assert gradient_marks(gradient).dtype == torch.uint8


def test_a_gradient_with_holes_moves_the_rest():
    """sign(NaN) is no NaN: the pixels with a gradient move, and no point becomes NaN."""

    class Holed(Linear):
        def forward(self, x):
            z = super().forward(x)
            return z + (x[:, :, :1] * 0).sum((1, 2, 3)).sqrt()[:, None] * 0

    x, model = IMAGES / 255.0, Holed().eval()
    assert differentiate(model, x, LABELS)[0].isnan().flatten(1).any(1).all()
    with pytest.warns(UserWarning, match="no gradient"):
        moved = pgd(model, x, LABELS, eps=EPS, step=EPS, steps=1, random_start=False) - x
    assert moved.isfinite().all() and (moved[:, 1:] != 0).any() and not (moved[:, :1] != 0).any()


def test_counts_come_through_replayed_steps(monkeypatch):
    """As on a GPU: the step writes into the buffers that were captured."""

    def capture(function, *, stream):
        result = function()
        return lambda: result.copy_(function()), result

    def make(model, images, size, batches, step, eps):
        return attacks._GraphedStep(attacks._Step(model, step, eps), images, size)

    settings = dict(attacks=["pgd-4"], batch_size=16, progress=False)
    with pytest.warns(UserWarning):
        plain = evaluate(Hiding("round"), IMAGES, LABELS, **settings)
        for name, fake in (("capture", capture), ("_capture_stream", lambda device: None), ("_make_step", make)):
            monkeypatch.setattr(attacks, name, fake)
        replayed = evaluate(Hiding("round"), IMAGES, LABELS, **settings)
    assert replayed.attacks["pgd-4"].gradient_zero == plain.attacks["pgd-4"].gradient_zero > 0


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("made_within", [False, True])
@pytest.mark.filterwarnings("ignore:found no first convolution")
def test_the_callers_gradient_mode_changes_nothing(context, made_within):
    settings = dict(eps=0.004, attacks=["clean", "fgsm", "pgd-3"], amp=torch.bfloat16, progress=False)
    images, labels = IMAGES.clone(), LABELS.clone()
    torch.manual_seed(0)
    wanted = evaluate(model := Bumpy(), images, labels, **settings).attacks
    with context():
        if made_within:
            model, images, labels = copy.deepcopy(model), images.clone(), labels.clone()
        found = evaluate(model, images, labels, **settings).attacks
        x = pgd(model.eval(), images / 255.0, labels, eps=EPS, step=EPS, steps=1)
    assert {n: r.correct for n, r in found.items()} == {n: r.correct for n, r in wanted.items()}
    assert (x != images / 255.0).any() and not x.requires_grad


def test_the_callers_autocast_changes_nothing():
    images, labels = data(100)
    wanted = evaluate(Linear(), images, labels, attacks=["pgd-3"], progress=False).attacks["pgd-3"].correct
    model, seen = Linear(), []
    model.register_forward_hook(lambda m, args, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert evaluate(model, images, labels, attacks=["pgd-3"], progress=False).attacks["pgd-3"].correct == wanted
    assert set(seen) == {torch.float32}


def test_words_for_old_and_damaged_reports():
    old = {"accuracy": 0.5, "correct": 5, "n": 10, "low": 0.2, "high": 0.8, "seconds": 1.0}
    assert mark(old) == "" and cautions({"attacks": {"pgd-20": old}, "n": 10}) == []
    for damaged in (None, 3, {}, {"attacks": 3}, {"attacks": {"pgd-20": None}, "logits_nan": "x"}):
        assert cautions(damaged) == []
    words = mark(old | {"gradient_not_finite": 2, "gradient_zero": 1})
    assert words.endswith("of 5 images that stand, 3 had no gradient to follow (2 not finite, 1 all zero)")
