"""Sizes as a user writes them."""

import pytest

from apart_fast.errors import UserError
from apart_fast.units import parse_eps


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
