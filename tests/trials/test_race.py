"""A race: cold and warm agree, a stopped one goes on, and the summary is plain statistics."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace

import pytest
import torch
from PIL import Image

from leanres.errors import UserError
from leanres.training.recipe import Recipe, StepCounts
from leanres.trials.race import cold_runs, phases, race, read_entry, summary, warm_runs

WORDS = [
    "speed",
    "--data",
    "digits",
    "--threads",
    "1",
    "--device",
    "cpu",
    *("--set", 'model={family="speednet", widths=[8, 16, 16]}'),
    *("--set", "precision=float32"),  # as the fixture `device` is, on any machine
    *("--set", "epochs=2"),
    *("--set", "batch_size=200"),
    *("--set", "progressive_resizing=[[0, 0.5], [0.5, 1.0]]"),
]


def lap(seed, accuracy=0.95, seconds=2.0, **more):
    own = {"seed": seed, "accuracy": accuracy - 0.01, "accuracy_tta": accuracy}
    return own | {"train_seconds": seconds, "recipe": {"lr": 1.0, "seed": seed}} | more


CLAIM = {"recipe": {"lr": 1.0, "seed": 0}, "counted": "warm"}


@pytest.fixture
def _one_thread():
    """As WORDS has it: sums over threads differ in the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
def test_cold_and_warm_laps_of_a_seed_are_the_same_training(tmp_path, tiny, digits, device):
    (cold,) = cold_runs(WORDS, tiny, [1], tmp_path / "race", device)
    (warm,) = warm_runs(tiny, [1], digits, device)
    for key in ("accuracy", "accuracy_tta", "n", "recipe", "fingerprints"):
        assert cold[key] == warm[key], key
    assert cold["wall_seconds"] > cold["train_seconds"] > 0
    assert warm["train_seconds"] > 0 < warm["evaluate_seconds"]
    assert cold["network"] == warm["network"]
    # A lap that ended and was not written down is taken as it is; one of another recipe is not.
    (again,) = cold_runs(["nothing"], tiny, [1], tmp_path / "race", device)
    changed = {"wall_seconds": None, "matrix_tflops": again["matrix_tflops"]}
    assert again == cold | changed
    with pytest.raises(UserError, match="race-1 holds a run of another recipe"):
        list(cold_runs(WORDS, replace(tiny, lr=0.1), [1], tmp_path / "race", device))
    info = json.loads((tmp_path / "race-1" / "run.json").read_text())
    info["result"]["split"] = "val"
    (tmp_path / "race-1" / "run.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="race-1 was measured on val: give another --runs"):
        list(cold_runs(["nothing"], tiny, [1], tmp_path / "race", device))


def test_a_training_that_fails_is_one_line(tmp_path, device, tiny):
    with pytest.raises(UserError, match=r"seed 0: leanres train nothing .* ended with 2"):
        list(cold_runs(["nothing"], tiny, [0], tmp_path / "race", device))


def test_a_race_needs_test_images(tiny, digits, device):
    with pytest.raises(UserError, match="has none"):
        next(iter(warm_runs(tiny, [0], replace(digits, test=None), device)))


def test_a_cold_race_without_test_images_is_refused_too(tmp_path, device, tiny):
    folder = tmp_path / "photos" / "train"
    for i, name in enumerate(("cats", "dogs")):
        (folder / name).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (32, 32), (100 * i + number,) * 3).save(
                folder / name / f"{number}.png"
            )
    words = [*WORDS, "--set", "batch_size=8"]
    words[words.index("digits")] = str(tmp_path / "photos")
    with pytest.raises(UserError, match="has none"):
        list(cold_runs(words, replace(tiny, batch_size=8), [0], tmp_path / "race", device))


def test_a_race_runs_the_seeds_that_its_file_lacks(tmp_path):
    out = tmp_path / "race.json"
    asked = []

    def laps(seeds):
        asked.append(list(seeds))
        yield from map(lap, seeds)

    assert [found["n"] for found in race(laps, [0, 1], 0.94, out, CLAIM)] == [1, 2]
    assert [found["n"] for found in race(laps, [0, 1, 2], 0.94, out, CLAIM)] == [3]
    assert [found["n"] for found in race(laps, [0, 1, 2], 0.94, out, CLAIM)] == [3]
    assert asked == [[0, 1], [2]]
    entry = json.loads(out.read_text())
    assert [run["seed"] for run in entry["runs"]] == [0, 1, 2]
    assert (entry["counted"], entry["summary"]["n"]) == ("warm", 3)


def test_a_race_that_is_stopped_keeps_its_laps(tmp_path):
    def laps(seeds):
        yield lap(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(race(laps, [0, 1], 0.94, tmp_path / "race.json", CLAIM))
    assert len(json.loads((tmp_path / "race.json").read_text())["runs"]) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"counted": "warm", "runs": [{"seed": 0, "recipe": {"lr": 2.0, "seed": 0}}]}',
            "laps of another recipe",
        ),
        ('{"counted": "cold", "runs": []}', "laps counted cold"),
        ('{"counted": "warm", "runs": [{"recipe": 1}]}', "is no ledger entry of a race"),
        ("[]", "is no ledger entry of a race"),
        ("{", "is no ledger entry of a race"),
        ('{"runs": [1]}', "is no ledger entry of a race"),
    ],
)
def test_a_file_that_is_something_else_is_left_alone(tmp_path, content, message):
    out = tmp_path / "race.json"
    out.write_text(content)
    with pytest.raises(UserError, match=message):
        read_entry(out, CLAIM)
    assert out.read_text() == content


def test_the_summary_is_plain_statistics():
    laps = [lap(0, 0.95, 2.0, wall_seconds=None), lap(1, 0.93, 4.0, wall_seconds=9.0)]
    found = summary(laps, target=0.94)
    assert (found["n"], found["reached"]) == (2, 0.5)
    assert found["train_seconds"] == {"mean": 3.0, "sd": statistics.stdev([2.0, 4.0])}
    assert found["wall_seconds"] == {"mean": 9.0, "sd": None}
    assert "evaluate_seconds" not in found


def test_every_phase_is_warmed_up():
    recipe = Recipe(
        epochs=10, batch_size=500, progressive_resizing=((0, 0.5), (0.4, 1.0)), freeze_stem_at=0.7
    )
    assert phases(StepCounts(recipe, 5000)) == [0, 40, 70]
    assert phases(StepCounts(replace(recipe, freeze_stem_at=1.0), 5000)) == [0, 40]


SMALL = [*WORDS[1:], "--set", "label_smoothing=0.1"]


def test_the_command_line_races(leanres, tmp_path):
    out = tmp_path / "race.json"
    words = ["bench", "race", "speed", "--warm", "--n", "2", "--out", out, *SMALL]
    done = leanres(*words, "--target", "50")
    assert done.code == 0, done.err
    assert "n = 2: " in done.out
    assert "of seeds at 50 % or more" in done.out
    assert json.loads(out.read_text())["runs"][0]["recipe"]["label_smoothing"] == 0.1
    again = leanres(*words, "--json")
    assert json.loads(again.out)["n"] == 2


def test_the_command_line_measures_a_step(leanres, tmp_path):
    out = tmp_path / "step.json"
    done = leanres("bench", "step", "--steps", "1", "--out", out, *SMALL)
    assert done.code == 0, done.err
    for words in ("images/s", "backward", "convolution, forward", "a 4096^3 product", "GB/s"):
        assert words in done.out
    assert json.loads(out.read_text())["side"] == 32
    half = leanres("bench", "step", "--steps", "1", "--scale", "0.5", "--json", *SMALL)
    assert json.loads(half.out)["side"] == 16
