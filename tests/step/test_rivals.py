"""The rows of the method table that add to the loss or remember otherwise, against their plain formulas.

Autograd in float64, a loop over the images, several steps, the last batch of an epoch of another size.
"""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_step import BATCHES, EPS, PAD, H, N, W, crop, draw, js, uncrop
from torch import nn

from apart_fast import Apart, Method, UserError, get_method
from apart_fast.step.grey import EVERY, LEAST, MOST
from apart_fast.step.methods import METHODS, Loss
from apart_fast.step.momentum import scale_of
from apart_fast.step.ranks import Ranks

CLASSES, LR, SMOOTHING, SEED = 5, 0.2, 0.1, 3


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, CLASSES)),
    ).to(dtype)


def data():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(1, 255, (N, H, W, 3), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, CLASSES, (N,), generator=generator)


class Plain:
    """A rival, written with loops. `made`: the `Apart` whose random draws it shares."""

    def __init__(self, made):
        self.model, self.eps = copy.deepcopy(made.model), made.eps
        self.generator = torch.Generator()
        self.generator.set_state(made.generator.get_state())
        self.noise = made._setting.noise
        self.remember(made)

    def remember(self, made):
        pass

    def start_epoch(self, epoch, epochs):
        self.share = (epoch + 1) / epochs

    def ce(self, z, y):
        return F.cross_entropy(z, y, label_smoothing=SMOOTHING)

    def pass1(self, x0, y):
        """(loss, logits, input gradient), with the graph kept."""
        x0 = x0.detach().requires_grad_()
        z0 = self.model(x0)
        loss = self.ce(z0, y)
        return loss, z0, torch.autograd.grad(loss, x0, retain_graph=True)[0]

    def inside(self, x, point):
        return (x + (point - x).clamp(-self.eps, self.eps)).clamp(0, 1).detach()

    def step(self, images, labels, indices, offsets, flips):
        self.where = list(zip(indices.tolist(), offsets.tolist(), flips.tolist(), strict=True))
        self.indices = indices
        padded = [F.pad(im.permute(2, 0, 1).double() / 255, (PAD,) * 4, value=0.5) for im in images]
        x = torch.stack([crop(p, o, f) for p, (_, o, f) in zip(padded, self.where, strict=True)])
        self.model.zero_grad()
        self.total(x, labels).backward()
        self.after()
        with torch.no_grad():
            for p in self.model.parameters():
                p -= LR * p.grad

    def after(self):
        pass

    def uniform(self, x, half):
        return self.noise.uniform(self.indices, (H, W, 3), half, torch.float64).permute(0, 3, 1, 2)


class Prior(Plain):
    """FGSM-PGI, and FGSM-MEP-CS with the gate."""

    def remember(self, made):
        delta, momentum = made.memory.contents().unbind(1)
        self.delta = delta.permute(0, 3, 1, 2).clone() * self.eps
        self.momentum = momentum.permute(0, 3, 1, 2).clone()

    def total(self, x, y):
        delta = torch.stack([crop(self.delta[i], o, f) for i, o, f in self.where])
        momentum = torch.stack([crop(self.momentum[i], o, f) for i, o, f in self.where])
        loss0, z0, g = self.pass1((x + delta).clamp(0, 1), y)
        momentum = g / g.abs().sum() + 0.3 * momentum
        following = (delta + self.eps * momentum.sign()).clamp(-self.eps, self.eps)
        following = torch.max(torch.min(following, 1 - x), -x)
        x1 = (x + (delta + self.eps * g.sign()).clamp(-self.eps, self.eps)).clamp(0, 1)
        for (i, o, f), d, m in zip(self.where, following, momentum, strict=True):
            uncrop(self.delta[i], d, o, f)
            uncrop(self.momentum[i], m, o, f)
        z1 = self.model(x1)
        return self.ce(z1, y) + self.added(loss0, z0, z1)

    def added(self, loss0, z0, z1):
        return 10 * ((z1 - z0) ** 2).mean()

    def check(self, made):
        delta, momentum = made.memory.contents().unbind(1)
        assert_close(delta.permute(0, 3, 1, 2) * self.eps, self.delta)
        assert_close(momentum.permute(0, 3, 1, 2) / scale_of((H, W, 3)), self.momentum)


