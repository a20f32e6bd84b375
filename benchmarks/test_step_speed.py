"""A training step: APART against PGD-10, the released code, FGSM, ordinary training, and the floor of five passes."""

import pytest
import torch

from benchmarks.checks import check_floor, check_pgd, check_released
from benchmarks.conftest import Rival
from benchmarks.steps import LOW_PRECISION, measure_overhead, measure_rivals, settings

COUNTED_CEILING = 23 / 5  # passes of PGD-10 over those of APART
NOISE = 1.05
PGD_TARGET, RELEASED_TARGET = (4.2, 10.0) if torch.cuda.is_available() else (4.3, 3.5 if LOW_PRECISION else None)

RIVALS = {
    "apart": (
        Rival("pgd-10", COUNTED_CEILING, PGD_TARGET),
        Rival("released float32", target=RELEASED_TARGET),
        Rival("5 bare passes", 1.0),
    ),
    "5 bare passes": (Rival("23 bare passes"),),
    "fgsm": (Rival("apart"), Rival("5 bare passes", 1.0)),
    "standard": (Rival("apart"), Rival("pass 2", 1.0)),
    "pgd-10": (Rival("23 bare passes", 1.0),),
    "released float32": (Rival("apart"),),
}
if LOW_PRECISION:
    RIVALS["apart"] += (Rival("released bfloat16"),)
    RIVALS["released bfloat16"] = (Rival("apart"),)
OVERHEAD = {
    "apart": (Rival("floor", 1.0, 1 / 1.05),),
    "apart + update": (Rival("floor + update", 1.0, 1 / 1.05),),
    "floor": (),
    "floor + update": (),
}


@pytest.fixture(scope="module", params=settings(), ids=str)
def setting(request):
    return request.param


@pytest.fixture(scope="module")
def rivals(setting):
    check_released()
    check_pgd()
    return measure_rivals(setting)


@pytest.fixture(scope="module")
def overhead(setting):
    check_floor()
    return measure_overhead(setting)


@pytest.mark.parametrize("name", OVERHEAD)
def test_overhead(overhead, setting, name, record):
    record(overhead, name, *OVERHEAD[name], group=f"overhead, {setting}")


@pytest.mark.parametrize("name", RIVALS)
def test_step(rivals, setting, name, record):
    record(rivals, name, *RIVALS[name], group=f"step, {setting}")


def test_no_rival_is_crippled(rivals):
    """A speed-up above the ratio of the bare passes would mean that PGD-10 wastes time or APART leaves out work."""
    counted = max(COUNTED_CEILING, rivals.ratio("23 bare passes", "5 bare passes").median)
    assert rivals.ratio("pgd-10", "apart").median <= counted * NOISE
    assert rivals.ratio("apart", "5 bare passes").median >= 1 / NOISE
    assert rivals.ratio("pgd-10", "23 bare passes").median <= 1.1
