"""Attacks and evaluation against a linear model whose worst case in the ball is known in closed form."""

import importlib.util
import json
import sys
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn

from apart_fast.errors import UserError
from apart_fast.evaluation import attacks
from apart_fast.evaluation.attacks import autoattack, is_correct, pgd
from apart_fast.evaluation.judge import describe, evaluate, parse_attack, wilson
from apart_fast.models import build_model
from apart_fast.units import parse_eps

EPS = 8 / 255
SIZE = (8, 8, 3)
needs_autoattack = pytest.mark.skipif(
    importlib.util.find_spec("pyautoattack") is None, reason="pyautoattack is an optional extra"
)


class Linear(nn.Module):
    """Logits (0, w.x + b) of two classes, or random linear logits of more."""

    def __init__(self, classes=2):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.linear = nn.Linear(8 * 8 * 3, classes)
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(classes, 8 * 8 * 3, generator=generator) * 0.2)
            # the mean grey image sits on the boundary
            self.linear.bias.copy_(-self.linear.weight.sum(1) * 0.5)

    def forward(self, x):
        return self.linear(x.permute(0, 2, 3, 1).flatten(1))


def data(n=200, classes=2):
    """uint8 images, half of whose pixels sit near 0 or 255, and labels of which about a tenth are wrong."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (n, *SIZE), generator=generator)
    images = torch.where(torch.rand(n, *SIZE, generator=generator) < 0.5, (images > 127) * 250 + images % 6, images)
    images = images.to(torch.uint8)
    with torch.no_grad():
        labels = Linear(classes)(images.permute(0, 3, 1, 2) / 255).argmax(1)
    wrong = torch.rand(n, generator=generator) < 0.1
    return images, torch.where(wrong, (labels + 1) % classes, labels)


def worst_case(images, labels, eps):
    """bool [n]: no point of the ball within [0, 1] fools the two-class `Linear`: its margin at the worst corner."""
    linear = Linear().linear
    w = (linear.weight[1] - linear.weight[0]).detach().double()
    b = (linear.bias[1] - linear.bias[0]).detach().double()
    side = (2 * labels - 1).double()
    x = (images / 255.0).flatten(1).double()
    corner = (x - eps * side[:, None] * w.sign()).clamp(0, 1)
    margin = side * (corner @ w + b)
    assert margin.abs().min() > 1e-5  # float32 cannot tip the scale
    return margin > 0


@pytest.mark.parametrize("steps", [10, 20])
def test_pgd_reaches_exactly_the_worst_case_of_a_linear_model(steps):
    images, labels = data()
    robust = worst_case(images, labels, EPS)
    report = evaluate(
        Linear(), images, labels, attacks=["clean", f"pgd-{steps}", "fgsm"], batch_size=64, progress=False
    )
    clean = report.attacks["clean"]
    assert 0.8 < clean.accuracy < 1
    assert 0.1 < robust.double().mean() < clean.accuracy - 0.1
    assert report.attacks[f"pgd-{steps}"].correct == robust.sum()
    assert report.attacks["fgsm"].correct == robust.sum()


@pytest.mark.parametrize("eps", [0.5 / 255, EPS, 0.3, 1.0])
@pytest.mark.parametrize("random_start", [True, False])
def test_pgd_stays_in_the_ball_and_leaves_misclassified_images_alone(eps, random_start):
    images, labels = data()
    x = images / 255.0
    model = Linear().eval()
    x_before = x.clone()
    adversarial = pgd(model, x, labels, eps=eps, step=eps / 4, steps=10, random_start=random_start)
    assert torch.equal(x, x_before)
    assert (adversarial - x).abs().max() <= eps + 1e-6
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    correct = is_correct(model(x.permute(0, 3, 1, 2)), labels)
    assert not correct.all()
    assert torch.equal(adversarial[~correct], x[~correct])
    assert (adversarial[correct] != x[correct]).flatten(1).any(1).all()
    fooled = ~is_correct(model(adversarial.permute(0, 3, 1, 2)), labels)
    assert torch.equal(~fooled, worst_case(images, labels, eps))


def test_pgd_keeps_the_first_point_that_fools():
    images, labels = data()
    x, model = images / 255.0, Linear().eval()
    settings = {"eps": EPS, "step": EPS / 4, "random_start": False}
    paths = [pgd(model, x, labels, steps=k, **settings) for k in range(1, 9)]
    fooled = torch.stack([~is_correct(model(p.permute(0, 3, 1, 2)), labels) for p in paths])
    first = fooled.int().argmax(0)
    assert len(first[fooled.any(0)].unique()) >= 3  # some early, some late
    for i in fooled.any(0).nonzero().flatten().tolist():
        assert torch.equal(paths[-1][i], paths[first[i]][i])


class Bumpy(nn.Module):
    """A small network with several local maxima of the loss, so that restarts matter."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.a = nn.Parameter(torch.randn(8 * 8 * 3, 64, generator=generator) * 3)
        self.b = nn.Parameter(torch.randn(64, 2, generator=generator))

    def forward(self, x):
        return torch.sin(x.permute(0, 2, 3, 1).flatten(1) @ self.a) @ self.b