class Gated:
    """Keeps the mean loss of the last epoch."""

    mean, sums, factors = 0.0, (0.0, 0), ()

    def start_epoch(self, epoch, epochs):
        if self.sums[1]:
            self.mean = self.sums[0] / self.sums[1]
        self.sums, self.opens = (0.0, 0), 2 <= epoch <= epochs - 2

    def added(self, loss0, z0, z1):
        difference = loss0.item() - self.mean
        self.sums = (self.sums[0] + loss0.item() * len(z0), self.sums[1] + len(z0))
        factor = math.copysign(1, difference) if self.opens and abs(difference) > 0.03 else 0
        self.factors = (*self.factors, factor)
        return factor * loss0

    def done(self):
        assert {*self.factors[:6], *self.factors[-3:]} == {0}  # two epochs and the last
        assert {*self.factors[6:-3]} >= {0, 1, -1}


class Mep(Gated, Prior):
    pass


class RsCs(Gated, Plain):
    def total(self, x, y):
        x0 = (x + self.uniform(x, self.eps)).clamp(0, 1)
        loss0, z0, g = self.pass1(x0, y)
        z1 = self.model((x0 + self.eps * g.sign()).clamp(0, 1))
        return self.ce(z1, y) + self.added(loss0, z0, z1)


class Universal(Plain):
    """FGSM-UAP and FGSM-CUAP."""

    def remember(self, made):
        self.size = 1.25 * self.eps
        self.u = made.shared.perturbations.permute(0, 3, 1, 2).clone()
        self.m = torch.zeros_like(self.u)
        assert set(self.u.unique().tolist()) == {-self.size, self.size}

    def total(self, x, y):
        own = y if len(self.u) > 1 else torch.zeros_like(y)
        x0 = self.inside(x, x + self.u[own])
        _, z0, g = self.pass1(x0, y)
        z1 = self.model(self.inside(x, x0 + self.eps * g.sign()))
        g = g / g.abs().sum()
        for c in own.unique().tolist():
            self.m[c] = g[own == c].mean(0) + 0.3 * self.m[c]
            self.u[c] = (self.u[c] + self.size * self.m[c].sign()).clamp(-self.size, self.size)
        return self.ce(z1, y) + 10 * ((z1 - z0) ** 2).mean()

    def check(self, made):
        assert_close(made.shared.perturbations.permute(0, 3, 1, 2), self.u)
        assert_close(made.shared.momentum.permute(0, 3, 1, 2), self.m)


class Liet(Plain):
    steps, refreshed = 0, 0

    def rand(self, *shape):
        return torch.rand(shape, dtype=torch.float64, generator=self.generator)

    def ce(self, z, y):
        target = self.rand(*z.shape)
        target[torch.arange(len(y)), y] = 0
        target = 0.6 * target / target.sum(1, keepdim=True)
        target[torch.arange(len(y)), y] = 0.4
        return -(target * z.log_softmax(1)).sum(1).mean()

    def start_epoch(self, epoch, epochs):
        super().start_epoch(epoch, epochs)
        self.steps = 0

    def total(self, x, y):
        if self.steps % EVERY == 0:
            self.model.eval()
            grey = torch.full((CLASSES, 3, H, W), 0.5).double().contiguous(memory_format=torch.channels_last)
            self.g = self.eps * self.pass1(grey, torch.arange(CLASSES))[2].sign()
            self.model.train()
            self.refreshed += 1
        self.steps += 1
        shape = (len(x), H, W, 3)
        r, turned = self.rand(2)
        at = self.rand(*shape).permute(0, 3, 1, 2) < LEAST + (MOST - LEAST) * r
        noise = torch.empty(shape).double().uniform_(-self.eps, self.eps, generator=self.generator)
        start = torch.where(at, noise.permute(0, 3, 1, 2), self.g[y])
        x0 = (x + (-start if turned < 0.5 else start)).clamp(0, 1)
        _, z0, g = self.pass1(x0, y)
        z1 = self.model(self.inside(x, x0 + self.eps * g.sign()))
        return self.ce(z1, y) + 100 * self.share * js(z0, z1)

    def check(self, made):
        assert_close(made.shared.signs.permute(0, 3, 1, 2) * self.eps, self.g)


