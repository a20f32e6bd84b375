"""The `Apart` object in other people's hands, and every method of the family through it."""

import copy
import io
import pickle
import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from apart_fast import METHODS, Apart, Method, UserError, build_model, evaluate, get_method
from apart_fast.models import layers
from apart_fast.models.channels_last import any_layout
from apart_fast.step import apart as apart_module

SHAPE = (12, 12, 3)


def tiny(**kwargs):
    torch.manual_seed(0)
    return build_model("preact_resnet18", 4, image_size=(12, 12), width=0.0625, **kwargs)


def data(n=6):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, *SHAPE), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 4, (n,), generator=generator), torch.arange(n)


def perturbed(apart, images, labels, indices, **where):
    """(x, what pass 2 is given), both [B, H, W, C]."""
    seen = []
    pass2 = apart._pass2
    apart._pass2 = lambda x, *rest: (seen.append(x.detach().clone()), pass2(x, *rest))[1]
    where = dict(offsets=torch.full((len(labels), 2), apart.padding), flips=torch.zeros(len(labels)).bool()) | where
    apart.step(images, labels, indices, **where)
    return images / 255.0, seen[0]


ALL = ["standard", "fgsm", "fgsm-rs", "n-fgsm", "pgd-3", "atta-2", "fgsm+", "apart", "apart+mse", "apart+js"]
ALL += ["fgsm-pgi", "fgsm-mep-cs", "fgsm-rs-cs", "fgsm-uap", "fgsm-cuap", "liet", "trades-3", "awp-pgd-2"]


@pytest.mark.parametrize("name", ALL)
def test_every_method_stays_in_its_ball(name):
    method = get_method(name)
    eps = 0.05
    apart = Apart(tiny(), 6, SHAPE, padding=2, eps=eps, method=name)
    apart.alpha, apart.alpha_omega = (0.04, 0.04) if method.learned else (0, 0)
    if apart.memory is not None:
        apart.memory.store.uniform_(-1, 1, generator=apart.generator)
    x, x1 = perturbed(apart, *data())
    bound = {"standard": 0.0, "n-fgsm": 3 * eps, "fgsm-rs-cs": 2 * eps}.get(name, eps)
    assert (x1 - x).abs().max() <= bound + 1e-6
    assert (x1 - x).abs().max() >= 0.9 * bound
    assert x1.min() >= 0 and x1.max() <= 1
    assert len(ALL) == len(METHODS)


@pytest.mark.parametrize("name", ["fgsm", "fgsm-rs", "n-fgsm", "pgd-4", "fgsm-rs-cs", "awp-pgd-2"])
def test_the_perturbation_raises_the_loss(name):
    apart = Apart(tiny(), 6, SHAPE, eps=0.02, method=name)
    result = apart.step(*data())
    assert result.loss > result.start_loss


def test_fgsm_is_the_sign_of_the_gradient():
    model = tiny()
    apart = Apart(copy.deepcopy(model), 6, SHAPE, padding=0, eps=0.03, method="fgsm")
    images, labels, indices = data()
    x, x1 = perturbed(apart, images, labels, indices)
    leaf = x.clone().requires_grad_()
    nn.functional.cross_entropy(model(leaf.permute(0, 3, 1, 2)), labels).backward()
    assert torch.equal(x1, (x + 0.03 * leaf.grad.sign()).clamp(0, 1)) or (
        (x1 - (x + 0.03 * leaf.grad.sign()).clamp(0, 1)).abs().max() < 1e-6
    )


def test_atta_starts_where_it_ended_through_crop_and_flip():
    apart = Apart(tiny(), 6, SHAPE, padding=2, eps=0.05, method="atta-1")
    where = dict(offsets=torch.tensor([[1, 3]] * 6), flips=torch.tensor([True, False] * 3))
    images, labels, indices = data()
    seen = []
    pass1, pass2 = apart._pass1, apart._pass2
    apart._pass1 = lambda x, *rest: (seen.append(x.clone()), pass1(x, *rest))[1]
    apart._pass2 = lambda x, *rest: (seen.append(x.clone()), pass2(x, *rest))[1]
    apart.step(images, labels, indices, **where)
    apart.step(images, labels, indices, **where)
    first_end, second_start = seen[1], seen[2]
    assert (first_end - second_start).abs().max() < 1e-4  # float16 store
    before = apart.memory.store.clone()
    apart.start_epoch(10)
    assert not torch.equal(before, apart.memory.store) and apart.memory.store.abs().max() < 0.01
    before = apart.memory.store.clone()
    apart.start_epoch(11)
    assert torch.equal(before, apart.memory.store)


