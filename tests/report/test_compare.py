from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from leanres.errors import UserError
from leanres.metrics.statistics import paired_seeds
from leanres.report.compare import (
    cell_text,
    check_comparable,
    groups,
    table_row,
    verdicts,
)
from leanres.report.record import Record, read_record
from leanres.runs.predictions import Predictions


@pytest.fixture
def run(three_runs):
    """Records with made-up results: (name, seed, correct images of 1,000, lr) -> Record."""
    base = read_record(three_runs / "plain")

    def make(name: str, seed: int, right: int, lr: float = 0.1) -> Record:
        labels = torch.zeros(1000, dtype=torch.int64)
        probs = torch.zeros(1000, 10)
        probs[:, 1] = 1.0
        # Each seed is correct on other images.
        chosen = torch.randperm(1000, generator=torch.Generator().manual_seed(seed))[:right]
        probs[chosen, 0], probs[chosen, 1] = 1.0, 0.0
        recipe = base.info["recipe"] | {"seed": seed, "lr": lr}
        result = base.info["result"] | {"accuracy": right / 1000, "n": 1000}
        info = base.info | {"recipe": recipe, "result": result}
        return replace(
            base, folder=base.folder / name, info=info, predictions=Predictions(probs, labels)
        )

    return make


def test_two_runs_are_compared_on_the_same_images(run):
    (line,) = verdicts([run("low", 0, 700), run("high", 0, 900, 0.2)])
    assert line.startswith("high is better than low at n = 1,000 images. high minus low is +20.00")
    assert "exact McNemar" in line
    (line,) = verdicts([run("one", 0, 900), run("two", 0, 901, 0.2)])
    assert line.startswith("two and one are not distinguishable at n = 1,000 images")


def test_the_report_gives_the_interval_and_verdict_of_paired_seeds(run):
    first, second = (930, 932, 931), (936, 935, 939)
    ours = [run(f"a{seed}", seed, right) for seed, right in enumerate(first)]
    theirs = [run(f"b{seed}", seed, right, 0.2) for seed, right in enumerate(second)]
    (line,) = verdicts([*ours, *theirs])
    test = paired_seeds([right / 1000 for right in first], [right / 1000 for right in second])
    assert line == test.sentence("lr = 0.1", "lr = 0.2")
    assert "are not distinguishable at n = 3. lr = 0.2 minus lr = 0.1 is +0.57 points" in line
    assert "(95 % interval -0.06 to +1.19), p = 0.06." in line


def test_groups_of_seeds_are_compared_over_seeds(run):
    low = [run(f"low{seed}", seed, right) for seed, right in enumerate((900, 902, 904))]
    near = [run(f"near{seed}", seed, right, 0.2) for seed, right in enumerate((903, 901, 908))]
    (line,) = verdicts([*low, *near])
    assert line.startswith("lr = 0.2 and lr = 0.1 are not distinguishable at n = 3")
    far = [run(f"far{seed}", seed, right, 0.3) for seed, right in enumerate((940, 943, 945))]
    (line,) = verdicts([*low, *far])
    assert line.startswith("lr = 0.3 is better than lr = 0.1")
    assert [group.name for group in groups([*low, *far])] == ["lr = 0.1", "lr = 0.3"]
    assert len(verdicts([*low, *near, *far])) == 3


def test_groups_of_custom_networks_are_named_by_what_differs(run):
    def with_model(record, model):
        recipe = record.info["recipe"] | {"model": model}
        return replace(record, info=record.info | {"recipe": recipe})

    runs = [run(f"r{seed}", seed, 900) for seed in (0, 1)]
    first = {"family": "resnet", "widths": [8, 16], "depths": [1, 1]}
    small = [with_model(record, first) for record in runs]
    wide = [with_model(record, first | {"widths": [16, 32]}) for record in runs]
    named = [with_model(record, "resnet20") for record in runs]
    names = [group.name for group in groups([*small, *wide])]
    assert names == ["model.widths = [8, 16]", "model.widths = [16, 32]"]
    names = [group.name for group in groups([*small, *named])]
    assert names == ["model = custom resnet", "model = resnet20"]


def test_groups_with_one_or_no_common_seed_get_no_verdict(run):
    ours = [run(f"a{seed}", seed, 900) for seed in (0, 1)]
    theirs = [run(f"b{seed}", seed, 950, 0.2) for seed in (1, 2)]
    (line,) = verdicts([*ours, *theirs])
    assert line.startswith("one seed: untested. lr = 0.2 minus lr = 0.1 is +5.00 points.")
    others = [run(f"c{seed}", seed, 950, 0.2) for seed in (2, 3)]
    assert verdicts([*ours, *others])[0].startswith("lr = 0.1 and lr = 0.2 share no seed")


def test_many_runs_are_compared_with_the_best_with_a_correction(run):
    records = [run("a", 0, 900), run("b", 1, 905, 0.2), run("c", 2, 700, 0.3)]
    lines = verdicts(records)
    assert len(lines) == 2
    assert lines[0].startswith("a and b are not distinguishable at n = 1,000 images")
    assert lines[1].startswith("c is worse than b at n = 1,000 images")
    assert all("Holm's correction for 2 comparisons" in line for line in lines)


def test_a_single_result_is_nothing_to_compare(run):
    waiting = replace(run("new", 0, 10), predictions=None)
    assert "nothing to compare" in verdicts([run("done", 0, 900), waiting])[0]


def test_runs_on_different_data_are_refused_with_both_fingerprints(run):
    one, two = run("one", 0, 900), run("two", 1, 900)
    data = json.loads(json.dumps(two.info["data"]))
    data["fingerprints"]["test"] = "f" * 64
    ours = one.info["data"]["fingerprints"]["test"][:16]
    with pytest.raises(UserError, match=f"test fingerprints {ours} and {'f' * 16}"):
        check_comparable([one, replace(two, info=two.info | {"data": data})])


def test_neither_val_and_test_nor_different_val_images_are_compared(run):
    one, two = run("one", 0, 900), run("two", 1, 900)
    val = replace(two, info=two.info | {"result": two.info["result"] | {"split": "val"}})
    with pytest.raises(UserError, match="one was measured on test, two on val"):
        check_comparable([one, val])
    other = Predictions(two.predictions.probs, two.predictions.labels + 1)
    with pytest.raises(UserError, match="measured on different test images"):
        check_comparable([one, replace(two, predictions=other)])
    check_comparable([one, two])


def test_the_table_describes_a_run(three_runs):
    record = read_record(three_runs / "plain")
    row = table_row(record)
    assert row["run"] == "plain"
    assert row["network"] == "custom speednet"
    assert row["channels"] == "8-16"
    assert row["augmentation"] == "crop(padding=2)"
    assert (row["parameters"], row["lr"], row["epochs"]) == (record.cost.params, 0.01, 3)
    assert row["parameters"] == record.result["params"]
    assert row["accuracy"] == record.result["accuracy"]
    assert record.result["tta"] == "none"  # the recipe does not flip
    assert row["with TTA"] is None
    assert cell_text("accuracy", 0.9206) == "92.06 %"
    assert [cell_text("NLL", None), cell_text("parameters", 1234)] == ["-", "1,234"]