def test_restarts_only_lower_accuracy_and_do_here():
    images, _ = data(300)
    model = Bumpy()
    with torch.no_grad():
        labels = model(images.permute(0, 3, 1, 2) / 255).argmax(1)
    settings = {"eps": 0.004, "attacks": ["pgd-3"], "progress": False}
    correct = [
        evaluate(model, images, labels, restarts=restarts, **settings).attacks["pgd-3"].correct
        for restarts in (1, 2, 4, 8)
    ]
    assert correct == sorted(correct, reverse=True)
    assert correct[-1] < correct[0]


def test_later_restarts_keep_what_fooled_before():
    images, _ = data(200)
    x, model = images / 255.0, Bumpy().eval()
    with torch.no_grad():
        labels = model(x.permute(0, 3, 1, 2)).argmax(1)
    one, four = (
        pgd(model, x, labels, eps=0.004, step=0.001, steps=3, restarts=r, generator=torch.Generator().manual_seed(0))
        for r in (1, 4)
    )
    with torch.no_grad():
        fooled = ~is_correct(model(one.permute(0, 3, 1, 2)), labels)
    assert 20 < fooled.sum() < 180
    assert torch.equal(four[fooled], one[fooled])


def test_seed_decides_the_noise_and_batch_size_does_not():
    images, labels = data(50)
    model = Linear().eval()
    x = images / 255.0

    def attack(seed, size, restarts=2):
        generator = torch.Generator().manual_seed(seed)
        settings = {"eps": EPS, "step": 0.0, "steps": 1, "restarts": restarts, "generator": generator}
        parts = [pgd(model, x[i : i + size], labels[i : i + size], **settings) for i in range(0, 50, size)]
        return torch.cat(parts)

    assert torch.equal(attack(0, 50), attack(0, 50))
    assert torch.equal(attack(0, 50), attack(0, 7))
    assert not torch.equal(attack(0, 50), attack(1, 50))
    assert not torch.equal(attack(0, 50, restarts=1), attack(0, 50, restarts=2))
    noise = attack(3, 50, restarts=1) - x
    moved = noise[is_correct(model(x.permute(0, 3, 1, 2)), labels)]
    assert not torch.equal(moved[0], moved[1])
    assert moved.abs().max() > 0.95 * EPS


def test_evaluate_is_reproducible_and_leaves_the_global_generator_alone():
    images, _ = data(100)
    model = Bumpy()
    with torch.no_grad():
        labels = model(images.permute(0, 3, 1, 2) / 255).argmax(1)
    state = torch.get_rng_state()

    def correct(seed):
        report = evaluate(model, images, labels, eps=0.004, attacks=["pgd-2"], seed=seed, progress=False)
        return report.attacks["pgd-2"].correct

    assert correct(0) == correct(0)
    assert len({correct(seed) for seed in range(6)}) > 1
    assert torch.equal(torch.get_rng_state(), state)


