"""Table: an unknown name lists the known ones. Settings are checked against type and range."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from leanres.errors import UserError
from leanres.registry import (
    Convert,
    Range,
    Table,
    check_fields,
    check_settings,
    checked,
    notes_of,
    setting_types,
    unknown,
    wanted,
)

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


def test_a_name_unlike_all_others_gets_the_list_without_a_suggestion():
    with pytest.raises(UserError) as caught:
        MODELS["zzz"]
    assert str(caught.value) == "no model 'zzz'; there are: resnet20, resnet56, speednet"


def test_looking_up_an_unknown_name_does_not_add_it():
    with pytest.raises(UserError):
        MODELS["zzz"]
    assert "zzz" not in MODELS


def test_known_names_are_listed_alphabetically():
    assert unknown("recipe", "q", ["c", "a", "b"]).endswith("there are: a, b, c")


@pytest.mark.parametrize("name", ["", "name\nwith a break", "'quoted'"])
def test_the_message_stays_on_one_line_whatever_the_name(name):
    assert "\n" not in unknown("model", name, list(MODELS))


# --- values against types -------------------------------------------------------------------

SHARE = Annotated[float, Range(0, 1)]
COUNT = Annotated[int, Range(1, 64)]
PAIR = Annotated[tuple[float, float], Range(0, 1, ordered=True)]
NUMBERS = Annotated[tuple[float, ...], Range(0, 1)]
MODE = Literal["constant", "reflect"]


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (int, 3, 3),
        (int, 3.0, 3),
        (int, -(2**70), -(2**70)),
        (float, 3, 3.0),
        (float, 0.25, 0.25),
        (float, math.inf, math.inf),
        (bool, True, True),
        (str, "", ""),
        (COUNT, 64.0, 64),
        (SHARE, 0, 0.0),
        (SHARE, 1, 1.0),
        (MODE, "reflect", "reflect"),
        (bool | None, None, None),
        (bool | None, False, False),
        (SHARE | Literal["random"], "random", "random"),
        (SHARE | Literal["random"], 1, 1.0),
        (int | float, 2.5, 2.5),
        (tuple[float, float], [1, 2], (1.0, 2.0)),
        (tuple[int, str], (1.0, "x"), (1, "x")),
        (tuple[float, ...], [], ()),
        (tuple[tuple[float, float], ...], [[0, 1], (0.5, 2)], ((0.0, 1.0), (0.5, 2.0))),
        (PAIR, [0.5, 0.5], (0.5, 0.5)),
        (NUMBERS, [0.5, 0.25, 1], (0.5, 0.25, 1.0)),
    ],
)
def test_a_value_that_fits_is_converted_to_the_declared_type(hint, value, expected):
    found = checked("x", value, hint)
    assert found == expected
    assert type(found) is type(expected)
    if isinstance(found, tuple):
        assert [type(item) for item in found] == [type(item) for item in expected]


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (int, 1.5, "a whole number"),
        (int, True, "a whole number"),
        (int, "3", "a whole number"),
        (int, None, "a whole number"),
        (int, math.nan, "a whole number"),
        (int, math.inf, "a whole number"),
        (float, False, "a number"),
        (float, "0.5", "a number"),
        (float, 10**400, "a number"),
        (float, [0.5], "a number"),
        (bool, 1, "true or false"),
        (str, 1, "a name"),
        (COUNT, 0, "a whole number from 1 to 64"),
        (COUNT, 65, "a whole number from 1 to 64"),
        (SHARE, -1e-9, "a number from 0 to 1"),
        (SHARE, math.nan, "a number from 0 to 1"),
        (SHARE, math.inf, "a number from 0 to 1"),
        (SHARE, True, "a number from 0 to 1"),
        (MODE, "mirror", "'constant' or 'reflect'"),
        (MODE, 0, "'constant' or 'reflect'"),
        (bool | None, 0, "true or false, or nothing"),
        (SHARE | Literal["random"], 2, "a number from 0 to 1, or 'random'"),
        (SHARE | Literal["random"], 10**400, "a number from 0 to 1, or 'random'"),
        (tuple[float, float], (1, 2, 3), "two numbers"),
        (tuple[float, float], 0.5, "two numbers"),
        (tuple[float, float], "ab", "two numbers"),
        (tuple[int, int, int], (1, 2), "3 whole numbers"),
        (tuple[float, ...], ["x"], "a list of numbers"),
        (tuple[float, ...], {1: 2}, "a list of numbers"),
        (tuple[tuple[float, float], ...], 1, "a list of values"),
        (PAIR, (0.5, 0.2), "two numbers, the lower first, each from 0 to 1"),
        (PAIR, (0.5, 1.2), "two numbers, the lower first, each from 0 to 1"),
        (PAIR, (math.nan, 1), "two numbers, the lower first, each from 0 to 1"),
        (NUMBERS, (0.5, 2), "a list of numbers from 0 to 1"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_what_fits(hint, value, expected):
    with pytest.raises(UserError) as caught:
        checked("step: size", value, hint)
    assert str(caught.value) == f"step: size = {value!r}: give {expected}"
    assert wanted(hint) == expected


def test_a_converter_beside_the_type_replaces_the_check_by_type():
    seen = []

    def read(label: str, value: Any) -> str:
        seen.append((label, value))
        return "converted"

    assert checked("size", 7, Annotated[str, Range(0, 1), Convert(read)]) == "converted"
    assert seen == [("size", 7)]


def test_a_table_beside_the_type_admits_its_names_and_suggests_the_nearest():
    hint = Annotated[str, Table("stem", {"cifar": 1, "imagenet": 2})]
    assert checked("stem", "cifar", hint) == "cifar"
    with pytest.raises(UserError, match=r"^no stem 'cifr'; did you mean 'cifar'\? there are:"):
        checked("stem", "cifr", hint)
    with pytest.raises(UserError, match=r"^stem = 3: give a name$"):
        checked("stem", 3, hint)


def test_the_fields_of_a_frozen_dataclass_are_checked_and_converted():
    @dataclass(frozen=True)
    class Settings:
        size: COUNT
        shares: NUMBERS = ()

        def __post_init__(self) -> None:
            check_fields(self)

    assert Settings(2.0, [0, 1]) == Settings(2, (0.0, 1.0))
    assert type(Settings(2.0).size) is int
    with pytest.raises(UserError, match=r"^size = 65: give a whole number from 1 to 64$"):
        Settings(65)


def test_the_notes_beside_a_type_are_found_and_a_plain_type_has_none():
    assert notes_of(Annotated[int, Range(0, 1), "in words"]) == (Range(0, 1), "in words")
    assert notes_of(int) == notes_of(int | None) == ()


# --- settings of functions ------------------------------------------------------------------


def blur(
    images: list[float],
    draw: int,
    size: COUNT = 3,
    p: SHARE = 0.5,
    mode: MODE = "constant",
    plain=0.25,
) -> list[float]:
    return images


def test_settings_are_the_parameters_with_a_default_and_come_back_converted():
    given = {"size": 5.0, "p": 1, "mode": "reflect"}
    found = check_settings(blur, "blur", given)
    assert found == {"size": 5, "p": 1.0, "mode": "reflect"}
    assert [type(value) for value in found.values()] == [int, float, str]
    assert given["size"] == 5.0
    assert setting_types(blur)["size"] == COUNT


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sise": 3}, "no setting of blur 'sise'; did you mean 'size'? there are: mode, p, plain"),
        ({"images": []}, "no setting of blur 'images'"),
        ({"size": 0}, "blur: size = 0: give a whole number from 1 to 64"),
        ({"p": 0.5, "mode": "x"}, "blur: mode = 'x': give 'constant' or 'reflect'"),
    ],
)
def test_an_unknown_or_unfit_setting_is_refused(settings, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check_settings(blur, "blur", settings)


def test_a_setting_without_a_type_hint_has_the_type_of_its_default():
    assert check_settings(blur, "blur", {"plain": 1}) == {"plain": 1.0}
    with pytest.raises(UserError, match=r"^blur: plain = 'x': give a number$"):
        check_settings(blur, "blur", {"plain": "x"})


def test_a_function_without_settings_takes_none():
    assert check_settings(abs, "abs", {}) == {}
    with pytest.raises(UserError, match=r"^abs has no settings, but 'x' was given: leave it out$"):
        check_settings(lambda images: images, "abs", {"x": 1})
