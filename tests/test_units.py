"""Sizes as a user writes them."""

import pytest

from apart_fast.errors import UserError
from apart_fast.units import check_seed, parse_eps


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
        ("1e-30", 1e-30),
        ("0.0e-400", 0.0),
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
        ("1e-400", "eps 1e-400 is too small"),
        ("8e-400/255", "too small"),
        ("8/1e400", "too small"),
        ("-1e-400", "too small"),
        (1e-50, "too small"),
        ("", "not a number"),
        (None, "not a number"),
    ],
)
def test_parse_eps_refuses(value, message):
    with pytest.raises(UserError, match=message):
        parse_eps(value)


def test_seeds_are_what_every_generator_takes():
    assert [check_seed(seed) for seed in (0, 2**63 - 1)] == [0, 2**63 - 1]
    for seed in (-1, 2**63, 2**64, 1.0, True, "1", None):
        with pytest.raises(UserError, match="from 0 to 2"):
            check_seed(seed)