def test_rows_pick_from_a_resident_data_set():
    images, labels, indices = data()
    rows = torch.tensor([4, 1, 2])
    where = dict(offsets=torch.zeros(3, 2, dtype=torch.long), flips=torch.tensor([True, False, True]))
    results = []
    for args in ((images, labels[rows], rows), (images[rows], labels[rows], rows)):
        apart = Apart(tiny(), 6, SHAPE)
        extra = {"rows": rows} if len(args[0]) == 6 else {}
        results.append(apart.step(*args, **where, **extra).loss)
    assert torch.equal(*results)


def test_only_the_given_rows_of_omega_change():
    apart = Apart(tiny(), 6, SHAPE, omega_dtype=torch.float32)
    images, labels, _ = data()
    before = apart.memory.read(torch.arange(6))
    apart.step(images[:2], labels[:2], torch.tensor([5, 2]))
    changed = (apart.memory.read(torch.arange(6)) != before).flatten(1).any(1)
    assert changed.tolist() == [False, False, True, False, False, True]


def test_what_can_be_read_and_set():
    apart = Apart(tiny(), 6, SHAPE)
    assert apart.alpha.item() == pytest.approx(1e-4) and apart.alpha_omega.item() == pytest.approx(1e-4)
    assert apart.alpha_blocks.tolist() == [0.0] * 8
    apart.alpha = 0.02
    apart.alpha_blocks = [0.5] * 8
    assert apart.step_sizes[0].item() == pytest.approx(0.02) and apart.step_sizes[2:].tolist() == [0.5] * 8
    values = torch.rand(2, 3, 20, 20) * 2 - 1
    apart.memory.write(torch.tensor([1, 3]), values)
    assert (apart.memory.read(torch.tensor([1, 3])) - values).abs().max() < 5e-4
    result = apart.step(*data())
    assert result.correct <= 6


@pytest.mark.parametrize("dtype, off", [(torch.float16, 5e-4), (torch.int8, 4e-3), (torch.float32, 0)])
def test_store_dtypes(dtype, off):
    apart = Apart(tiny(), 6, SHAPE, omega_dtype=dtype)
    values = torch.rand(6, 3, 20, 20) * 2 - 1
    apart.memory.write(torch.arange(6), values)
    assert (apart.memory.read(torch.arange(6)) - values).abs().max() <= off
    apart.step(*data())


def test_state_goes_on_as_if_nothing_had_happened():
    images, labels, indices = data()
    model = tiny()
    apart = Apart(model, 6, SHAPE, seed=1)
    apart.step(images, labels, indices)
    saved = {k: v.clone() for k, v in apart.state_dict().items()}, copy.deepcopy(model.state_dict())
    expected = apart.step(images, labels, indices)
    other_model = tiny()
    other = Apart(other_model, 6, SHAPE, seed=2)
    other.load_state_dict(saved[0])
    other_model.load_state_dict(saved[1])
    assert torch.equal(other.step(images, labels, indices).loss, expected.loss)
    assert torch.equal(other.memory.store, apart.memory.store)


def test_states_that_do_not_fit():
    apart = Apart(tiny(), 6, SHAPE)
    with pytest.raises(UserError, match="memory is .*7, 20, 20, 3.* there and .*6, 20, 20, 3.* here"):
        apart.load_state_dict(Apart(tiny(), 7, SHAPE).state_dict())
    with pytest.raises(UserError, match="float32 there, torch.float16 here"):
        apart.load_state_dict(Apart(tiny(), 6, SHAPE, omega_dtype=torch.float32).state_dict())
    with pytest.raises(UserError, match="does not fit"):
        apart.load_state_dict(Apart(tiny(), 6, SHAPE, method="fgsm").state_dict())


