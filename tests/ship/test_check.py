"""The check of a shipped file: what it measures, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from leanres.data.split import Split
from leanres.errors import UserError
from leanres.io import CheckpointError
from leanres.metrics.calibration import fit_temperature
from leanres.runs.images import unseen
from leanres.runs.layout import load_data_of
from leanres.runs.predictor import load_predictor
from leanres.runs.run_json import read_info
from leanres.runs.weights import load_classifier
from leanres.ship import check as checks
from leanres.ship.check import Images, check
from leanres.ship.export import TARGETS, DriftError, export, known_facts, verify
from leanres.ship.facts import Answers


@pytest.fixture
def test(grey_digits) -> Split:
    return grey_digits.test


@pytest.fixture(scope="module")
def shipped(grey_run, tmp_path_factory, grey_digits) -> dict[str, Path]:
    """A file of each target that knows the digits."""
    folder = tmp_path_factory.mktemp("shipped")
    test = grey_digits.test
    known = [suffix for suffix in TARGETS if not missing(suffix)]
    for suffix in known:
        export(grey_run, folder / f"net{suffix}", test.images, labels=test.labels, data="digits")
    return {suffix: folder / f"net{suffix}" for suffix in known}


def missing(suffix):
    return any(find_spec(package) is None for package in TARGETS[suffix].packages)


def answers_with(probs):
    """A target's `load` for a file that gives these probabilities; pixels are an image's number."""
    return lambda path: lambda images: probs[images[:, 0, 0, 0].long() * 256 + images[:, 0, 0, 1]]


def checked(path, probs, expected, labels, is_int8):
    path.write_bytes(b"file")
    images = Images(numbered(len(labels)), labels, expected)
    return check(path, answers_with(probs), "", images, is_int8)


def numbered(n):
    """Images of two pixels, which are the image's number."""
    numbers = torch.arange(n)
    return torch.stack((numbers // 256, numbers % 256), 1).to(torch.uint8)[:, None, None]


def probabilities(classes, top=0.9, k=4):
    rest = (1 - top) / (k - 1)
    return torch.full((len(classes), k), rest).scatter(1, classes[:, None], top)


def test_int8_is_judged_by_accuracy_and_classes_and_floats_by_drift(tmp_path):
    labels = torch.arange(100) % 4
    expected = Answers.of(probabilities(labels))
    softer = probabilities(labels, top=0.8)
    _, problem = checked(tmp_path / "f", softer, expected, labels, True)
    assert problem == ""
    _, problem = checked(tmp_path / "f", softer, expected, labels, False)
    assert problem == "it would change a probability by 0.1, and at most 0.02 is accepted"
    for wrong, told in ((1, ""), (2, "it would lose 2.00 % of accuracy, and at most 1 % is")):
        answered = labels.clone()
        answered[:wrong] = (answered[:wrong] + 1) % 4
        _, problem = checked(tmp_path / "f", probabilities(answered), expected, labels, True)
        assert problem.startswith(told)
        assert bool(problem) == bool(told)


def test_a_float_files_drift_is_judged_before_its_temperature_multiplies_it(tmp_path):
    """Logits change by at most 0.03, as in float16: by 0.15 once they are divided by 0.2."""
    torch.manual_seed(0)
    labels = torch.arange(100) % 4
    logits = 0.3 * torch.nn.functional.one_hot(labels, 4) + 0.1 * torch.rand(100, 4)
    rounded = logits + 0.06 * torch.rand(100, 4) - 0.03
    for temperature in (1.0, 0.2):
        before, after = ((each / temperature).softmax(1) for each in (logits, rounded))
        images = Images(numbered(100), labels, Answers.of(before), temperature)
        (tmp_path / "f").touch()
        done, problem = check(tmp_path / "f", answers_with(after), "", images, False)
        assert problem == ""
    assert done.drift > checks.DRIFT
    _, problem = check(
        tmp_path / "f", answers_with(after), "", replace(images, temperature=1.0), False
    )
    assert problem.startswith("it would change a probability by")


def test_int8_that_is_right_as_often_on_other_images_is_refused(tmp_path):
    labels = torch.arange(100) % 4
    before, after = labels.clone(), labels.clone()
    before[:3], after[3:6] = (labels[:3] + 1) % 4, (labels[3:6] + 1) % 4
    expected = Answers.of(probabilities(before))
    done, problem = checked(tmp_path / "f", probabilities(after), expected, labels, True)
    assert (done.accuracy, done.network_accuracy) == (0.97, 0.97)
    assert problem.startswith("94.0 % of the images would keep their class, and at least 98 %")


def test_probabilities_that_are_not_finite_are_refused(tmp_path):
    labels = torch.zeros(5, dtype=torch.int64)
    probs = probabilities(labels)
    broken = probs.clone()
    broken[3, 0] = torch.nan
    for is_int8 in (False, True):
        _, problem = checked(tmp_path / "f", broken, Answers.of(probs), labels, is_int8)
        assert problem == "its probabilities are not finite"


def test_the_difference_is_paired_and_its_interval_is_that_of_the_images_that_differ(tmp_path):
    labels = torch.arange(400) % 4
    before, after = labels.clone(), labels.clone()
    before[:1], after[1:4] = (labels[:1] + 1) % 4, (labels[1:4] + 1) % 4
    expected = Answers.of(probabilities(before))
    done, _ = checked(tmp_path / "f", probabilities(after), expected, labels, True)
    assert done.difference.difference == pytest.approx(-2 / 400)
    bounds = binomtest(1, 4).proportion_ci(method="exact")
    assert done.difference.low == pytest.approx((2 * bounds.low - 1) * 4 / 400)
    assert done.difference.high == pytest.approx((2 * bounds.high - 1) * 4 / 400)
    assert done.rows()["network"].startswith("99.75 %; difference -0.50 points (95 % interval -0.")
    assert all(len(f"{name:12}{value}") <= 80 for name, value in done.rows().items())


def test_memory_is_that_of_loading_and_is_none_where_the_system_does_not_tell(
    tmp_path, monkeypatch
):
    labels = torch.zeros(4, dtype=torch.int64)
    probs = probabilities(labels)

    def hungry(path):
        kept = np.ones(64 << 20, np.uint8)  # 64 MiB
        return lambda images: probs[: len(images)] * kept[0]

    (tmp_path / "f").touch()
    images = Images(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), labels, None)
    threads = torch.get_num_threads()
    done, _ = check(tmp_path / "f", hungry, "nothing", images, False)
    assert torch.get_num_threads() == threads
    if done.memory_mib is not None:  # on Linux
        assert 60 < done.memory_mib < 80
    monkeypatch.setattr(checks, "_resident_kib", lambda peak: None)
    done, _ = check(tmp_path / "f", hungry, "nothing", images, False)
    assert done.memory_mib is None
    assert "memory" not in done.rows()


def test_answers_survive_being_packed_and_other_text_is_refused():
    torch.manual_seed(0)
    answers = Answers.of(torch.randn(300, 1000).softmax(1))
    text = answers.packed()
    again = Answers.unpacked(text, 300)
    assert torch.equal(again.classes, answers.classes)
    torch.testing.assert_close(again.top, answers.top, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(again.margin, answers.margin, rtol=1e-3, atol=1e-6)
    for bad, n in ((text, 299), (text, 301), (text, 0), (text, 10**9), ("", 300)):
        with pytest.raises(ValueError, match="answers"):
            Answers.unpacked(bad, n)


@pytest.mark.parametrize("suffix", TARGETS)
def test_a_file_is_verified_from_itself_alone(shipped, test, suffix):
    done = verify(shipped[suffix], test)
    assert (done.agreement, done.images) == (1, 360)
    assert done.drift < 0.005  # the weights are float16, as is what is known of the network's
    assert done.accuracy == done.network_accuracy > 0.8
    known = known_facts(shipped[suffix])
    assert known.checked["accuracy"] == done.accuracy
    assert known.checked["low"] < done.accuracy < known.checked["high"]
    assert known.checked["data"] == "digits"


@pytest.mark.parametrize("suffix", TARGETS)
def test_the_file_says_what_its_network_was_trained_on(shipped, grey_run, suffix):
    told = json.loads(TARGETS[suffix].facts(shipped[suffix])["trained"])
    assert told == {"data": "digits", "fingerprints": read_info(grey_run)["data"]["fingerprints"]}


def test_on_other_images_only_the_accuracy_is_measured(shipped, test):
    other = test.subset(range(100, 200))
    done = verify(shipped[".onnx"], other)
    assert (done.agreement, done.drift, done.difference) == (None, None, None)
    found = load_predictor(shipped[".safetensors"], "cpu", "float32").logits(other.images)
    assert done.accuracy == float((found.argmax(1) == other.labels).double().mean())


def test_a_file_that_answers_otherwise_than_at_its_export_is_refused(shipped, test, monkeypatch):
    kind = TARGETS[".onnx"]

    def turned(path):
        answer = kind.load(path)
        return lambda images: answer(images).flip(1)

    monkeypatch.setitem(TARGETS, ".onnx", replace(kind, load=turned))
    with pytest.raises(UserError, match=r"net\.onnx does not answer as it did: it would change"):
        verify(shipped[".onnx"], test)


def test_images_of_other_classes_or_sizes_are_a_mistake(shipped, test):
    renamed = replace(test, classes=tuple("abcdefghij"))
    with pytest.raises(UserError, match="the data has classes a, b, c"):
        verify(shipped[".onnx"], renamed)
    with pytest.raises(UserError, match="images of 1x8x8: the network takes 1x32x32"):
        verify(shipped[".onnx"], replace(test, images=test.images[:, :, :8, :8].contiguous()))


@pytest.mark.parametrize("suffix", TARGETS)
def test_a_file_that_was_changed_or_is_none_is_refused_in_one_line(shipped, tmp_path, test, suffix):
    whole = shipped[suffix].read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for content in (whole[:middle], whole[:-1], whole + b"\0", flipped, b"", b"\0" * 500):
        file = tmp_path / f"bad{suffix}"
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=str(file)) as caught:
            verify(file, test)
        assert "\n" not in str(caught.value)
    (tmp_path / f"link{suffix}").mkdir()
    with pytest.raises(UserError):
        verify(tmp_path / f"link{suffix}", test)


def test_a_weights_file_of_a_run_says_that_it_was_never_checked(grey_run, test):
    with pytest.raises(CheckpointError, match="does not say what it was checked on"):
        verify(grey_run / "model.safetensors", test)


@pytest.mark.parametrize("suffix", TARGETS)
def test_a_temperature_of_val_is_in_the_file_and_in_its_probabilities(
    grey_run, tmp_path, test, suffix
):
    val = load_run_val(grey_run)
    done = export(grey_run, tmp_path / f"net{suffix}", test.images, labels=test.labels, val=val)
    plain = load_predictor(grey_run, "cpu", "float32")
    assert done.temperature == round(fit_temperature(plain.logits(val.images), val.labels), 4)
    assert done.temperature != 1
    logits = plain.logits(test.images)
    answer = TARGETS[suffix].load(done.path)(test.images)
    expected = (logits / done.temperature).softmax(1)
    torch.testing.assert_close(answer, expected, atol=0.01, rtol=0)
    assert done.ece < done.ece_before / 2
    assert known_facts(done.path).temperature == done.temperature
    assert verify(done.path, test).agreement > 0.99


def load_run_val(run) -> Split:
    info = read_info(run)
    dataset, _ = unseen(run, info, load_data_of(info))
    assert len(dataset.val) == 180
    return dataset.val


def test_a_calibrated_weights_file_keeps_its_temperature(grey_run, tmp_path, test):
    val = load_run_val(grey_run)
    first = export(grey_run, tmp_path / "a.safetensors", test.images, val=val)
    again = export(first.path, tmp_path / "b.safetensors", test.images, val=val)
    assert again.temperature == first.temperature
    assert again.drift == 0
    found = load_predictor(first.path, "cpu", "float32")
    expected = load_classifier(first.path)[0](test.images)
    torch.testing.assert_close(found.logits(test.images), expected, atol=1e-4, rtol=0)


def test_a_val_split_that_is_all_right_fits_no_temperature(grey_run, tmp_path, test):
    val = load_run_val(grey_run)
    right = load_predictor(grey_run, "cpu", "float32").logits(val.images).argmax(1) == val.labels
    done = export(grey_run, tmp_path / "a.onnx", test.images, val=val.subset(right.nonzero()[:, 0]))
    assert done.temperature == 1


def test_int8_that_loses_accuracy_is_not_left_behind(grey_run, tmp_path, test, monkeypatch):
    kind = TARGETS[".onnx"]

    def worse(path):
        answer = kind.load(path)
        return lambda images: answer(images).roll(1, 1)

    monkeypatch.setitem(TARGETS, ".onnx", replace(kind, load=worse))
    with pytest.raises(DriftError, match=r"a\.onnx was not written: it would lose \d+\.\d+ % of"):
        export(
            grey_run,
            tmp_path / "a.onnx",
            test.images,
            labels=test.labels,
            calibration=test.images[:50],
        )
    assert not list(tmp_path.iterdir())
