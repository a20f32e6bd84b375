"""A folded copy that is kept takes over the weights that the model has by then."""

import pytest
import torch
from torch import nn

from apart_fast.models import build_model
from apart_fast.models.folding import Folded, fold
from tests.models.test_folding import lively


class Tied(nn.Module):
    """Two convolutions of one weight, one of them folded; a BatchNorm without affine parameters, and one that stays."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3, bias=False), nn.Conv2d(3, 4, 1)
        self.b.weight = self.a.weight
        self.na, self.nb, self.last = nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(3)
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        y = self.na(self.a(x))
        z = self.nb(y + self.b(x))
        return self.linear(self.c(self.last(z).relu()).mean((2, 3)))


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
@pytest.mark.parametrize("name", ["preact_resnet18", "wide_resnet28_10", "tied", "not to be folded"])
def test_a_refreshed_copy_has_the_bits_of_a_new_one(name, amp):
    torch.manual_seed(0)
    model = Tied() if name in ("tied", "not to be folded") else build_model(name, 4, width=0.0625)
    if name == "not to be folded":  # it reads a layer's own numbers
        model.last.forward = lambda x, norm=model.last: x * norm.running_var[:, None, None]
    model = lively(model.to(memory_format=torch.channels_last))
    x = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    kept = Folded(model, x[:2], amp)
    places = [t.data_ptr() for t in (*kept.network.parameters(), *kept.network.buffers())]
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point():
                value.mul_(1 + 0.3 * torch.rand(value.shape))
    kept.refresh()
    wanted, found = fold(model, x[:2], amp).state_dict(), kept.network.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in wanted.items())
    assert places == [t.data_ptr() for t in (*kept.network.parameters(), *kept.network.buffers())]


def test_a_model_that_cannot_be_copied_is_as_new_as_it_is():
    model = build_model("preact_resnet18", 4, width=0.0625).eval()
    model.cache = model.linear.weight * 2  # no leaf: deepcopy refuses
    kept = Folded(model, torch.rand(2, 3, 8, 8))
    kept.refresh()
    assert kept.network is model