def test_pgd_asks_for_input_gradients_only():
    model = build_model("preact_resnet18", 10, width=0.0625).eval()
    model.conv1.weight.requires_grad_(False)
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    before = {name: v.clone() for name, v in model.state_dict().items()}
    x = torch.rand(4, 8, 8, 3, generator=torch.Generator().manual_seed(5))
    labels = model(x.permute(0, 3, 1, 2)).argmax(1)  # all correct, so all attacked
    adversarial = pgd(model, x, labels, eps=EPS, step=EPS / 4, steps=2)
    assert all(p.grad is None for p in model.parameters())
    assert wanted == {name: p.requires_grad for name, p in model.named_parameters()}
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())
    assert not adversarial.requires_grad
    with torch.no_grad():  # a caller's no_grad does not switch the attack off
        assert (pgd(model, x, labels, eps=EPS, step=EPS / 4, steps=2) - x).abs().max() > 0


def test_pgd_restores_what_it_froze_also_after_an_exception():
    class Fails(Linear):
        def forward(self, x):
            assert not any(p.requires_grad for p in self.parameters()) or not torch.is_grad_enabled()
            if torch.is_grad_enabled():
                raise RuntimeError("boom")
            return super().forward(x)

    images, labels = data(20)
    model = Fails().eval()
    model.linear.bias.requires_grad_(False)
    with pytest.raises(RuntimeError, match="boom"):
        pgd(model, images / 255.0, labels, eps=EPS, step=EPS / 4, steps=2)
    assert [p.requires_grad for p in model.parameters()] == [True, False]


class Counting(Linear):
    """Remembers the size of each batch that is differentiated, and of each that is not."""

    def __init__(self):
        super().__init__()
        self.searched, self.judged = [], []

    def forward(self, x):
        (self.searched if torch.is_grad_enabled() else self.judged).append(len(x))
        return super().forward(x)