class Trades(Plain):
    def total(self, x, y):
        z = self.model(x)
        p = z.softmax(1)
        x1 = x + math.sqrt(2) * torch.erfinv(self.uniform(x, 1.0)) * 0.001
        x1 = x1.clamp(0, 1)
        for _ in range(3):
            x1 = x1.detach().requires_grad_()
            climbed = F.kl_div(self.model(x1).log_softmax(1), p.detach(), reduction="sum")
            g = torch.autograd.grad(climbed, x1)[0]
            x1 = self.inside(x, x1 + 0.01 * g.sign())
        z1 = self.model(x1)
        return self.ce(z, y) + 6 * F.kl_div(z1.log_softmax(1), p, reduction="sum") / len(x)


class Awp(Plain):
    def total(self, x, y):
        x1 = (x + self.uniform(x, self.eps)).clamp(0, 1)
        for _ in range(2):
            x1 = self.inside(x, x1 + 1.25 * self.eps * self.pass1(x1, y)[2].sign())
        names, weights = zip(*self.model.named_parameters(), strict=True)
        grads = torch.autograd.grad(self.ce(self.model(x1), y), weights)
        self.before = dict(zip(names, (w.detach().clone() for w in weights), strict=True))
        with torch.no_grad():
            for w, g in zip(weights, grads, strict=True):
                if w.ndim > 1:
                    w += 0.01 * w.norm() / g.norm() * g
        return self.ce(self.model(x1), y)

    def after(self):
        with torch.no_grad():
            for name, w in self.model.named_parameters():
                w.copy_(self.before[name])


PLAIN = {
    "fgsm-pgi": Prior, "fgsm-mep-cs": Mep, "fgsm-rs-cs": RsCs, "fgsm-uap": Universal, "fgsm-cuap": Universal,
    "liet": Liet, "trades-3": Trades, "awp-pgd-2": Awp,
}  # fmt: skip
EPOCHS = {"fgsm-mep-cs": 7, "fgsm-rs-cs": 7}
TIED = ("apart+mse", "apart+js")  # tests/step/test_step.py


def assert_close(mine, theirs):
    torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-11)


def made_of(method, dtype=torch.float64, **options):
    options = dict(padding=PAD, eps=EPS, dtype=dtype, seed=SEED, label_smoothing=SMOOTHING) | options
    points = {"points": ["2:output", "5:output"]} if get_method(method).blocks else {}
    return Apart(network(dtype), N, (H, W, 3), method=method, **options, **points)


def advance(made, batch, lr=LR):
    """One step on `batch`: indices, offsets, flips."""
    images, labels = data()
    indices, offsets, flips = batch
    made.model.zero_grad()
    result = made.step(images[indices], labels[indices], indices, offsets=offsets, flips=flips)
    with torch.no_grad():
        for p in made.model.parameters():
            p -= lr * p.grad
    return result


def test_every_row_is_tested_somewhere():
    old = {"standard", "fgsm", "fgsm-rs", "n-fgsm", "pgd", "atta", "fgsm+", "apart"}
    assert {name.rsplit("-", name[-1].isdigit())[0] for name in PLAIN} | old | {*TIED} == set(METHODS)


@pytest.mark.parametrize("method", PLAIN)
def test_steps_agree_with_the_plain_formulas_in_float64(method):
    made = made_of(method)
    plain = PLAIN[method](made)
    images, labels = data()
    generator, epochs = torch.Generator().manual_seed(2), EPOCHS.get(method, 3)
    for epoch in range(epochs):
        made.start_epoch(epoch, 0, epochs)
        plain.start_epoch(epoch, epochs)
        for batch in BATCHES:
            batch = draw(batch, generator)
            before = made.model[0].weight.detach().clone()
            made.model.zero_grad()
            indices, offsets, flips = batch
            made.step(images[indices], labels[indices], indices, offsets=offsets, flips=flips)
            assert torch.equal(made.model[0].weight, before)  # AWP too: to the bit
            grads = [p.grad.clone() for p in made.model.parameters()]
            with torch.no_grad():
                for p in made.model.parameters():
                    p -= LR * p.grad
            plain.step(images[indices], labels[indices], *batch)
            for mine, theirs in zip(grads, plain.model.parameters(), strict=True):
                assert_close(mine, theirs.grad)
            if hasattr(plain, "check"):
                plain.check(made)
    for mine, theirs in zip(made.model.state_dict().values(), plain.model.state_dict().values(), strict=True):
        assert_close(mine, theirs)
    if hasattr(plain, "done"):
        plain.done()


