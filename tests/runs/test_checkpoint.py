from __future__ import annotations

import json
import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from leanres.data.split import channel_stats
from leanres.io import CheckpointError
from leanres.models.preprocess import Normalize
from leanres.runs import checkpoint
from leanres.runs.checkpoint import pack, restore_, save, saved
from leanres.training.loop import TrainState, start, steps
from leanres.training.setup import Setup


def state_at(step: int, recipe, digits, device, folder: Path | None = None) -> TrainState:
    """A state after `step` steps; with `folder`, saved at every second one."""
    setup = Setup(recipe, digits.train, Normalize(*channel_stats(digits.train)), device)
    state = start(setup)
    if step:
        for result in steps(state, setup):
            state.losses.append(result.loss)
            state.correct.append(result.correct)
            if folder is not None and state.step % 2 == 0:
                save(folder, state)
            if state.step == step:
                break
    return state


def same(a: TrainState, b: TrainState) -> bool:
    (tensors_a, meta_a), (tensors_b, meta_b) = pack(a), pack(b)
    return (
        meta_a == meta_b
        and tensors_a.keys() == tensors_b.keys()
        and all(torch.equal(t, tensors_b[name]) for name, t in tensors_a.items())
    )


@pytest.mark.parametrize("optimizer", ["muon", "sgd", "adamw"])
def test_a_restored_state_equals_the_saved_one_in_every_tensor(
    tmp_path, digits, device, small, optimizer
):
    recipe = replace(small, optimizer=optimizer, lr=0.01)
    state = state_at(5, recipe, digits, device)
    save(tmp_path, state)
    other = state_at(0, recipe, digits, device)
    assert not same(state, other)
    assert restore_(tmp_path, other) == []
    assert same(state, other)


def test_training_on_from_a_restored_state_equals_training_through(tmp_path, digits, device, small):
    through = state_at(9, small, digits, device)
    save(tmp_path, state_at(4, small, digits, device))
    resumed = state_at(0, small, digits, device)
    restore_(tmp_path, resumed)
    setup = Setup(small, digits.train, Normalize(*channel_stats(digits.train)), device)
    for result in steps(resumed, setup):
        resumed.losses.append(result.loss)
        resumed.correct.append(result.correct)
        if resumed.step == 9:
            break
    assert same(through, resumed)


def test_the_two_newest_are_kept(tmp_path, digits, device, small):
    state_at(8, small, digits, device, tmp_path)
    assert [p.name for p in saved(tmp_path)] == ["00000008", "00000006"]


@pytest.mark.parametrize("name", [checkpoint.STATE, checkpoint.META, checkpoint.MANIFEST])
@pytest.mark.parametrize("damage", ["bit", "truncated", "missing", "empty"])
def test_a_damaged_checkpoint_is_passed_over_and_named(
    tmp_path, digits, device, small, name, damage
):
    state_at(4, small, digits, device, tmp_path)
    file = tmp_path / "00000004" / name
    content = file.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    if damage == "missing":
        file.unlink()
    else:
        kinds = {"bit": bytes(flipped), "truncated": content[: len(content) // 2], "empty": b""}
        file.write_bytes(kinds[damage])
    other = state_at(0, small, digits, device)
    (note,) = restore_(tmp_path, other)
    assert "00000004" in note
    assert "using step 2" in note
    assert other.step == 2


def test_no_sound_checkpoint_is_one_error_that_names_each(tmp_path, digits, device, small):
    state_at(4, small, digits, device, tmp_path)
    for path in saved(tmp_path):
        (path / checkpoint.STATE).write_bytes(b"not this")
    with pytest.raises(CheckpointError, match=r"00000004.*00000002"):
        restore_(tmp_path, state_at(0, small, digits, device))
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        restore_(tmp_path / "empty", state_at(0, small, digits, device))


@pytest.mark.parametrize("change", [{"model": "resnet20"}, {"optimizer": "sgd"}])
def test_a_checkpoint_of_another_model_or_optimizer_is_refused(
    tmp_path, digits, device, small, change
):
    save(tmp_path, state_at(2, small, digits, device))
    other = state_at(0, replace(small, **change), digits, device)
    with pytest.raises(CheckpointError, match="of another model or optimizer"):
        restore_(tmp_path, other)


def test_where_the_newest_is_of_another_model_the_one_before_it_is_used(
    tmp_path, digits, device, small
):
    save(tmp_path, state_at(2, small, digits, device))
    foreign = state_at(0, replace(small, model="resnet20"), digits, device)
    foreign.step = 4
    save(tmp_path, foreign)
    state = state_at(0, small, digits, device)
    (note,) = restore_(tmp_path, state)
    assert "of another model" in note
    assert state.step == 2
    state.step = 3
    save(tmp_path, state)
    assert [p.name for p in saved(tmp_path)] == ["00000003", "00000002"]


def test_what_a_killed_save_left_is_cleared_away(tmp_path, digits, device, small):
    (tmp_path / ".00000001.partial").mkdir()
    save(tmp_path, state_at(2, small, digits, device))
    assert os.listdir(tmp_path) == ["00000002"]


def test_a_disk_that_takes_no_more_leaves_the_old_checkpoint(tmp_path, digits, device, small):
    """The kernel itself refuses: no file of this process may grow past 20 kB."""
    state = state_at(2, small, digits, device, tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    state.step = 3
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="cannot write"):
            save(tmp_path, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert os.listdir(tmp_path) == ["00000002"]
    assert restore_(tmp_path, state_at(0, small, digits, device)) == []


def test_a_checkpoint_holds_no_pickle(tmp_path, digits, device, small):
    folder = save(tmp_path, state_at(2, small, digits, device))
    assert sorted(p.name for p in folder.iterdir()) == [
        checkpoint.MANIFEST,
        checkpoint.META,
        checkpoint.STATE,
    ]
    assert json.loads((folder / checkpoint.META).read_bytes())["step"] == 2