class Own(nn.Module):
    """Somebody's network, without any regard for us."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.blocks = nn.ModuleList([nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)) for _ in range(3)])
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


def test_any_network_takes_block_steps_at_input_or_output():
    for points in (["blocks.*.1"], ["blocks.*.0:output"]):  # the same places, said in two ways
        torch.manual_seed(0)
        apart = Apart(Own(), 6, SHAPE, points=points)
        apart.alpha_blocks = [0.1, 0.2, 0.3]
        where = dict(offsets=torch.full((6, 2), 4), flips=torch.zeros(6, dtype=torch.bool))
        loss = apart.step(*data(), **where).loss
        grads = apart.step_sizes.grad
        if points == ["blocks.*.1"]:
            expected = loss, grads
    assert torch.allclose(loss, expected[0]) and torch.allclose(grads, expected[1])
    assert (grads[2:] != 0).all()


def test_hooks_are_silent_outside_a_step():
    model = tiny()
    x = torch.rand(2, 3, 12, 12)
    model.eval()
    before = model(x)
    apart = Apart(model, 6, SHAPE)
    apart.alpha_blocks = [1.0] * 8
    average = copy.deepcopy(model)
    model.train()
    apart.step(*data())
    model.eval(), average.eval()
    assert torch.equal(average(x), before)
    model.load_state_dict(average.state_dict())
    assert torch.equal(model(x), before)


def as_it_is(model):
    """What a user sees of a model besides the numbers in it."""
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    names = [set(vars(m)) for m in model.modules()]
    return [type(m) for m in model.modules()], hooks, names, [t.stride() for t in model.state_dict().values()]


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
@pytest.mark.parametrize("network", ["preact_resnet18", "torchvision", "viewing"])
def test_after_remove_the_model_is_as_it_came(network, amp):
    torch.manual_seed(0)
    if network == "viewing":
        model = Viewing(3).to(memory_format=torch.channels_last)
        settings = dict(padding=0, method="standard")
    elif network == "torchvision":
        model, settings = build_model("torchvision/resnet18", 4, image_size=(32, 32)), {}
    else:
        model, settings = tiny(), dict(points=["layer*.*.relu1:output"])
    before = as_it_is(model)
    apart = Apart(model, 6, SHAPE, amp=amp, **settings)
    apart.step(*data())
    assert as_it_is(model)[:1] != before[:1] or amp is None
    apart.remove()
    assert as_it_is(model) == before
    apart.remove()  # once more changes nothing
    if network == "viewing":  # as it came it takes no pixels
        model.to(memory_format=torch.contiguous_format)
    x = torch.rand(2, 3, 12, 12)
    model.eval()
    assert torch.equal(torch.jit.script(model)(x), model(x))


def test_layers_can_be_fused_after_remove():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(800, 4))
    apart = Apart(model, 6, SHAPE, padding=0, points=["2:output"], amp=torch.bfloat16)
    apart.step(*data())
    apart.remove()
    fused = torch.ao.quantization.fuse_modules(model.eval(), [["0", "1", "2"]])
    x = torch.rand(2, 3, 12, 12)
    assert torch.allclose(fused(x), model(x), atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "wide_resnet50_2"])
def test_torchvision_models_take_block_steps(name):
    torch.manual_seed(0)
    model = build_model(f"torchvision/{name}", 4, image_size=(32, 32))
    apart = Apart(model, 4, (32, 32, 3))
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    apart.step(images, torch.arange(4), torch.arange(4))
    assert len(apart.points) == {"resnet18": 8, "wide_resnet50_2": 16}[name]
    assert (apart.step_sizes.grad[2:] != 0).all()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("uap", "fgsm-uap"),
        ("cuap", "fgsm-cuap"),
        ("trades10", "trades-10"),
        ("TRADES 10", "trades-10"),
        ("trades_7", "trades-7"),
        ("pgd10", "pgd-10"),
        ("pdg-7", "pgd-7"),
        ("awp", "awp-pgd"),
        ("awp 5", "awp-pgd-5"),
        ("trades0", "trades"),
        ("pgd9999", "pgd"),
        ("fgsm 3", "fgsm"),
        ("cs", "fgsm-mep-cs or fgsm-rs-cs"),
        ("apart js", "apart+js"),
        ("fgsmrs", "fgsm-rs"),
        ("liett", "liet"),
    ],
)
def test_what_a_name_may_stand_for_is_named(name, meant):
    with pytest.raises(UserError, match=f"did you mean {re.escape(meant)}[?]"):
        get_method(name)
    for other in meant.split(" or "):
        get_method(other)


@pytest.mark.parametrize("label", [-1, 4])
@pytest.mark.parametrize("name", ALL)
def test_a_wrong_label_is_told_in_the_first_step(name, label):
    images, labels, indices = data()
    labels[0] = label
    with pytest.raises(IndexError, match="a label is outside of 0..3|a label is below 0"):
        Apart(tiny(), 6, SHAPE, method=name).step(images, labels, indices)


def test_weights_that_are_not_trained_are_not_moved():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(400, 4))
    for p in model.parameters():
        p.requires_grad_(p.ndim == 1)
    images, labels, indices = data()
    found = []
    for method in ("awp-pgd-2", "pgd-2"):
        model.zero_grad()
        model[1].reset_running_stats()
        warned = pytest.warns(UserWarning, match="none is moved") if method == "awp-pgd-2" else nullcontext()
        with warned:
            Apart(model, 6, SHAPE, method=method, seed=3).step(images, labels, indices)
        found.append(torch.cat([p.grad for p in model.parameters() if p.requires_grad]))
    assert torch.equal(*found)


@pytest.mark.parametrize("moved", [0, 2])
def test_weights_whose_move_is_interrupted_are_as_before(moved, monkeypatch):
    model, norm, calls = tiny(), torch.Tensor.norm, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2 * moved + 1:  # two norms a tensor
            raise KeyboardInterrupt
        return norm(*arguments)

    apart = Apart(model, 6, SHAPE, method="awp-pgd-2")
    before = [p.detach().clone() for p in model.parameters()]
    monkeypatch.setattr(torch.Tensor, "norm", interrupted)
    with pytest.raises(KeyboardInterrupt):
        apart.step(*data())
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", ["indices", "rows", "offsets", "flips"])
def test_what_goes_with_a_batch_is_a_tensor_beside_the_model(name):
    images, labels, indices = data()
    given = dict(indices=indices, rows=torch.arange(6), offsets=torch.zeros(6, 2).long(), flips=torch.ones(6).bool())
    apart = Apart(tiny(), 6, SHAPE)
    with pytest.raises(ValueError, match=f"{name} are on meta, the model on cpu: move them there"):
        apart.step(images, labels, **{**given, name: given[name].to("meta")})
    with pytest.raises(ValueError, match=f"{name} are a list: give a tensor"):
        apart.step(images, labels, **{**given, name: given[name].tolist()})


def test_numbers_of_numpy_are_taken():
    ours, theirs = (
        Apart(tiny(), kind(6), tuple(map(kind, SHAPE)), padding=kind(2), seed=kind(3)) for kind in (int, np.int64)
    )
    assert torch.equal(*(one.step(*data()).loss for one in (ours, theirs)))


@pytest.mark.parametrize("stage", ["memory_of", "check_takes", "thin_out", "make_shared", "ExampleNoise"])
def test_a_model_that_is_refused_is_as_it_came(stage, monkeypatch):
    """Wherever it is refused: the next attempt has its fused points."""

    def refuse(*_arguments):
        raise UserError("refused")

    model = Viewing(3).to(memory_format=torch.channels_last) if stage == "check_takes" else tiny()
    kinds = [type(m) for m in model.modules()]
    with monkeypatch.context() as patch, pytest.raises(UserError, match="refused"):
        patch.setattr(layers if stage == "thin_out" else apart_module, stage, refuse)
        Apart(model, 6, SHAPE, amp=torch.bfloat16, points=["norm"] if stage == "check_takes" else None)
    assert [type(m) for m in model.modules()] == kinds
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.dim() == 4)
    if stage != "check_takes":
        assert all(Apart(model, 6, SHAPE, amp=torch.bfloat16).points._fused)


def test_bad_use_is_told():
    images, labels, indices = data()
    with pytest.raises(UserError, match="'nowhere.*' matches no submodule"):
        Apart(tiny(), 6, SHAPE, points=["nowhere.*"])
    with pytest.raises(UserError, match="after the colon"):
        Apart(tiny(), 6, SHAPE, points=["layer*.*.conv1:middle"])
    with pytest.raises(UserError, match="8/255"):
        Apart(tiny(), 6, SHAPE, eps=8)
    with pytest.raises(UserError, match="did you mean pgd"):
        Apart(tiny(), 6, SHAPE, method="pdg-10")
    with pytest.raises(UserError, match="takes no number"):
        get_method("fgsm-rs-3")
    with pytest.raises(UserError, match="steps = 1"):
        Method("x", "memory", 2, None, None, remembers="direction")
    with pytest.raises(UserError, match="cannot hold eps"):
        Method("x", "memory", 1, 0.5, remembers="perturbation")
    apart = Apart(tiny(), 6, SHAPE)
    with pytest.raises(ValueError, match="give the indices"):
        apart.step(images, labels)
    for more, line in (
        (dict(indices=indices.int()), "indices are torch.int32"),
        (dict(indices=indices[:4]), "indices are torch.int64 \\(4,\\)"),
        (dict(labels=labels.float()), "labels are torch.float32"),
        (dict(labels=labels[:4], indices=indices[:4]), "6 images and 4 labels"),
        (dict(images=images[:, :8]), "images are"),
        (dict(offsets=torch.zeros(6, dtype=torch.int64)), "offsets are"),
        (dict(flips=torch.zeros(6)), "flips are"),
        (dict(rows=torch.arange(6).int()), "rows are"),
    ):
        with pytest.raises(ValueError, match=line):
            apart.step(**dict(images=images, labels=labels, indices=indices) | more)
    before = apart.memory.store.clone()
    for wrong in (6, -1):  # neither the row after the last nor the last by another name
        with pytest.raises(IndexError, match="outside of 0..5"):
            apart.step(images, labels, torch.tensor([0, 1, 2, 3, 4, wrong]))
    for more, line in (
        (dict(offsets=torch.full((6, 2), 9)), "outside of 0..8"),
        (dict(offsets=torch.full((6, 2), -1)), "outside of 0..8"),
        (dict(rows=torch.arange(1, 7)), "outside of 0..5"),
    ):
        with pytest.raises(IndexError, match=line):
            apart.step(images, labels, indices, **more)
    assert torch.equal(apart.memory.store, before)
    apart.model.eval()
    with pytest.raises(ValueError, match="eval mode"):
        apart.step(images, labels, indices)


@pytest.mark.parametrize("steps_before", [0, 1])
@pytest.mark.parametrize("name", ["apart", "standard", "pgd-2"])
def test_labels_of_no_class_are_told(name, steps_before):
    images, labels, indices = data()
    apart = Apart(tiny(), 6, SHAPE, method=name)
    for _ in range(steps_before):
        apart.step(images, labels, indices)
    before = {key: value.clone() for key, value in apart.state_dict().items() if key != "generator"}
    for wrong in (-100, -1, 4, 10):
        with pytest.raises(IndexError, match="a label is (below 0|outside of 0..3): each image counts"):
            apart.step(images, labels.clone().index_fill_(0, torch.tensor([2]), wrong), indices)
    for wrong in (labels > 1, labels.float(), labels.int(), labels[:, None], labels[0]):
        with pytest.raises(ValueError, match=r"labels are torch\..*: give int64 \[B\]"):
            apart.step(images, wrong, indices)
    with pytest.raises(ValueError, match="the batch is empty"):
        apart.step(images[:0], labels[:0], indices[:0])
    with pytest.raises(ValueError, match="images are torch.float32: give uint8"):
        apart.step(images / 255, labels, indices)
    assert all(torch.equal(apart.state_dict()[key], value) for key, value in before.items())
    assert apart.step(images, labels, indices).loss.isfinite()


@pytest.mark.parametrize("where", ["device", "host"])
@pytest.mark.parametrize("name", ["apart", "fgsm+", "atta-1"])
def test_an_example_that_is_there_twice_is_told(name, where):
    images, labels, indices = data()
    apart = Apart(tiny(), 6, SHAPE, method=name, omega_device=where)
    before = apart.memory.contents().clone()
    with pytest.raises(ValueError, match="an example is in the batch twice"):
        apart.step(images, labels, torch.tensor([0, 1, 2, 3, 4, 1]))
    assert torch.equal(apart.memory.contents(), before)
    apart.step(images, labels, indices.flip(0))


def test_a_method_that_remembers_nothing_takes_an_example_twice():
    images, labels, _ = data()
    assert Apart(tiny(), 6, SHAPE, method="fgsm").step(images, labels, torch.zeros(6).long()).loss.isfinite()


def test_a_point_called_twice_is_told():
    class Twice(Own):
        def forward(self, x):
            x = self.stem(x)
            return self.head((self.blocks[0](x) + self.blocks[0](x * 2)).mean((2, 3)))

    with pytest.raises(UserError, match="'blocks.0.1' was called 2 times"):
        Apart(Twice(), 6, SHAPE, points=["blocks.0.1"])


class Viewing(nn.Module):
    """As many a published network: `view` on maps that it takes to lie in plain NCHW."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.linear = nn.Linear(12 * 12 * 5, 4)

    def forward(self, x):
        x = self.norm(self.conv(x))
        return self.linear(x.view(x.size(0), -1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("weights", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_a_network_that_views_its_maps_sees_them_as_it_would_alone(amp, weights, channels):
    torch.manual_seed(0)
    model = Viewing(channels)
    other = copy.deepcopy(model).train()
    model.to(memory_format=weights)
    images, labels, indices = data()
    images = images[..., :channels].contiguous()
    apart = Apart(model, 6, (12, 12, channels), padding=0, method="standard", amp=amp, flip=False)
    loss = apart.step(images, labels, indices).loss
    x = (images / 255).permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)
    assert loss.item() == pytest.approx(nn.functional.cross_entropy(other(x), labels).item(), rel=2e-2 if amp else 1e-5)
    assert int(model.norm.num_batches_tracked) == 1  # the trial leaves nothing behind


def test_a_network_in_its_layout_has_the_names_of_its_own():
    model = Viewing(3).to(memory_format=torch.channels_last)
    wrapped = any_layout(model, torch.zeros(2, 3, 12, 12).contiguous(memory_format=torch.channels_last))
    assert wrapped is not model and list(wrapped.state_dict()) == list(model.state_dict())
    state = {name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}
    wrapped.load_state_dict(state)
    assert all((t == 1).all() for t in model.state_dict().values())


class Overwriting(Own):
    """Normalises its pixels where they lie."""

    def forward(self, x):
        return super().forward(x.sub_(0.5).mul_(4))


@pytest.mark.parametrize("name", ["standard", "fgsm", "atta-2", "apart"])
def test_a_network_that_overwrites_its_pixels_gets_a_copy(name):
    class Plain(Own):
        def forward(self, x):
            return super().forward((x - 0.5) * 4)

    found = []
    for kind in (Plain, Overwriting):
        torch.manual_seed(0)
        apart = Apart(kind(), 6, SHAPE, method=name, points=["blocks.*.1"])
        where = dict(offsets=torch.full((6, 2), 4), flips=torch.zeros(6, dtype=torch.bool))
        results = [apart.step(*data(), **where).loss for _ in range(2)]
        rows = [] if apart.memory is None else [apart.memory.store]
        found.append([*results, *rows, *(p.grad for p in apart.model.parameters())])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_an_attack_on_a_network_that_overwrites_its_pixels():
    images, labels, _ = data()
    report = evaluate(Overwriting(), images, labels, attacks=("clean", "pgd-2"), progress=False)
    assert report.attacks.keys() == {"clean", "pgd-2"}


def test_a_perturbation_of_size_zero_is_remembered_as_zero():
    apart = Apart(tiny(), 6, SHAPE, eps=0, method="atta-1")
    for _ in range(2):
        result = apart.step(*data())
    assert torch.isfinite(result.loss) and apart.memory.store.abs().max() < 1e-2


def test_a_generator_of_another_device_goes_on_with_other_numbers():
    apart = Apart(tiny(), 6, SHAPE, method="fgsm-rs")
    state = apart.state_dict() | {"generator": torch.arange(16, dtype=torch.uint8)}  # as a GPU's: seed and place
    a, b = (Apart(tiny(), 6, SHAPE, method="fgsm-rs", seed=seed) for seed in (0, 1))
    first = torch.rand(4, generator=torch.Generator().manual_seed(0))
    a.load_state_dict(state)
    b.load_state_dict(state)
    drawn = [torch.rand(4, generator=one.generator) for one in (a, b)]
    assert torch.equal(*drawn) and not torch.equal(drawn[0], first)


@pytest.mark.parametrize("points", [None, ["layer*.*.conv1", "layer1:output"]])
def test_a_model_in_training_can_be_saved_whole(points):
    model = tiny()
    apart = Apart(model, 6, SHAPE, amp=torch.bfloat16, points=points)
    apart.step(*data())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    x = torch.rand(2, 3, 12, 12)
    assert torch.equal(again.eval()(x), model.eval()(x))
    apart.remove()
    copies = [copy.copy(model.conv1), pickle.loads(pickle.dumps(model.conv1, protocol=0))]
    assert {type(one) for one in copies} == {type(model.conv1)}  # still in full precision


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (dict(num_examples=0), "num_examples 0 is too small: give at least 1"),
        (dict(num_examples=6.0), "num_examples 6.0 is not an integer"),
        (dict(image_shape=(12, 12)), r"image_shape is \(12, 12\): give \(height, width, channels\)"),
        (dict(image_shape=(12, 0, 3)), "the width 0 is too small"),
        (dict(image_shape=(3, 12, 12), padding=1), "cannot take 3x12 images with 12 channels: .* 12 channels"),
        (dict(image_shape=(12, 12, 1), method="fgsm"), "the model cannot take 12x12 images with 1 channels: "),
        (dict(points=[1]), "block point 1 is no text"),
        (dict(padding=-1), "padding -1 is too small"),
        (dict(padding=1.5), "padding 1.5 is not an integer"),
        (dict(padding=12), "padding 12 of 12x12 images: a crop could miss the image; give at most 11"),
        (dict(label_smoothing=-1), "label_smoothing -1 is too small"),
        (dict(label_smoothing=1.5), "label_smoothing 1.5 is too large: give less than 1"),
        (dict(eta=float("nan")), "eta nan is not a finite number"),
        (dict(eta=-1e-8), "eta -1e-08 is too small"),
        (dict(decay=float("nan")), "decay nan is not a finite number"),
        (dict(decay="400"), "decay '400' is not a number"),
        (dict(amp="bfloat16"), "amp is 'bfloat16': give None, torch.bfloat16, torch.float16"),
        (dict(amp=True), "amp is True: give"),
        (dict(dtype=torch.float16), "dtype is torch.float16: give torch.float32, torch.float64"),
        (dict(omega_dtype=torch.bfloat16), "omega_dtype is torch.bfloat16: give None, "),
        (dict(seed=-1), "seed -1 is out of range"),
        (dict(seed=2**64), "seed 18446744073709551616 is out of range"),
        (dict(method=7), "method is 7: give a name"),
        (dict(method="pgd-1000000"), "would not end"),
        (dict(eps=float("nan")), "eps nan is not a finite number"),
        (dict(model=nn.Flatten()), "the model has no parameters"),
        (dict(model=nn.Linear(3, 4).half()), "torch.float16, pixels are torch.float32"),
        (dict(model=lambda x: x), "the model is a function"),
    ],
)
def test_arguments_that_make_no_sense_are_told(arguments, line):
    model = arguments.get("model") or tiny()
    with pytest.raises(UserError, match=line):
        Apart(**dict(model=model, num_examples=6, image_shape=SHAPE) | arguments)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (dict(start="noise"), "start is 'noise': give none, zero, uniform, normal, memory"),
        (dict(remembers="each"), "remembers is 'each'"),
        (dict(steps=1.5), "steps 1.5 is not an integer"),
        (dict(steps=10**6), "steps 1000000 is too large"),
        (dict(start_size=float("nan")), "start_size nan is not a finite number"),
        (dict(step_size=-1.0), "step_size -1.0 is too small"),
        (dict(reset_every=-1), "reset_every -1 is too small"),
        (dict(start_size=None), "a learned size of the start needs start 'memory'"),
    ],
)
def test_methods_that_make_no_sense_are_told(fields, line):
    with pytest.raises(UserError, match=f"method x: {line}"):
        Method(**dict(name="x", start="uniform", steps=1, start_size=1.0) | fields)