def test_fooled_images_take_no_further_steps():
    images, labels = data()
    settings = {"eps": EPS, "step": EPS / 4, "random_start": False}
    x, model = images / 255.0, Counting().eval()
    wrong = [int((~is_correct(model(x.permute(0, 3, 1, 2)), labels)).sum())]
    for k in range(1, 8):
        found = pgd(Linear().eval(), x, labels, steps=k, **settings)
        wrong.append(int((~is_correct(model(found.permute(0, 3, 1, 2)), labels)).sum()))
    assert wrong[0] < wrong[2] < wrong[-1]
    # a step starts with a look at where it starts from: what the last step fooled is in it, and in no later one
    standing = [len(images) - n for n in (wrong[0], *wrong[:-1])]
    model.searched.clear()
    pgd(model, x, labels, steps=8, **settings)
    assert model.searched == standing
    model.searched.clear()
    pgd(model, x, labels, steps=8, batch_size=32, **settings)  # those that are left fill the batches
    assert model.searched == [size for n in standing for size in [32] * (n // 32) + [n % 32] * (n % 32 > 0)]


def test_pgd_does_not_depend_on_the_batch_size():
    images, labels = data(60)
    x, model = images / 255.0, Bumpy().eval()

    def attack(**size):
        settings = {"eps": 0.004, "step": 0.001, "steps": 3, "restarts": 3}
        return pgd(model, x, labels, **settings, generator=torch.Generator().manual_seed(2), **size)

    torch.testing.assert_close(attack(batch_size=7), attack(), rtol=0, atol=0.0021)  # a sign may tip by rounding
    assert (attack(batch_size=7) != attack()).float().mean() < 0.01


def test_evaluate_in_parts_is_evaluate_at_once(monkeypatch):
    images, _ = data(100)
    model = Bumpy()
    with torch.no_grad():
        labels = model(images.permute(0, 3, 1, 2) / 255).argmax(1)
    settings = {"eps": 0.004, "attacks": ["clean", "fgsm", "pgd-3"], "batch_size": 8, "restarts": 2, "progress": False}
    whole = evaluate(model, images, labels, **settings)
    monkeypatch.setattr("apart_fast.evaluation.judge._CHUNK_VALUES", 8 * 8 * 3 * 20)
    parts = evaluate(model, images, labels, **settings)
    assert [r.correct for r in whole.attacks.values()] == [r.correct for r in parts.attacks.values()]
    assert whole.attacks["pgd-3"].correct < whole.attacks["clean"].correct


def test_evaluate_attacks_only_what_the_model_gets_right(monkeypatch):
    images, labels = data()
    attacked = []
    search = attacks.search
    monkeypatch.setattr(attacks, "search", lambda m, x, y, **k: attacked.append(len(x)) or search(m, x, y, **k))
    report = evaluate(Linear(), images, labels, attacks=["clean", "pgd-5"], progress=False)
    assert attacked == [report.attacks["clean"].correct]
    assert attacked[0] < len(images)


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_evaluate_attacks_a_folded_copy(monkeypatch, amp):
    torch.manual_seed(0)
    model = build_model("preact_resnet18", 2, width=0.0625)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
    images, _ = data(20)
    with torch.no_grad():
        labels = model.eval()(images.permute(0, 3, 1, 2) / 255).argmax(1)
    attacked = []
    search = attacks.search
    monkeypatch.setattr(attacks, "search", lambda m, *args, **k: attacked.append(m) or search(m, *args, **k))
    evaluate(model, images, labels, attacks=["fgsm", "pgd-2"], amp=amp, progress=False)
    folded = [m for m in attacked if m is not model]
    assert len(folded) == 2
    assert folded[0] is folded[1]  # folded once
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded[0].modules())


@pytest.mark.parametrize("restarts", [1, 3])
def test_progress_ends_at_the_promised_number(restarts):
    images, labels = data(50)
    x, model = images / 255.0, Linear().eval()
    ticks = []
    settings = {"eps": EPS, "step": EPS / 4, "steps": 4, "restarts": restarts, "batch_size": 16}
    seeds = attacks.draw_seeds(50, torch.Generator().manual_seed(0))
    _, fooled = attacks.search(model, x, labels, seeds=seeds, progress=ticks.append, **settings)
    assert 0 < fooled.sum() < 50
    assert sum(ticks) == 50 * 4 * restarts


class FooledByAutocast(Bumpy):
    """Gets everything wrong in mixed precision, whatever the image."""

    def forward(self, x):
        return super().forward(x) * (-1 if torch.is_autocast_enabled("cpu") else 1)


@pytest.mark.filterwarnings("ignore:found no first convolution")
def test_what_only_mixed_precision_thinks_fooled_is_attacked_again():
    images, _ = data(100)
    model = FooledByAutocast()
    with torch.no_grad():
        labels = model(images.permute(0, 3, 1, 2) / 255).argmax(1)
    settings = {"eps": 0.004, "attacks": ["clean", "pgd-3"], "progress": False}
    plain, half = (evaluate(model, images, labels, amp=amp, **settings) for amp in (None, torch.bfloat16))
    assert half.attacks["pgd-3"].correct == plain.attacks["pgd-3"].correct < 100


class StandIn:
    """What `torch.cuda` gives a graph, on the CPU: a replay computes from the captured buffers anew."""

    def __init__(self, monkeypatch, fails=False):
        self.captures = self.replays = 0
        cuda = attacks.torch.cuda
        self.fails, owner = fails, self

        class Stream:
            def __init__(self, device=None):
                pass

            def wait_stream(self, other):
                pass

        class Graph:
            def replay(self):
                owner.replays += 1
                self.step._moved.copy_(self.step._step(*self.step._buffers))

        @contextmanager
        def capture(graph, stream, capture_error_mode):
            if owner.fails:
                raise RuntimeError("operation not permitted when stream is capturing\nmore")
            owner.captures += 1
            yield

        for name, value in {
            "Stream": Stream,
            "current_stream": Stream,
            "stream": lambda stream: nullcontext(),
            "CUDAGraph": Graph,
            "graph": capture,
        }.items():
            monkeypatch.setattr(cuda, name, value)

        def make(model, images, size, batches, step, eps):
            graphed = attacks._GraphedStep(attacks._Step(model, step, eps), images, size)
            if graphed._graph is not None:
                graphed._graph.step = graphed
            return graphed

        monkeypatch.setattr(attacks, "_make_step", make)


@pytest.mark.parametrize("fails", [False, True])
def test_replayed_steps_give_what_plain_steps_give(monkeypatch, fails):
    images, labels = data(50)
    x, model = images / 255.0, Linear().eval()
    settings = {"eps": EPS, "step": EPS / 4, "steps": 6, "restarts": 2, "batch_size": 16}
    plain = pgd(model, x, labels, generator=torch.Generator().manual_seed(0), **settings)
    cuda = StandIn(monkeypatch, fails)
    with pytest.warns(UserWarning, match="without a CUDA graph.*capturing$") if fails else nullcontext():
        replayed = pgd(model, x, labels, generator=torch.Generator().manual_seed(0), **settings)
    assert torch.equal(plain, replayed)
    assert (cuda.captures, cuda.replays > 10) == ((0, False) if fails else (1, True))


def test_the_cpu_never_touches_graphs(monkeypatch):
    monkeypatch.setattr(attacks._GraphedStep, "__init__", lambda *args: pytest.fail("a graph on the CPU"))
    images, labels = data(50)
    evaluate(Linear(), images, labels, attacks=["pgd-20"], batch_size=2, progress=False)


def test_pgd_on_a_single_image_and_none():
    images, labels = data(3)
    model = Linear().eval()
    settings = {"eps": EPS, "step": EPS / 4, "steps": 2, "restarts": 2}
    assert pgd(model, images[:1] / 255.0, labels[:1], **settings).shape == (1, *SIZE)
    assert pgd(model, images[:0] / 255.0, labels[:0], **settings).shape == (0, *SIZE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(2, *SIZE, dtype=torch.uint8)}, "float images"),
        ({"images": torch.full((2, *SIZE), 200.0)}, "must lie in"),
        ({"images": torch.full((2, *SIZE), float("nan"))}, "must lie in"),
        ({"eps": -0.1}, "eps and step"),
        ({"step": float("nan")}, "eps and step"),
        ({"steps": 0}, "at least 1 step"),
        ({"restarts": 0}, "1 restart"),
        ({"batch_size": 0}, "batch size"),
        ({"restarts": 2, "random_start": False}, "all the same"),
    ],
)
def test_pgd_refuses_what_does_not_fit(changes, message):
    arguments = {"images": torch.rand(2, *SIZE), "labels": torch.zeros(2, dtype=torch.long)}
    arguments |= {"eps": EPS, "step": EPS / 4, "steps": 1} | changes
    with pytest.raises(UserError, match=message):
        pgd(Linear().eval(), **arguments)


