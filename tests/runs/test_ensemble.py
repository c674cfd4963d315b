"""Ensembles: averaged probabilities against scikit-learn, and networks that do not fit."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

import leanres
from leanres.data.split import Dataset, Split
from leanres.errors import UserError
from leanres.metrics.classification import ece
from leanres.metrics.statistics import gain_over_mean, mcnemar
from leanres.models.preprocess import ImageClassifier
from leanres.runs.ensemble import OWN_TTA, check_alike, gain_lines, measure_ensemble
from leanres.runs.images import unseen_too
from leanres.runs.predictor import load_predictor
from leanres.runs.weights import WEIGHTS


@pytest.fixture(scope="module")
def predictors(three_runs):
    return {name: load_predictor(three_runs / name, "cpu") for name in ("a", "b", "plain")}


def test_the_ensembles_figures_are_those_of_the_mean_probabilities(predictors, digits):
    images = digits.test
    result = measure_ensemble(predictors, images, "none")
    labels = images.labels.numpy()
    each = [p.logits(images.images).double().softmax(1).numpy() for p in predictors.values()]
    probs = np.mean(each, axis=0)
    found = result["ensemble"]
    assert found["accuracy"] == accuracy_score(labels, probs.argmax(1))
    assert found["nll"] == pytest.approx(log_loss(labels, probs), rel=1e-6)
    assert found["ece"] == pytest.approx(ece(torch.from_numpy(probs), images.labels))
    accuracies = [accuracy_score(labels, one.argmax(1)) for one in each]
    assert [row["accuracy"] for row in result["members"]] == accuracies
    assert [row["target"] for row in result["members"]] == ["a", "b", "plain"]
    assert result["mean"]["accuracy"] == pytest.approx(np.mean(accuracies))
    assert result["mean"]["nll"] == pytest.approx(np.mean([r["nll"] for r in result["members"]]))
    hits = [torch.from_numpy(one.argmax(1) == labels) for one in (*each, probs)]
    best = int(np.argmax(accuracies))
    assert result["best"] == [*predictors][best]
    assert result["gain_over_best"]["difference"] == mcnemar(hits[best], hits[-1]).difference
    assert result["gain_over_best"]["p"] == mcnemar(hits[best], hits[-1]).p
    mean = gain_over_mean(torch.stack(hits[:-1]), hits[-1])
    assert (result["gain_over_mean"]["low"], result["gain_over_mean"]["high"]) == (
        mean.low,
        mean.high,
    )
    assert result["params"] == sum(row["params"] for row in result["members"])
    json.dumps(result, allow_nan=False)
    first, second = gain_lines(result)
    assert first.startswith(
        f"gain over the mean network: {100 * mean.difference:+.2f} points (95 %"
    )
    assert second.startswith(f"gain over {result['best']}, the best: ")


def test_augmented_probabilities_are_averaged_too(predictors, digits):
    some = digits.test.subset(range(100))
    pair = {"a": predictors["a"], "b": replace(predictors["b"], tta="flip")}
    found = measure_ensemble(pair, some, "auto")["ensemble"]
    assert found["tta"] == OWN_TTA
    own = (pair["a"].logits(some.images, "none"), pair["b"].logits(some.images, "flip"))
    probs = sum(logits.double().softmax(1) for logits in own) / 2
    assert found["accuracy_tta"] == accuracy_score(some.labels, probs.argmax(1))
    assert measure_ensemble(pair, some, "flip")["ensemble"]["tta"] == "flip"


def test_evaluate_takes_one_or_several_and_finds_the_data(three_runs, digits, predictors):
    one = leanres.evaluate(three_runs / "a", device="cpu")
    assert one == predictors["a"].evaluate(digits.test) | {"split": "test", "notes": []}
    several = leanres.evaluate([three_runs / "a", three_runs / "b"], split="val", device="cpu")
    assert several["n"] == 200
    assert several["notes"] == []
    val = digits.with_val(200).val
    assert several["members"][1]["accuracy"] == predictors["b"].evaluate(val)["accuracy"]
    files = [three_runs / name / WEIGHTS for name in ("a", "b")]
    by_files = leanres.evaluate(files, digits, device="cpu")
    assert (
        by_files["ensemble"]
        == measure_ensemble({name: predictors[name] for name in ("a", "b")}, digits.test)[
            "ensemble"
        ]
    )
    with pytest.raises(UserError, match="does not know its data: give data"):
        leanres.evaluate(files)


def test_images_that_another_network_was_trained_on_are_left_out(three_runs, digits):
    with pytest.raises(UserError, match="plain was trained on all 200 val images: give others"):
        leanres.evaluate([three_runs / "a", three_runs / "plain"], split="val", device="cpu")
    train, test = digits.train.subset(range(30)), digits.test.subset(range(70))
    images, labels = torch.cat([train.images, test.images]), torch.cat([train.labels, test.labels])
    mixed = Split(images, labels, digits.train.classes)
    kept, (note,) = unseen_too(mixed, "test", three_runs / "plain")
    assert torch.equal(kept.images, test.images)
    assert note.startswith("30 of 100 test images left out: ")
    assert unseen_too(digits.test, "test", three_runs / "plain") == (digits.test, [])
    assert unseen_too(mixed, "train", three_runs / "plain") == (mixed, [])


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"size": 16}, "a has images of 32 px, b images of 16 px"),
        ({"mean": (0.5,), "std": (0.5,)}, "a has images of 3 channels, b images of 1 channels"),
        ({"classes": ("x", "y")}, "a has 10 classes, b 2 classes"),
        ({"classes": tuple("9876543210")}, "a has the classes 0, 1, 2, .* b the classes 9, 8"),
    ],
)
def test_networks_for_other_images_are_refused_by_name(predictors, changed, part):
    a = predictors["a"]
    other = ImageClassifier(a.model, replace(a.preprocess, **changed))
    with pytest.raises(UserError, match=f"{part}.*: an ensemble is of networks for the same"):
        check_alike({"a": a, "b": replace(a, classifier=other)})


def test_what_cannot_be_evaluated_is_one_line(three_runs, digits):
    with pytest.raises(UserError, match="no network: give a run folder or a weights file"):
        leanres.evaluate([], digits)
    for again in (three_runs / "a", three_runs / "b" / ".." / "a" / WEIGHTS):
        with pytest.raises(UserError, match="is named twice"):
            leanres.evaluate([three_runs / "a", again], digits)
    with pytest.raises(UserError, match="digits has no val split: give --split train or test"):
        leanres.evaluate(three_runs / "plain", digits, split="val")
    pair = Split(digits.test.images[:2], torch.tensor([0, 1]), ("cat", "dog"))
    predictor = load_predictor(three_runs / "a", "cpu")
    with pytest.raises(UserError, match="the data has classes cat, dog"):
        measure_ensemble({"a": predictor}, pair)


def test_a_weights_file_says_that_it_does_not_know_its_training_images(three_runs, digits):
    """On data that may hold them; test images of a published set are never trained on."""
    weights, run = three_runs / "a" / "model.safetensors", three_runs / "a"
    train, test = ((split.images, split.labels) for split in (digits.train, digits.test))
    mine = Dataset.from_arrays(*train, test=test, classes=digits.train.classes)
    told = f"{weights} does not know the images that it was trained on: none are left out"
    assert leanres.evaluate(weights, mine)["notes"] == [told]
    assert leanres.evaluate([run.with_name("b"), weights], mine)["notes"][-1] == told
    assert leanres.evaluate(weights, digits)["notes"] == []
    assert leanres.evaluate(weights, mine, split="train")["notes"] == []
