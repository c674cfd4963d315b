"""Table: reads like a dict, and a wrong name lists the right ones."""

from __future__ import annotations

import pytest

from leanres.errors import UserError
from leanres.registry import Table, unknown

MODELS = Table("model", {"resnet20": 20, "resnet56": 56, "speednet": 9})


def test_a_table_reads_like_the_dict_it_was_made_from():
    assert MODELS["resnet20"] == 20
    assert list(MODELS) == ["resnet20", "resnet56", "speednet"]
    assert "wrn" not in MODELS
    assert MODELS.get("wrn") is None


def test_a_misspelt_name_is_answered_with_the_nearest_and_with_all():
    with pytest.raises(UserError) as caught:
        MODELS["sped-net"]
    assert str(caught.value) == (
        "no model 'sped-net'; did you mean 'speednet'? there are: resnet20, resnet56, speednet"
    )


def test_a_name_like_no_other_gets_the_list_without_a_guess():
    with pytest.raises(UserError) as caught:
        MODELS["zzz"]
    assert str(caught.value) == "no model 'zzz'; there are: resnet20, resnet56, speednet"


def test_asking_for_an_unknown_name_does_not_add_it():
    with pytest.raises(UserError):
        MODELS["zzz"]
    assert "zzz" not in MODELS


def test_the_names_are_listed_in_order_whatever_order_they_came_in():
    assert unknown("recipe", "q", ["c", "a", "b"]).endswith("there are: a, b, c")


@pytest.mark.parametrize("name", ["", "name\nwith a break", "'quoted'"])
def test_the_message_stays_on_one_line_whatever_the_name(name):
    assert "\n" not in unknown("model", name, list(MODELS))
