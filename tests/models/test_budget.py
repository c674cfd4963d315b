"""Budgets: amounts are parsed exactly, each term is held against the network's own figure."""

from __future__ import annotations

import pytest
from torch import nn

from leanres.errors import UserError
from leanres.models.budget import TERMS, parse_budget, parse_count
from leanres.models.cost import summarize
from leanres.models.zoo import MODELS

COSTS = summarize(MODELS["resnet20"].config)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("5M", 5_000_000),
        ("2.5m", 2_500_000),
        ("300k", 300_000),
        ("4_970_000", 4_970_000),
        (" 1g ", 10**9),
        ("7", 7),
        ("1.001k", 1001),
    ],
)
def test_counts_are_parsed_with_suffixes_and_underscores(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize(
    "text", ["", "5 MB", "M", "-3", "0", "0.0001k", "1.5", "1e6", "five", "1__0", "nan", "٣"]
)
def test_anything_else_is_refused_in_one_line(text):
    with pytest.raises(UserError, match="is not a count: give a whole number above 0") as caught:
        parse_count(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "count"),
    [("256K", 256_000), ("2MB", 2_000_000), ("96KiB", 96 * 1024), ("1Mi", 2**20), ("12b", 12)],
)
def test_bytes_have_decimal_and_binary_units(text, count):
    assert parse_count(text, in_bytes=True) == count


@pytest.mark.parametrize("text", ["5iB", "5 M B", "KB", "1.5b"])
def test_other_amounts_of_bytes_are_refused(text):
    with pytest.raises(UserError, match="such as 256K, 2MB or 96KiB"):
        parse_count(text, in_bytes=True)


@pytest.mark.parametrize(
    ("term", "value"),
    [
        ("params", 269_722),
        ("macs", 442_368 + 14_155_776 + 2 * 12_976_128 + 640),  # stem, three stages, classifier
        ("memory", 4 * 3 * 16 * 32 * 32),  # a block's input, its first map and its second
        ("memory-int8", 3 * 16 * 32 * 32),
        ("file", 2 * 269_722),
        ("file-int8", 269_722),
        ("receptive-field", COSTS.receptive_field),
    ],
)
def test_a_network_is_within_its_own_figures_and_not_within_one_less(term, value):
    assert parse_budget(f"{term}={value}").admits(COSTS)
    (verdict,) = parse_budget(f"{term}={value - 1}").verdicts(COSTS)
    assert not verdict.fits
    assert f"{value:,}" in str(verdict)
    assert f"> {value - 1:,}" in str(verdict)


def test_all_terms_hold_and_one_of_them_is_from_below():
    field = COSTS.receptive_field
    assert parse_budget("300k").limits == (("params", 300_000),)
    assert parse_budget(f"300k, macs=50M, min-receptive-field={field}").admits(COSTS)
    assert not parse_budget(f"300k, macs=50M, min-receptive-field={field + 1}").admits(COSTS)
    assert not parse_budget("200k, macs=50M").admits(COSTS)


def test_what_is_unknown_is_within_no_limit():
    net = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
    (verdict,) = parse_budget("receptive-field=1000").verdicts(summarize(net))
    assert (verdict.value, verdict.fits) == (None, False)
    assert "unknown" in str(verdict)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("parms=5M", "did you mean 'params'"),
        ("params=5M,params=6M", "params is given twice"),
        ("5M,300k", "params is given twice"),
        ("params=5M,", "'' is not a count"),
        ("macs=", "is not a count"),
        ("", "is not a count"),
        ("memory=1.5", "is not a count"),
    ],
)
def test_a_budget_that_is_none_is_refused(text, problem):
    with pytest.raises(UserError, match=problem):
        parse_budget(text)


def test_every_term_has_a_value_of_a_usual_network():
    assert all(term.value(COSTS) for term in TERMS.values())
