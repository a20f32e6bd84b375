"""The kernels that take relu along, against autograd and Triton, and the block points that use them.

The Triton kernels run as in test_kernels.py: compiled on a CUDA machine, elsewhere in the interpreter, in a process of
their own that runs this file as a script.
"""

import copy
import math
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreting import check, needs_triton, print_failures, run_interpreted
from problems import compare
from torch import nn

from apart_fast import Apart, UserError, build_model, kernels
from apart_fast.kernels import point
from apart_fast.kernels.layout import dense, same_layout
from apart_fast.kernels.problems import CALLS, FLOATS, LAYOUTS, example_arguments, relu_tensors
from apart_fast.models import default_points
from apart_fast.models.folding import fold
from apart_fast.models.modes import frozen
from apart_fast.step.points import BlockPoints, PointReLU

SHAPE = (12, 12, 3)


# --- every Triton kernel against its twin


def example_case(device, kernel, *args):
    compare(CALLS[kernel](device, *args))


def edges_case(device, *args):
    compare(CALLS["relu_sign_dot"](device, *args, edges=True))


def _cases():
    for kernel, args in example_arguments():
        if kernel.startswith("relu"):
            shape, dtype, layouts = args
            name = f"{kernel} {'x'.join(map(str, shape))} {str(dtype)[6:]} {' '.join(layouts)}"
            yield name, example_case, (kernel, shape, dtype, layouts)
            if kernel == "relu_sign_dot":
                yield f"{name} edges", edges_case, (shape, dtype, layouts)


CASES = {name: (case, args) for name, case, args in _cases()}


@pytest.fixture(scope="module")
def interpreted():
    return run_interpreted(__file__)


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_triton_kernel_equals_twin(name, request):
    check(CASES, name, request)


# --- the twins against torch's relu


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.integers(1, 5)] * 4),
    st.sampled_from((*FLOATS, torch.float64)),
    st.tuples(*[st.sampled_from(LAYOUTS)] * 3),
    st.sampled_from((1, 7, 1 << 20)),
    st.integers(0, 99),
)
def test_twins_equal_relu_and_its_autograd(shape, dtype, layouts, chunk, seed):
    grad, z, s = relu_tensors(shape, dtype, layouts, seed=seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    alpha = torch.tensor(0.0123, dtype=wide)
    same = dict(rtol=0, atol=0, equal_nan=True)
    leaf = z.clone().requires_grad_()
    a = F.relu(leaf)
    (expected,) = torch.autograd.grad(a, leaf, grad)
    a = a.detach()
    with mock.patch.object(point, "CHUNK", chunk):
        signs, from_a = kernels.relu_capture_sign(grad, a)
        perturbed = kernels.relu_add_sign(z, s, alpha)
        dz, dot = kernels.relu_sign_dot(grad, z, s)
        assert torch.equal(signs, kernels.capture_sign(grad))
        torch.testing.assert_close(perturbed, kernels.add_sign(a, s, alpha), **same)
        torch.testing.assert_close(dot, kernels.sign_dot(grad, s), **same)
    torch.testing.assert_close(perturbed, (a.to(wide) + alpha * s).to(dtype), **same)
    for mine in (from_a, dz, kernels.relu_capture_sign(grad, z)[1]):
        torch.testing.assert_close(mine, expected, **same)
    for mine, like in ((signs, grad), (from_a, grad), (dz, grad), (perturbed, z)):
        assert same_layout(mine, dense(like))


def test_what_relu_does_at_its_edges():
    z = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf, 2.0, -2.0])
    assert kernels.relu_add_sign(z, torch.ones(7, dtype=torch.int8), torch.tensor(0.5)).tolist() == pytest.approx(
        [0.5, 0.5, math.nan, math.inf, 0.5, 2.5, 0.5], nan_ok=True
    )
    grad = torch.tensor([3.0, math.inf, 3.0, -3.0, math.nan, math.nan, -math.inf])
    expected = pytest.approx([0, 0, 3, -3, 0, math.nan, 0], nan_ok=True)  # off is 0, whatever comes
    assert kernels.relu_sign_dot(grad, z, torch.zeros(7, dtype=torch.int8))[0].tolist() == expected
    signs, dz = kernels.relu_capture_sign(grad, z)
    assert signs.tolist() == [1, 1, 1, -1, 0, 0, -1] and dz.tolist() == expected


def test_shapes_that_differ_are_refused():
    a, s = torch.zeros(2, 3), torch.zeros(3, 2, dtype=torch.int8)
    for call in (
        lambda: kernels.relu_capture_sign(a, a.T),
        lambda: kernels.relu_add_sign(a, s, torch.tensor(0.1)),
        lambda: kernels.relu_sign_dot(a, a, s),
        lambda: kernels.relu_sign_dot(a, a.T, s.T),
    ):
        with pytest.raises(ValueError, match="shapes differ"):
            call()


def test_inputs_that_require_gradients_are_accepted_outside_autograd():
    z = torch.randn(2, 3, 4, 5, requires_grad=True)
    s, dz = kernels.relu_capture_sign(z, z)
    assert not dz.requires_grad and not kernels.relu_add_sign(z, s, torch.tensor(0.1)).requires_grad
    assert not any(t.requires_grad for t in kernels.relu_sign_dot(z, z, s))


# --- block points at the output of a ReLU


def tiny(name="preact_resnet18"):
    torch.manual_seed(0)
    return build_model(name, 4, image_size=SHAPE[:2], width=0.0625).double()