def test_liet_looks_at_grey_every_twenty_steps():
    made = made_of("liet")
    plain, generator = Liet(made), torch.Generator().manual_seed(2)
    made.start_epoch(0)
    plain.start_epoch(0, 100)
    images, labels = data()
    for step in range(EVERY + 2):
        batch = draw(BATCHES[step % 2], generator)
        advance(made, batch)
        plain.step(images[batch[0]], labels[batch[0]], *batch)
        plain.check(made)
    assert plain.refreshed == 2
    assert_close(made.model[0].weight, plain.model[0].weight)


@pytest.mark.parametrize("method", ["fgsm-pgi", "fgsm-mep-cs"])
def test_memory_and_momentum_are_drawn_anew_every_40_epochs(method):
    made = made_of(method)
    advance(made, draw(BATCHES[0], torch.Generator()))
    assert made.memory.contents()[:, 1].abs().max() > 0
    for epoch, anew in ((39, False), (40, True)):
        before = made.memory.contents().clone()
        made.start_epoch(epoch)
        assert torch.equal(before, made.memory.contents()) != anew
    delta, momentum = made.memory.contents().unbind(1)
    assert set(delta.unique().tolist()) == {-1.0, 1.0} and momentum.abs().max() == 0
    assert made.memory.read(torch.tensor([1])).shape == (1, 2, 3, H + 2 * PAD, W + 2 * PAD)


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
@pytest.mark.parametrize("method", [*PLAIN, *TIED])
def test_a_step_goes_on_to_the_bit_from_what_is_saved(method, amp):
    made, generator = made_of(method, torch.float32, amp=amp), torch.Generator().manual_seed(2)
    made.start_epoch(2, 0, 9)
    for batch in BATCHES[:2]:
        advance(made, draw(batch, generator))
    state = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    other = made_of(method, torch.float32, amp=amp, seed=SEED + 1)
    other.model.load_state_dict(made.model.state_dict())
    other.load_state_dict(state)
    other._setting.noise._seed = SEED
    last = draw(BATCHES[2], generator)
    other.start_epoch(2, 2, 9)  # as a resumed training does
    assert torch.equal(advance(made, last).loss, advance(other, last).loss)
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    for name, tensor in made.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name]) and tensor.isfinite().all(), name


@pytest.mark.parametrize("where", ["host", "disk"])
def test_a_momentum_lies_anywhere(where, tmp_path):
    found = []
    for place in ("device", where):
        made = made_of("fgsm-pgi", torch.float32, omega_device=place, omega_folder=tmp_path)
        for batch in BATCHES:
            advance(made, draw(batch, torch.Generator().manual_seed(2)))
        found.append(made.memory.contents().clone())
    assert torch.equal(*found)


