"""What depends on the epoch in a loop of one's own: it is told, or asked for, and goes on from a saved state."""

import warnings

import pytest
import torch
from torch import nn

from apart_fast import Apart, UserError, get_method

N, SHAPE = 12, (8, 8, 3)
METHODS = "standard fgsm fgsm-rs n-fgsm pgd-2 atta-1 fgsm+ apart apart+mse apart+js".split()
METHODS += "fgsm-pgi fgsm-mep-cs fgsm-rs-cs fgsm-uap fgsm-cuap liet trades-2 awp-pgd-2".split()
TOLD = ["atta-1", "apart+js", "fgsm-pgi", "fgsm-mep-cs", "fgsm-rs-cs", "liet"]


def data():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (N, *SHAPE), dtype=torch.uint8, generator=generator)
    return images, torch.arange(N) % 5, torch.arange(N)


def made(method, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    points = ["2:output"] if get_method(method).blocks else None
    return Apart(model, N, SHAPE, padding=1, method=method, points=points, **options)


def said(do):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        do()
    return [(str(warning.message), warning.filename) for warning in found]


def gradients(apart):
    apart.model.zero_grad()
    apart.step(*data())
    return torch.cat([p.grad.flatten() for p in apart.model.parameters()])


def steps(apart, count=2):
    for _ in range(count):
        apart.step(*data())


@pytest.mark.parametrize("method", METHODS)
def test_a_loop_that_names_no_epoch_is_told_once_where_that_matters(method):
    apart = made(method)
    lines = said(lambda: steps(apart))
    assert len(lines) == (method in TOLD)
    for text, file in lines:
        assert method in text and "start_epoch" in text and "\n" not in text and file == __file__
    apart = made(method)
    apart.start_epoch(0, epochs=3)
    assert said(lambda: steps(apart)) == []


@pytest.mark.parametrize("method", METHODS)
def test_who_does_not_say_how_many_epochs_there_are_is_told_where_that_matters(method):
    apart = made(method)
    lines = said(lambda: [apart.start_epoch(epoch) for epoch in range(2)])
    assert len(lines) == (method in TOLD and method not in ("atta-1", "fgsm-pgi"))
    assert all("100 epochs" in text and file == __file__ for text, file in lines)
    assert said(lambda: steps(apart)) == []


@pytest.mark.parametrize("method", METHODS)
def test_the_state_alone_is_enough_within_an_epoch(method):
    first = made(method, seed=3)
    first.set_rates(1e-3, 0.5)
    first.start_epoch(5, 0, 9)
    first.step(*data())
    other = made(method, seed=3)
    other.model.load_state_dict(first.model.state_dict())
    other.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
    assert said(lambda: torch.testing.assert_close(gradients(other), gradients(first), rtol=0, atol=0)) == []
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize("method", ["fgsm-rs", "apart+js", "fgsm-rs-cs"])
def test_a_state_from_before_the_first_epoch_is_one(method):
    fresh, other = made(method), made(method)
    other.start_epoch(5, 0, 9)
    other.load_state_dict({name: tensor.clone() for name, tensor in fresh.state_dict().items()})
    assert torch.equal(gradients(fresh), gradients(other))


@pytest.mark.parametrize("method", ["fgsm-rs", "apart+js", "fgsm-rs-cs"])
def test_states_of_earlier_versions_leave_epoch_and_rates_as_they_are(method):
    first, other = made(method), made(method)
    for apart in (first, other):
        apart.set_rates(1e-3, 0.5)
        apart.start_epoch(5, 0, 9)
    first.step(*data())
    state = {name: t.clone() for name, t in first.state_dict().items() if name not in ("epoch", "eta", "momentum")}
    other.model.load_state_dict(first.model.state_dict())
    other.load_state_dict(state)
    assert torch.equal(gradients(first), gradients(other))
    assert torch.equal(first.step_sizes, other.step_sizes)


@pytest.mark.parametrize("given", [(-1,), (0.5,), (0, -1), (0, 0, 0), (0, 0, -3), ("1",)])
def test_epochs_that_cannot_be_are_refused(given):
    apart = made("apart+js")
    with pytest.raises(UserError, match="epoch|step"):
        apart.start_epoch(*given)
    assert said(lambda: apart.step(*data()))  # nothing was taken over