def both_passes(model, points):
    """Signs of pass 1; logits and gradients of input, step sizes and weights in pass 2."""
    x = torch.rand(4, 3, *SHAPE[:2], dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    alphas = torch.linspace(0.01, 0.1, len(points), dtype=torch.float64).requires_grad_()
    with frozen(model), points.capturing() as signs:
        torch.autograd.grad(model(x).logsumexp(1).sum(), x)
    with points.perturbing(signs, alphas.unbind()):
        logits = model(x)
    model.zero_grad()
    logits.logsumexp(1).sum().backward()
    return [*signs, logits.detach(), x.grad, alphas.grad, *(p.grad for p in model.parameters())]


def assert_equal(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def count_fused(model):
    return sum(type(module) is PointReLU for module in model.modules())


@pytest.mark.parametrize(("name", "fused"), [("preact_resnet18", 8), ("preact_resnet50", 12), ("wide_resnet28_10", 9)])
def test_fused_points_give_what_the_inputs_of_the_convolutions_give(name, fused):
    """The activation that a projection reads too is perturbed on the way to the convolution only."""
    model, plain = tiny(name), tiny(name)
    points = BlockPoints(model, default_points(model))
    found = both_passes(model, points)
    assert_equal(found, both_passes(plain, BlockPoints(plain, ["layer*.*.conv1"])))
    assert (count_fused(model), count_fused(plain)) == (fused, 0)
    assert all(s.dtype == torch.int8 and s.abs().max() == 1 for s in found[: len(points)])


def test_points_take_the_fused_kernels(monkeypatch):
    model, calls = tiny(), []
    for name in ("add_sign", "capture_sign", "sign_dot", "relu_add_sign", "relu_capture_sign", "relu_sign_dot"):
        call = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *a, name=name, call=call: (calls.append(name), call(*a))[1])
    both_passes(model, BlockPoints(model, default_points(model)))
    assert calls == ["relu_capture_sign"] * 8 + ["relu_add_sign"] * 8 + ["relu_sign_dot"] * 8


def test_copies_keep_silent_and_removing_restores_the_relu():
    model, plain = tiny(), tiny()
    x = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    points = BlockPoints(model, default_points(model))
    average = copy.deepcopy(model)
    assert type(model.layer1[0].relu1) is type(average.layer1[0].relu1) is PointReLU
    assert isinstance(model.layer1[0].relu1, nn.ReLU) and model.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(average(x), plain(x)) and torch.equal(model(x), plain(x))
    points.remove()
    assert all(type(block.relu1) is nn.ReLU and "_at" not in vars(block.relu1) for block in model.layer1)
    assert torch.equal(model(x), plain(x)) and torch.equal(average(x), plain(x))


def test_a_copy_of_a_model_with_points_takes_points_of_its_own():
    model = tiny()
    silent = BlockPoints(model, default_points(model))
    other = copy.deepcopy(model)
    expected = both_passes(model, silent)
    calls = list(silent._calls)
    assert_equal(both_passes(other, BlockPoints(other, default_points(other))), expected)
    assert silent._calls == calls


def test_removing_twice_leaves_later_points_alone():
    model = tiny()
    first = BlockPoints(model, default_points(model))
    first.remove()
    BlockPoints(model, default_points(model))
    first.remove()
    assert count_fused(model) == 8


class Net(nn.Module):
    """Stem, one relu that is called `times` times, head."""

    def __init__(self, times=1, inplace=False):
        super().__init__()
        self.stem, self.relu, self.head = nn.Conv2d(3, 8, 3), nn.ReLU(inplace), nn.Linear(8, 4)
        self.times = times

    def forward(self, x):
        x = self.stem(x)
        return self.head(sum((self.relu(x + i) for i in range(self.times)), x).mean((2, 3)))


def run(net):
    data = torch.randint(0, 256, (6, *SHAPE), dtype=torch.uint8), torch.arange(6) % 4, torch.arange(6)
    apart = Apart(net, 6, SHAPE, points=["relu:output"])
    apart.step(*data)
    return apart


def test_calls_are_counted():
    assert run(Net()).step_sizes.grad[2] != 0
    for times in (0, 2):
        with pytest.raises(UserError, match=f"'relu' was called {times} times"):
            run(Net(times))


def test_a_relu_that_works_in_place_is_not_fused_and_gives_the_same():
    found = []
    for inplace in (False, True):
        torch.manual_seed(0)
        net = Net(inplace=inplace).double()
        found.append(both_passes(net, BlockPoints(net, ["relu:output"])))
        assert type(net.relu) is (nn.ReLU if inplace else PointReLU)
    assert_equal(*found)


def test_a_forward_hook_that_was_there_first_stays_before_the_point():
    net, seen = Net(), []
    net.relu.register_forward_hook(lambda module, args, out: seen.append(out.min().item()))
    points = BlockPoints(net, ["relu:output"])
    x, s = torch.rand(2, 3, 12, 12), -torch.ones(2, 8, 10, 10, dtype=torch.int8)
    with points.perturbing([s], [torch.tensor(100.0)]):
        net(x)
    assert seen[0] >= 0 and type(net.relu) is nn.ReLU


def test_compiled_passes_and_an_evaluation_of_a_compiled_model():
    """Two steps and an evaluation, with a backend that needs no compiler."""
    model = Net().double()
    plain = copy.deepcopy(model)
    mine, theirs = (BlockPoints(m, ["relu:output"]) for m in (model, plain))
    mine.keep_signs()
    torch._dynamo.reset()
    assert_equal(both_passes(model, mine), both_passes(plain, theirs))
    model.compile(dynamic=False, backend="aot_eager")
    for _ in range(2):
        assert_equal(both_passes(model, mine), both_passes(plain, theirs))
    x = torch.rand(2, 3, *SHAPE[:2], dtype=torch.float64)
    with torch.no_grad():
        assert_equal([model.eval()(x), fold(model, x)(x)], [plain.eval()(x)] * 2)


if __name__ == "__main__":
    print_failures(CASES)
