"""Tables, pictures and files that commands write."""

from __future__ import annotations

import io
import json

import matplotlib.pyplot as plt
import pytest
import rich.console

from leanres.cli import console
from leanres.errors import UserError

HEADS = ["model", "number of params", "source"]
ROWS = [["a", "1,234", "one"], ["long-name", "5", "two words"]]


def printed(monkeypatch, width: int, drop=()) -> list[str]:
    out = io.StringIO()
    shown = rich.console.Console(file=out, width=width, highlight=False)
    monkeypatch.setattr(console, "console", lambda: shown)
    console.print_table(HEADS, ROWS, left=("source",), drop=drop)
    return out.getvalue().splitlines()


def test_a_table_aligns_text_left_and_numbers_right(monkeypatch):
    assert printed(monkeypatch, 80, drop=("source",)) == [
        "model      number of params  source",
        "a                     1,234  one",
        "long-name                 5  two words",
    ]


def test_a_narrow_terminal_gets_heads_of_two_lines_and_then_fewer_columns(monkeypatch):
    assert printed(monkeypatch, 32, drop=("source",)) == [
        "           number of",
        "model         params  source",
        "a              1,234  one",
        "long-name          5  two words",
    ]
    assert printed(monkeypatch, 24, drop=("nothing", "source")) == [
        "           number of",
        "model         params",
        "a              1,234",
        "long-name          5",
        "left out in 24 columns: ",
        "source (--json has them)",
    ]


def test_a_table_that_cannot_get_narrower_loses_nothing(monkeypatch):
    assert "long-name          5  two words" in printed(monkeypatch, 10)


def test_wide_characters_take_two_columns(capsys):
    console.print_table(["name", "n"], [["猫", "1"], ["dog", "2"]])
    assert capsys.readouterr().out.splitlines() == ["name  n", "猫    1", "dog   2"]


def test_a_table_without_rows_is_its_heads(capsys):
    console.print_table(["name", "n"], [])
    assert capsys.readouterr().out == "name  n\n"


def test_a_picture_is_written_or_refused_before_any_work(tmp_path):
    console.check_picture("--out", tmp_path / "x.PNG")
    with pytest.raises(UserError, match=r"--out .*x\.jpg: give a file that ends in \.png"):
        console.check_picture("--out", tmp_path / "x.jpg")
    figure = plt.figure()
    console.save_picture(figure, tmp_path / "deep" / "x.png")
    assert (tmp_path / "deep" / "x.png").stat().st_size > 100
    with pytest.raises(OSError, match=r"x\.png"):
        console.save_picture(figure, tmp_path / "deep" / "x.png" / "y.png")
    plt.close(figure)


def test_json_is_written_where_a_file_was_named(tmp_path):
    console.write_json(None, {"a": 1})
    console.write_json(tmp_path / "deep" / "x.json", {"a": 1})
    assert json.loads((tmp_path / "deep" / "x.json").read_text()) == {"a": 1}


def test_one_of_a_thing_is_named_in_the_singular():
    assert console.counted(1, "training") == "1 training"
    assert console.counted(0, "epoch") == "0 epochs"
    assert console.counted(1234, "epoch") == "1,234 epochs"


@pytest.mark.parametrize("words", [("models",), ("recipes",), ("summary", "resnet20")])
def test_a_table_in_a_file_or_pipe_has_80_columns_or_as_many_as_columns_says(
    leanres, monkeypatch, words
):
    monkeypatch.delenv("COLUMNS", raising=False)
    narrow = leanres(*words).out.splitlines()
    assert max(len(line) for line in narrow if not line.startswith(("*", "source"))) <= 84
    monkeypatch.setenv("COLUMNS", "250")
    assert max(map(len, leanres(*words).out.splitlines())) > max(map(len, narrow[:5]))