@pytest.mark.parametrize("rates", [dict(eta=float("nan")), dict(eta=-1.0), dict(momentum=1.5), dict(momentum=-0.1)])
def test_rates_that_make_no_sense_are_told(rates):
    apart = Apart(tiny(), 6, SHAPE)
    with pytest.raises(UserError, match="(lr|momentum) .*: give"):
        apart.set_rates(**rates)
    apart.step(*data())
    assert apart.step_sizes.isfinite().all()


def test_a_step_that_could_not_train_is_told():
    images, labels, indices = data()
    model = tiny()
    apart = Apart(model, 6, SHAPE)
    before = {key: value.clone() for key, value in apart.state_dict().items() if key != "generator"}
    for switched_off in (torch.no_grad, torch.inference_mode):
        with switched_off(), pytest.raises(ValueError, match="gradients are switched off"):
            apart.step(images, labels, indices)
    for wrong in (dict(images=images.numpy()), dict(labels=[0, 1, 2, 3, 0, 1])):
        with pytest.raises(ValueError, match="(images|labels) are a (ndarray|list): give a tensor"):
            apart.step(**dict(images=images, labels=labels, indices=indices) | wrong)
    for wrong in (dict(images=images.to("meta")), dict(labels=labels.to("meta"))):
        with pytest.raises(ValueError, match="(images|labels) are on meta, the model on cpu: move them there"):
            apart.step(**dict(images=images, labels=labels, indices=indices) | wrong)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="all parameters are frozen"):
        apart.step(images, labels, indices)
    assert all(torch.equal(apart.state_dict()[key], value) for key, value in before.items())
    model.linear.requires_grad_(True)  # a part that learns is enough
    apart.step(images, labels, indices)


