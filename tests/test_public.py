"""`import leanres`: the names that the README promises."""

from __future__ import annotations

import pytest

import leanres
from leanres.models.speednet import SpeedNetConfig


@pytest.mark.parametrize("name", leanres.__all__)
def test_every_public_name_is_there_and_explained(name):
    value = getattr(leanres, name)
    assert name in dir(leanres)
    assert name.isupper() or name.startswith("__") or value.__doc__


def test_a_wrong_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'fitt'"):
        leanres.fitt  # noqa: B018


def test_the_readmes_python_example_works(tmp_path):
    data = leanres.load_data("digits")
    recipe = leanres.Recipe(
        model=SpeedNetConfig((8, 16)), epochs=6, batch_size=100, augment=(), progressive_resizing=()
    )
    result = leanres.fit(tmp_path / "run", recipe, data)
    predictor = leanres.load_predictor(tmp_path / "run")
    assert result["accuracy"] > 0.8
    assert predictor.evaluate(data.test)["accuracy"] == result["accuracy"]
    assert leanres.summarize(leanres.MODELS["resnet20"].config).params == 269_722