@pytest.mark.parametrize("ties, tie", [("mse", lambda a, b: ((a - b) ** 2).mean()), ("js", js)])
@pytest.mark.parametrize("through", [False, True])
def test_ties_of_the_passes_are_detached_or_not(ties, tie, through):
    """Over two steps of PGD: z0 are the logits of the first."""
    loss = Loss(ties, 3.0, through_start=through)
    method = Method("x", start="zero", steps=2, step_size=0.5, loss=loss)
    assert method.passes == 7 + 2 * through
    made = made_of(method)
    plain = Plain(made)

    def total(x, y):
        x1, first = x, None
        for _ in range(2):
            _, z, g = plain.pass1(x1, y)
            first = z if first is None else first
            x1 = plain.inside(x, x1 + 0.5 * EPS * g.sign())
        z1 = plain.model(x1)
        return plain.ce(z1, y) + 3 * tie(z1, first if through else first.detach())

    plain.total = total
    images, labels = data()
    batch = draw(BATCHES[0], torch.Generator())
    advance(made, batch)
    plain.step(images[batch[0]], labels[batch[0]], *batch)
    for mine, theirs in zip(made.model.parameters(), plain.model.parameters(), strict=True):
        assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (dict(ties="both"), "ties is 'both': give nothing, mse, js, kl"),
        (dict(weight=-1.0), "weight -1.0 is too small"),
        (dict(relax=1.0), "relax 1.0 is too large"),
        (dict(at="image"), "give ties"),
        (dict(gate=0.1), "needs through_start"),
        (dict(through_start=True), "in vain"),
        (dict(rises=True), "nothing is: give ties, or leave them out"),
        (dict(weight=7.0), "nothing is: give ties, or leave them out"),
        (dict(weight=7.0, gate=0.1, through_start=True), "nothing is: give ties, or leave them out"),
    ],
)
def test_losses_that_make_no_sense_are_told(fields, line):
    with pytest.raises(UserError, match=f"loss: .*{line}"):
        Loss(**fields)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (dict(remembers="class"), "it goes with nothing"),
        (dict(start="class"), "it goes with all or class"),
        (dict(from_start=True, steps=2), "from_start needs steps = 1"),
        (dict(start="class", remembers="class", steps=3), "momentum of gradients needs steps = 1"),
        (dict(weight_step=-1.0), "weight_step -1.0 is too small"),
        (dict(weight_step=0.1, loss=Loss("mse", through_start=True)), "logits have to be detached"),
        (dict(start="none", steps=0, loss=Loss("mse")), "there is none"),
        (dict(reset_every=3), "reset_every 3 would do nothing"),
        (dict(start="class", remembers="class", reset_every=2), "reset_every 2 would do nothing"),
        (dict(start="grey", remembers="grey", reset_every=2), "reset_every 2 would do nothing"),
        (dict(start="none", start_size=0.0, steps=0, reset_every=2), "reset_every 2 would do nothing"),
        (dict(from_start=True, project=False), "project False would do nothing"),
        (dict(start="memory", remembers="momentum", from_start=True, project=False), "project False would do nothing"),
        (dict(start="memory", remembers="direction", start_size=None, step_size=None, project=False), "project False"),
        (dict(start="none", start_size=0.0, steps=0, project=False), "project False would do nothing"),
        (dict(start="none", start_size=0.0, steps=0, step_size=2.0), "step_size 2.0 would do nothing"),
        (dict(start="none", steps=0), "start_size 1.0 would do nothing"),
        (dict(start="zero"), "start_size 1.0 would do nothing"),
        (dict(start="zero", start_size=0.0, from_start=True), "from_start True would do nothing"),
    ],
)
def test_methods_that_cannot_be_are_told(fields, line):
    with pytest.raises(UserError, match=f"method x: .*{line}"):
        Method(**dict(name="x", start="uniform", steps=1, start_size=1.0) | fields)


def test_what_cannot_be_made_is_told():
    with pytest.raises(UserError, match="momentum of fgsm-pgi has no bounds: give omega_dtype float16 or float32"):
        made_of("fgsm-pgi", omega_dtype=torch.int8)
    with pytest.raises(UserError, match="fgsm-uap remembers nothing of each example"):
        made_of("fgsm-uap", omega_device="host")


@pytest.mark.parametrize("method", ["liet", replace(get_method("fgsm-rs"), name="x", loss=Loss(relax=0.6))])
def test_relaxed_labels_leave_the_true_class_the_likeliest(method):
    images = torch.zeros(4, H, W, 3, dtype=torch.uint8)
    for classes, told in ((3, False), (2, True)):
        net = nn.Sequential(nn.Flatten(), nn.Linear(3 * H * W, classes))

        def step(net=net):
            made = Apart(net, 4, (H, W, 3), padding=0, method=method)
            made.start_epoch(0)
            made.step(images, torch.zeros(4, dtype=torch.int64))

        if not told:
            step()
            continue
        with pytest.raises(UserError, match=f"relaxed by 0.6 would teach {classes} classes another one"):
            step()


def test_liet_is_refused_where_several_processes_train():
    ranks = Ranks(exchange=None, examples=torch.arange(N), total=2 * N)
    with pytest.raises(UserError, match="method liet draws for the whole batch: train it with one process"):
        made_of("liet", ranks=ranks)