def test_a_network_without_a_gradient_at_its_pixels_is_told():
    class Rounded(Own):
        def forward(self, x):
            return super().forward((x * 255).detach().round() / 255)

    with pytest.raises(UserError, match="no gradient reaches the pixels"):
        Apart(Rounded(), 6, SHAPE, method="fgsm").step(*data())
    with pytest.raises(UserError, match="block point 'blocks.0.1' takes a tensor .* not depend on the pixels"):
        Apart(Rounded(), 6, SHAPE, points=["blocks.*.1"])


def test_a_network_that_gives_no_logits_is_told():
    class Pair(Own):
        def forward(self, x):
            return super().forward(x), x

    with pytest.raises(UserError, match="the model gives a tuple"):
        Apart(Pair(), 6, SHAPE, method="fgsm").step(*data())


def test_rows_of_omega_that_make_no_sense_are_told():
    memory = Apart(tiny(), 6, SHAPE, omega_dtype=torch.int8).memory
    before, values = memory.store.clone(), torch.zeros(2, 3, 20, 20)
    for indices, wrong, error, line in (
        (torch.tensor([0, 6]), values, IndexError, "outside of 0..5"),
        (torch.tensor([0, -1]), values, IndexError, "outside of 0..5"),
        (torch.tensor([1, 1]), values, ValueError, "twice"),
        (torch.tensor([0, 1]), values[:, :, :8], ValueError, r"values are .*: give \(2, 3, 20, 20\)"),
        (torch.tensor([0, 1]), values + 2, ValueError, r"not in \[-1, 1\]"),
        (torch.tensor([0, 1]), values / 0, ValueError, r"not in \[-1, 1\]"),
    ):
        with pytest.raises(error, match=line):
            memory.write(indices, wrong)
    with pytest.raises(IndexError, match="outside of 0..5"):
        memory.read(torch.tensor([-1]))
    assert torch.equal(memory.store, before)


def test_a_network_made_for_batches_of_one_size_is_not_tried_in_vain():
    class SixAtATime(Own):
        def forward(self, x):
            return super().forward(torch.cat(x.split([2, 4])))

    assert Apart(SixAtATime(), 6, SHAPE, points=["blocks.*.1"]).step(*data()).loss.isfinite()
