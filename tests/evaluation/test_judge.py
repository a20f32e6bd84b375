"""`evaluate` against a linear model whose worst case in the ball is known in closed form, and what it refuses."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from apart_fast.errors import UserError
from apart_fast.evaluation import attacks, jobs, judge
from apart_fast.evaluation.judge import Evaluator, describe, evaluate, wilson
from apart_fast.evaluation.names import parse_attack
from apart_fast.evaluation.pace import Pace, spoken
from apart_fast.models import build_model
from apart_fast.runs.config import EvaluateConfig
from tests.evaluation.networks import EPS, Bumpy, Linear, Reshaping, data, worst_case


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


def test_evaluate_in_parts_is_evaluate_at_once(monkeypatch):
    images, _ = data(100)
    model = Bumpy()
    with torch.no_grad():
        labels = model(images.permute(0, 3, 1, 2) / 255).argmax(1)
    settings = {"eps": 0.004, "attacks": ["clean", "fgsm", "pgd-3"], "batch_size": 8, "restarts": 2, "progress": False}
    whole = evaluate(model, images, labels, **settings)
    monkeypatch.setattr("apart_fast.evaluation.jobs._CHUNK_VALUES", 8 * 8 * 3 * 20)
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


@pytest.fixture
def counted(monkeypatch):
    """Captures are stand-ins that compute anew at each replay; counted are they, the folded copies and the looks."""
    counts = {"captures": [], "folds": 0, "looks": 0, "replays": 0}

    def capture(function, *, stream):
        result = function()
        counts["captures"].append(len(result))

        def replay():
            counts["replays"] += 1
            result.copy_(function())

        return replay, result

    def make(model, images, size, batches, step, eps):
        plain = attacks._Step(model, step, eps)
        return plain if batches < attacks._GRAPH_FROM else attacks._GraphedStep(plain, images, size)

    def count(name, module, attribute):
        real = getattr(module, attribute)

        def counting(*args, **kwargs):
            counts[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(module, attribute, counting)

    fakes = {"capture": capture, "_capture_stream": lambda device: None, "_make_step": make}
    for name, fake in fakes.items():
        monkeypatch.setattr(attacks, name, fake)
    count("folds", jobs, "Folded")
    count("looks", judge, "any_layout")
    return counts


def change(model, by):
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.mul_(1 + by * torch.rand(value.shape, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_an_evaluator_makes_once_what_weights_do_not_change(counted, amp):
    torch.manual_seed(0)
    model = build_model("preact_resnet18", 2, width=0.0625).eval()
    images, labels = data(24)
    settings = dict(eps="2/255", batch_size=16, amp=amp)
    evaluator, found, wanted = Evaluator(model, calls=5, **settings), [], []
    for epoch in range(5):
        change(model, 0.2)
        with torch.no_grad():  # other images are right each time
            labels = model(images.permute(0, 3, 1, 2) / 255).argmax(1)
            labels[: 3 * epoch] = 1 - labels[: 3 * epoch]
        found.append(evaluator(images, labels, ("clean", "pgd-10")).attacks)
        found.append(evaluator(images[:8], labels[:8], ("pgd-20",)).attacks)  # the same step of eps / 4
    assert (counted["folds"], counted["looks"]) == (1, 1)
    assert counted["captures"][:1] == [16] and len(counted["captures"]) <= 2  # and one for what only float32 can tell
    assert counted["replays"] > 50

    model.load_state_dict(build_model("preact_resnet18", 2, width=0.0625).state_dict())
    torch.manual_seed(0)
    model = build_model("preact_resnet18", 2, width=0.0625).eval()
    for epoch in range(5):
        change(model, 0.2)
        with torch.no_grad():
            labels = model(images.permute(0, 3, 1, 2) / 255).argmax(1)
            labels[: 3 * epoch] = 1 - labels[: 3 * epoch]
        wanted.append(evaluate(model, images, labels, attacks=("clean", "pgd-10"), progress=False, **settings).attacks)
        wanted.append(evaluate(model, images[:8], labels[:8], attacks=("pgd-20",), progress=False, **settings).attacks)
    assert counted["folds"] == 11
    assert [{k: r.correct for k, r in a.items()} for a in found] == [
        {k: r.correct for k, r in a.items()} for a in wanted
    ]
    assert len({a["pgd-10"].correct for a in found[::2]}) > 1


def test_one_evaluation_captures_where_it_pays_and_once(counted):
    images, labels = data(40)
    settings = dict(batch_size=16, progress=False)
    evaluate(Linear(), images, labels, attacks=("pgd-5",), **settings)
    assert counted["captures"] == []  # 3 batches of 5 steps
    evaluate(Linear(), images, labels, attacks=("pgd-20", "pgd-30"), **settings)
    assert counted["captures"] == [16]


def test_an_evaluator_looks_again_where_the_weights_lie_elsewhere(counted):
    images, labels = data(20)
    model = Linear()
    evaluator = Evaluator(model, eps=EPS, batch_size=16, calls=9)
    first = evaluator(images, labels, ("pgd-10",)).attacks["pgd-10"].correct
    model.linear.weight.data = -model.linear.weight.data  # not in place: a graph would read the old ones
    model.linear.bias.data = -model.linear.bias.data
    assert evaluator(images, 1 - labels, ("pgd-10",)).attacks["pgd-10"].correct == first > 0
    assert counted["folds"] == counted["looks"] == len(counted["captures"]) == 2


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


def test_the_cpu_never_touches_graphs(monkeypatch):
    monkeypatch.setattr(attacks._GraphedStep, "__init__", lambda *args: pytest.fail("a graph on the CPU"))
    images, labels = data(50)
    evaluate(Linear(), images, labels, attacks=["pgd-20"], batch_size=2, progress=False)


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


def test_nan_logits_are_wrong_and_said_to_be():
    class Nan(Linear):
        def __init__(self, every):
            super().__init__()
            self.every = every

        def forward(self, x):
            nan = torch.tensor(self.every) | (x.flatten(1)[:, 0] > 0.5)
            return super().forward(x).masked_fill(nan[:, None] & torch.tensor([False, True]), float("nan"))

    images, labels = data(40)
    bad = images[:, 0, 0, 0] / 255 > 0.5
    with pytest.warns(UserWarning, match=f"logits are NaN for {bad.sum()} of 40 images, which count as wrong"):
        report = evaluate(Nan(False), images, labels, attacks=["clean"], progress=False)
    plain = evaluate(Linear(), images[~bad], labels[~bad], attacks=["clean"], progress=False)
    assert report.attacks["clean"].correct == plain.attacks["clean"].correct
    assert json.loads(report.to_json())["logits_nan"] == bad.sum()
    for attack in ("clean", "pgd-2"):
        with pytest.raises(UserError, match="every image are NaN"):
            evaluate(Nan(True), images, labels, attacks=[attack], progress=False)


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
    ("name", "message"),
    [
        ("pgd", "number of steps like pgd-20"),
        ("pgd-0", "number of steps"),
        ("pgd-x", "number of steps"),
        ("pgd--3", "number of steps"),
        ("pgd-010", "number of steps"),
        ("pgd-²", "number of steps"),
        ("pgd-１０", "number of steps"),
        ("pgd-1000000", "would not end: give at most pgd-100000"),
        ("pgd-" + "9" * 5000, "would not end"),
        (7, "unknown attack 7"),
        ("clean-3", "takes no number"),
        ("autoatack", "did you mean autoattack"),
        ("zzz", "known: clean"),
    ],
)
def test_unknown_attacks(name, message):
    with pytest.raises(UserError, match=message):
        parse_attack(name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "--seed -1 is out of range"),
        ({"seed": 2**64}, "--seed 18446744073709551616 is out of range"),
        ({"restarts": 0}, "--restarts 0 is too small"),
        ({"batch_size": 0}, "--batch-size 0 is too small"),
        ({"attacks": ("pgd-1000000",)}, "would not end"),
        ({"attacks": ("pgd-１０",)}, "number of steps like pgd-20"),
        ({"attacks": ("pgd-2000",), "restarts": 1000}, "2,000,000 steps for each image"),
        ({"attacks": ()}, "no attack|no value"),
        ({"eps": "1e-400"}, "too small"),
    ],
)
def test_the_command_refuses_before_it_loads_anything(settings, message):
    with pytest.raises(UserError, match=message):
        EvaluateConfig(Path("nowhere.pt"), **settings).check()


IMAGES, LABELS = data(4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": IMAGES / 255.0}, "uint8 images"),
        ({"images": IMAGES.permute(0, 3, 1, 2)}, "uint8 images"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "no images"),
        ({"labels": LABELS[:3]}, "integer labels"),
        ({"images": IMAGES > 0}, "uint8 images"),
        ({"images": IMAGES[:, :0]}, "no images"),
        ({"images": IMAGES.numpy()}, "got a ndarray"),
        ({"labels": LABELS.float()}, "integer labels"),
        ({"labels": LABELS.bool()}, "integer labels, got torch.bool"),
        ({"labels": LABELS.tolist()}, "got a list"),
        ({"labels": LABELS + 1}, "labels go from"),
        ({"labels": LABELS - 100}, "labels go from -100"),
        ({"batch_size": 0}, "batch size"),
        ({"batch_size": 2.5}, "batch size"),
        ({"restarts": 0}, "restarts"),
        ({"restarts": 10**6}, "20,000,000 steps for each image .* give at most 100,000"),
        ({"seed": -1}, "2\\^63"),
        ({"seed": 2**64}, "2\\^63"),
        ({"seed": 0.5}, "2\\^63"),
        ({"attacks": []}, "no attack"),
        ({"attacks": "clean"}, "is text: give a list"),
        ({"device": "abacus"}, "unknown device 'abacus'"),
        ({"device": "cuda:99"}, "torch sees"),
        ({"amp": "bfloat16"}, "use torch.bfloat16"),
        ({"model": torch.relu}, "give a torch.nn.Module"),
        ({"amp": torch.float16}, "bfloat16"),
        ({"eps": 8}, "8/255"),
        ({"attacks": ["pdg-20"]}, "did you mean pgd"),
    ],
)
def test_evaluate_refuses_what_does_not_fit(changes, message):
    with pytest.raises(UserError, match=message):
        evaluate(**({"model": Linear(), "images": IMAGES, "labels": LABELS, "progress": False} | changes))


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


def test_an_attack_that_takes_long_says_how_long_once():
    seconds = iter([0.0, 1.0, 6.0, 7.0])
    pace = Pace("pgd-50", 1_000_000, clock=lambda: next(seconds))
    pace(10)  # too early to tell
    with pytest.warns(UserWarning, match="pgd-50 takes up to 3.5 days more"):
        pace(10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pace(10)
        quick = Pace("pgd-50", 1000, clock=iter([0.0, 6.0]).__next__)
        quick(500)
    assert [spoken(s) for s in (1900, 3 * 3600, 40 * 3600, 86400 * 12)] == [
        "32 minutes",
        "3 hours",
        "40 hours",
        "12 days",
    ]