def test_attacks_refuse_a_model_in_training_mode_even_in_part():
    model = build_model("preact_resnet18", 2, width=0.0625).eval()
    model.layer1[0].bn1.train()
    x, labels = torch.rand(2, *SIZE), torch.zeros(2, dtype=torch.long)
    with pytest.raises(UserError, match="training mode"):
        pgd(model, x, labels, eps=EPS, step=EPS, steps=1)


def test_evaluate_restores_each_modules_mode_also_after_an_exception():
    images, labels = data(8)
    model = build_model("preact_resnet18", 2, width=0.0625).train()
    model.layer1[0].bn1.eval()
    modes = {name: m.training for name, m in model.named_modules()}
    statistics = model.bn.running_mean.clone()
    seen = []
    handle = model.register_forward_hook(lambda m, args, out: seen.append(any(x.training for x in m.modules())))
    evaluate(model, images, labels, attacks=["clean", "pgd-1"], progress=False)
    handle.remove()
    assert seen
    assert not any(seen)
    assert modes == {name: m.training for name, m in model.named_modules()}
    assert torch.equal(model.bn.running_mean, statistics)

    def fail(module, args):
        raise RuntimeError("boom")

    model.linear.register_forward_pre_hook(fail)
    precision = torch.backends.cudnn.conv.fp32_precision, torch.get_float32_matmul_precision()
    with pytest.raises(RuntimeError, match="boom"):
        evaluate(model, images, labels, progress=False)
    assert modes == {name: m.training for name, m in model.named_modules()}
    assert precision == (torch.backends.cudnn.conv.fp32_precision, torch.get_float32_matmul_precision())


def test_bfloat16_attack_is_judged_in_float32():
    images, labels = data(100)
    model = Linear()
    plain = evaluate(model, images, labels, progress=False)
    half = evaluate(model, images, labels, progress=False, amp=torch.bfloat16)
    assert half.amp == "bfloat16"
    assert half.attacks["clean"].correct == plain.attacks["clean"].correct
    assert half.attacks["pgd-20"].correct >= worst_case(images, labels, EPS).sum()


