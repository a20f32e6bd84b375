"""PGD by itself: where it stays, what it keeps, what it leaves alone, and its replayed steps."""

from contextlib import nullcontext

import pytest
import torch

from apart_fast.errors import UserError
from apart_fast.evaluation import attacks
from apart_fast.evaluation.attacks import is_correct, pgd, pgd_to_the_end
from apart_fast.models import build_model
from tests.evaluation.networks import EPS, SIZE, Bumpy, Linear, data, worst_case


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


def test_all_steps_are_taken_also_behind_the_point_that_fools():
    images, labels = data()
    x, model = images / 255.0, Linear().eval()
    settings = {"eps": EPS, "step": EPS / 4, "steps": 8}
    end = pgd_to_the_end(model, x, labels, **settings)
    found = pgd(model, x, labels, random_start=False, **settings)
    fooled = ~is_correct(model(found.permute(0, 3, 1, 2)), labels)
    standing = ~fooled
    assert torch.equal(end[standing], found[standing]) and standing.any()
    right = is_correct(model(x.permute(0, 3, 1, 2)), labels)
    assert (end[fooled & right] != found[fooled & right]).any()  # `pgd` stopped at the first one
    assert (end - x).abs().max() <= EPS + 1e-6 and end.min() >= 0 and end.max() <= 1
    assert all(p.requires_grad and p.grad is None for p in model.parameters()) and not end.requires_grad
    with torch.no_grad():  # a caller's no_grad does not switch it off
        assert torch.equal(pgd_to_the_end(model, x, labels, **settings), end)


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


@pytest.mark.parametrize("restarts", [1, 3])
def test_progress_ends_at_the_promised_number(restarts):
    images, labels = data(50)
    x, model = images / 255.0, Linear().eval()
    ticks = []
    settings = {"eps": EPS, "step": EPS / 4, "steps": 4, "restarts": restarts, "batch_size": 16}
    seeds = attacks.draw_seeds(50, torch.Generator().manual_seed(0))
    found = attacks.search(model, x, labels, seeds=seeds, progress=ticks.append, **settings)
    assert 0 < found.fooled.sum() < 50 and not found.blind.any()
    assert sum(ticks) == 50 * 4 * restarts


class StandIn:
    """`capture` without a GPU: a replay computes from the captured buffers anew."""

    def __init__(self, monkeypatch, fails):
        self.captures = self.replays = 0
        self.fails = fails

        def make(model, images, size, batches, step, eps):
            return attacks._GraphedStep(attacks._Step(model, step, eps), images, size)

        for name, value in (("capture", self.capture), ("_capture_stream", lambda device: None), ("_make_step", make)):
            monkeypatch.setattr(attacks, name, value)

    def capture(self, function, *, stream):
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        self.captures += 1
        result = function()

        def replay():
            self.replays += 1
            result.copy_(function())

        return replay, result


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
        ({"eps": float("inf")}, "eps and step"),
        ({"step": float("nan")}, "eps and step"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 2.0}, "steps must be .* an integer"),
        ({"restarts": 0}, "restarts must be at least 1"),
        ({"batch_size": 0}, "batch size"),
        ({"labels": torch.zeros(2, dtype=torch.bool)}, "integer labels, got torch.bool"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, "2 images need as many integer labels"),
        ({"labels": torch.tensor([0, 2])}, "labels go from 0 to 2"),
        ({"labels": torch.tensor([0, -100])}, "labels go from -100"),
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
