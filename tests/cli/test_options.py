"""What several commands share."""

from __future__ import annotations

import json

import pytest

from leanres.cli import options
from leanres.errors import UserError
from leanres.runs.predictor import load_predictor
from leanres.training.recipe import Recipe


def test_settings_come_from_set_and_from_the_options_short_for_it():
    found = options.changes(["lr=0.2", 'mix=["cutmix"]'], epochs=3, seed=None)
    assert found == {"lr": 0.2, "mix": ["cutmix"], "epochs": 3}
    assert options.changes(["seed=2", "seed=2"], seed=2) == {"seed": 2}


@pytest.mark.parametrize(
    ("settings", "short"), [(["epochs=3"], {"epochs": 2}), (["epochs=3", "epochs=2"], {})]
)
def test_a_setting_that_is_given_two_values_is_refused(settings, short):
    with pytest.raises(
        UserError, match=r"^epochs = 3 and epochs = 2 were both given: give one of them$"
    ):
        options.changes(settings, **short)


def test_the_current_command_is_quoted_for_a_shell(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/bin/leanres", "train", "--set", "mix=['ricap']"])
    assert options.current_command() == """leanres train --set 'mix=['"'"'ricap'"'"']'"""


def test_val_can_be_measured_where_there_are_val_images():
    options.check_val("val", has_val=True)
    options.check_val("test", has_val=False)
    with pytest.raises(UserError, match=r"there are no val images; --set val=0\.1 holds"):
        options.check_val("val", has_val=False)


def test_a_runs_own_data_has_the_val_split_that_the_run_held_out(run_folder, digits):
    takes = load_predictor(run_folder).preprocess
    own = options.load_target_data(run_folder, takes, None)
    fingerprints = json.loads((run_folder / "run.json").read_text())["data"]["fingerprints"]
    assert len(own.val) == 180
    assert own.test.fingerprint == digits.test.fingerprint == fingerprints["test"]
    given = options.load_target_data(run_folder, takes, "digits")
    assert given.val.fingerprint == own.val.fingerprint  # the same images, however they are named
    weights = options.load_target_data(run_folder / "model.safetensors", takes, "digits")
    assert weights.val is None


def test_threads_are_set_for_the_process(keep_threads):
    import torch

    device = options.make_device("cpu", Recipe(precision="float32", compiled=False), threads=3)
    assert (device.name, torch.get_num_threads()) == ("cpu", 3)
    options.set_threads(0)
    assert torch.get_num_threads() == 3