def test_nan_logits_are_wrong():
    class Nan(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 3), float("nan")) * x.mean()

    report = evaluate(Nan(), *data(9), attacks=["clean", "pgd-2"], progress=False)
    assert [result.correct for result in report.attacks.values()] == [0, 0]


def test_eps_zero_changes_nothing():
    report = evaluate(Linear(), *data(50), eps=0, attacks=["clean", "pgd-2"], progress=False)
    assert report.attacks["pgd-2"].correct == report.attacks["clean"].correct


def test_report_as_json():
    report = json.loads(evaluate(Linear(), *data(20), attacks=["pgd-1"], progress=False).to_json())
    assert report["eps"] == 8 / 255
    assert (report["n"], report["amp"], report["device"]) == (20, None, "cpu")
    result = report["attacks"]["pgd-1"]
    assert result["accuracy"] == result["correct"] / 20
    assert result["low"] < result["accuracy"] < result["high"]


def test_describe_is_one_line_of_percentages_and_intervals():
    result = {"accuracy": 0.492, "correct": 4920, "n": 10000, "low": 0.482206, "high": 0.501801, "seconds": 1.0}
    line = describe({"attacks": {"clean": result | {"accuracy": 1.0, "low": 0.99962, "high": 1.0}, "pgd-20": result}})
    assert line == "clean 100.0% [100.0%, 100.0%], pgd-20 49.2% [48.2%, 50.2%]"


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        (5, 10, 0.236593, 0.763407),
        (1, 1, 0.206549, 1.0),
        (4920, 10000, 0.482206, 0.501801),
    ],
)
def test_wilson_interval(correct, n, low, high):
    assert wilson(correct, n) == pytest.approx((low, high), abs=2e-6)
    if correct in (0, n):  # exactly, not up to rounding
        assert (0.0 if correct == 0 else 1.0) in wilson(correct, n)


@pytest.mark.parametrize(
    ("value", "eps"),
    [
        (0.031, 0.031),
        ("0.031", 0.031),
        ("8/255", 8 / 255),
        (" 8 / 255 ", 8 / 255),
        ("2.5/255", 2.5 / 255),
        (0, 0.0),
        (1, 1.0),
        ("1e-3", 1e-3),
    ],
)
def test_parse_eps(value, eps):
    assert parse_eps(value) == eps


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (8, r"eps 8 is not a fraction of the pixel range \[0, 1\]: did you mean 8/255\?"),
        ("8", r"did you mean 8/255\?"),
        ("8.0", r"did you mean 8.0/255\?"),
        ("800", "not a fraction of the pixel range .*: write it like 8/255"),
        ("8/1", "not a fraction of the pixel range .*: write it like 8/255"),
        (-0.1, "negative"),
        ("-8/255", "negative"),
        (float("nan"), "not a finite"),
        ("inf", "not a finite"),
        ("0/0", "not a number"),
        ("1/0", "not a number"),
        ("eight", "not a number"),
        ("8/255/2", "not a number"),
        ("", "not a number"),
        (None, "not a number"),
    ],
)
def test_parse_eps_refuses(value, message):
    with pytest.raises(UserError, match=message):
        parse_eps(value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pgd", "number of steps like pgd-20"),
        ("pgd-0", "number of steps"),
        ("pgd-x", "number of steps"),
        ("pgd--3", "number of steps"),
        ("clean-3", "takes no number"),
        ("autoatack", "did you mean autoattack"),
        ("zzz", "known: clean"),
    ],
)
def test_unknown_attacks(name, message):
    with pytest.raises(UserError, match=message):
        parse_attack(name)


