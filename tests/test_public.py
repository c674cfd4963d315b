"""`import leanres`: the public names, and the README's Python."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

import leanres
from leanres.models.speednet import SpeedNetConfig

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.mark.parametrize("name", leanres.__all__)
def test_every_public_name_exists_and_is_documented(name):
    value = getattr(leanres, name)
    assert name in dir(leanres)
    assert name.isupper() or name.startswith("__") or value.__doc__


def test_a_wrong_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'fitt'"):
        leanres.fitt  # noqa: B018


def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    """On the digits, with a small network in the recipe that it names."""
    monkeypatch.chdir(tmp_path)
    small = replace(
        leanres.RECIPES["small-data"], model=SpeedNetConfig((8, 16)), augment=(), epochs=6
    )
    monkeypatch.setitem(leanres.RECIPES, "speed", small)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names = {"__name__": "example"}
    exec(compile(code.replace('"cifar10"', '"digits"'), "README.md", "exec"), names)
    *_, accuracies, per_class, params = capsys.readouterr().out.splitlines()
    assert float(accuracies.split()[0]) == names["result"]["accuracy"] > 0.8
    shares = [float(share) for share in per_class.strip("[]()").split(", ")]
    assert sum(shares) / len(shares) == pytest.approx(names["result"]["accuracy"], abs=0.02)
    assert int(params) == 4_978_810
    assert "# 4978810" in code


def test_the_readmes_python_has_ten_lines():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
