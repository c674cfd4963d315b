"""What several commands share."""

from __future__ import annotations

import json

import pytest

from leanres.cli import options
from leanres.errors import UserError


def test_settings_come_from_set_and_from_the_options_short_for_it():
    found = options.changes(["lr=0.2", 'mix=["cutmix"]'], epochs=3, seed=None)
    assert found == {"lr": 0.2, "mix": ["cutmix"], "epochs": 3}
    assert options.changes(["seed=1"], seed=2) == {"seed": 2}


def test_numbers_are_different_whole_ones():
    assert options.numbers("--seeds", "2,0,10") == [2, 0, 10]
    for text in ("", "1,x", "1,1", "1.5"):
        with pytest.raises(
            UserError, match=r"--seeds .*: give different whole numbers, such as 0,1,2"
        ):
            options.numbers("--seeds", text)


def test_the_current_command_is_quoted_for_a_shell(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/bin/leanres", "train", "--set", "mix=['ricap']"])
    assert options.current_command() == """leanres train --set 'mix=['"'"'ricap'"'"']'"""


def test_the_accuracy_with_augmentation_is_named_where_there_was_one():
    result = {"tta": "flip", "accuracy_tta": 0.91234}
    assert options.with_tta(result) == ", 91.23 % with flip augmentation"
    assert options.with_tta({"tta": "none", "accuracy_tta": 0.9}) == ""


def test_a_measurement_is_checked_before_the_training():
    options.check_measurement("flip", "val")
    options.check_val("val", has_val=True)
    options.check_val("test", has_val=False)
    for check in (
        lambda: options.check_measurement("flop", "val"),
        lambda: options.check_measurement("flip", "train"),
        lambda: options.check_val("val", has_val=False),
    ):
        with pytest.raises(UserError):
            check()


def test_a_runs_own_data_has_the_val_split_that_the_run_held_out(run_folder, digits):
    own = options.load_target_data(run_folder, 32, None)
    fingerprints = json.loads((run_folder / "run.json").read_text())["data"]["fingerprints"]
    assert len(own.val) == 180
    assert own.test.fingerprint == digits.test.fingerprint == fingerprints["test"]
    given = options.load_target_data(run_folder, 32, "digits")
    assert (given.val, given.train.fingerprint) == (None, digits.train.fingerprint)
    weights = options.load_target_data(run_folder / "model.safetensors", 32, "digits")
    assert weights.val is None


def test_threads_are_set_for_the_process(keep_threads):
    import torch

    device = options.make_device("cpu", "float32", False, threads=3)
    assert (device.name, torch.get_num_threads()) == ("cpu", 3)
    options.set_threads(0)
    assert torch.get_num_threads() == 3