IMAGES, LABELS = data(4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": IMAGES / 255.0}, "uint8 images"),
        ({"images": IMAGES.permute(0, 3, 1, 2)}, "uint8 images"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "no images"),
        ({"labels": LABELS[:3]}, "integer labels"),
        ({"labels": LABELS.float()}, "integer labels"),
        ({"labels": LABELS + 1}, "labels go from"),
        ({"batch_size": 0}, "batch size"),
        ({"restarts": 0}, "restarts"),
        ({"amp": torch.float16}, "bfloat16"),
        ({"eps": 8}, "8/255"),
        ({"attacks": ["pdg-20"]}, "did you mean pgd"),
    ],
)
def test_evaluate_refuses_what_does_not_fit(changes, message):
    with pytest.raises(UserError, match=message):
        evaluate(Linear(), **({"images": IMAGES, "labels": LABELS, "progress": False} | changes))


def test_autoattack_missing_is_a_user_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(UserError, match=r"apart_fast\[autoattack\]"):
        evaluate(Linear(), IMAGES, LABELS, attacks=["autoattack"], progress=False)


class Reshaping(Linear):
    """Takes neither channels-last pixels nor channels-last maps nor an empty batch."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[:, :, None, None])

    def forward(self, x):
        x = self.conv(x)
        return self.linear(x.view(x.size(0), -1).view(x.size(0), 3, -1).transpose(1, 2).reshape(x.size(0), -1))


def test_a_network_that_views_its_pixels_is_judged_as_one_that_does_not():
    settings = dict(eps=EPS, attacks=("clean", "pgd-5"), restarts=2, batch_size=64, progress=False)
    models = (Linear(), Reshaping().to(memory_format=torch.channels_last))
    wanted, found = (evaluate(model, IMAGES, LABELS, **settings).attacks for model in models)
    assert [found[name].correct for name in found] == [wanted[name].correct for name in wanted]


def test_nothing_is_asked_of_the_network_once_every_image_is_fooled():
    settings = dict(attacks=("clean", "fgsm", "pgd-5"), restarts=2, progress=False)
    report = evaluate(Reshaping(), IMAGES, LABELS, eps=1.0, **settings)
    assert report.attacks["clean"].correct > 0 and report.attacks["pgd-5"].correct == 0
    wrong = evaluate(
        Reshaping(), IMAGES, 1 - Reshaping()(IMAGES.permute(0, 3, 1, 2).contiguous() / 255).argmax(1), **settings
    )
    assert [result.correct for result in wrong.attacks.values()] == [0, 0, 0]


@needs_autoattack
def test_autoattack_takes_a_network_that_views_its_pixels():
    assert evaluate(Reshaping(), *data(4), attacks=["autoattack"], eps=0.5, progress=False).n == 4


@needs_autoattack
def test_autoattack_does_not_take_nan_for_robust():
    class Broken(Linear):
        def forward(self, x):
            return super().forward(x) * float("nan")

    report = evaluate(Broken(4), *data(12, 4), attacks=["clean", "autoattack"], progress=False)
    assert [result.correct for result in report.attacks.values()] == [0, 0]


@needs_autoattack
@pytest.mark.parametrize("classes", [2, 3, 4, 6])
def test_autoattack_with_few_classes(classes, caplog, monkeypatch):
    import pyautoattack

    class Quick(pyautoattack.AutoAttack):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.apgd_targeted.n_iter, self.fab.n_iter, self.square.n_queries = 20, 5, 50

    monkeypatch.setattr(pyautoattack, "AutoAttack", Quick)
    images, labels = data(12, classes)
    model = Linear(classes).eval()
    x = images / 255.0
    wanted = [p.requires_grad for p in model.parameters()]
    state = torch.get_rng_state()
    robust = autoattack(
        model, x, labels, eps=EPS, num_classes=classes, batch_size=12, seed=0, device=torch.device("cpu")
    )
    assert torch.equal(torch.get_rng_state(), state)
    # a linear model has no masked gradients: nothing may survive that PGD breaks
    attacked = pgd(model, x, labels, eps=EPS, step=EPS / 4, steps=20)
    pgd_robust = is_correct(model(attacked.permute(0, 3, 1, 2)), labels)
    assert not (robust & ~pgd_robust).any()
    if classes == 2:
        assert torch.equal(robust, worst_case(images, labels, EPS))
    assert all(p.grad is None for p in model.parameters())
    assert wanted == [p.requires_grad for p in model.parameters()]
    assert not [record for record in caplog.records if "target classes" in record.message]  # more than there are
