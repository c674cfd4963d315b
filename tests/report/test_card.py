"""The model card of a weights file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from leanres.errors import UserError
from leanres.metrics.classification import accuracy_text, other_metrics
from leanres.report.card import model_card, portable_command
from leanres.runs.layout import fingerprints
from leanres.runs.predictor import load_predictor
from leanres.runs.weights import WEIGHTS, load_classifier, save_weights

SPLITS = ("train", "test")
SHIPPED = Path(__file__).resolve().parents[2] / "weights"


def rows(card: str) -> dict[str, str]:
    """The card's table: name -> value."""
    cells = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    return {row[0]: row[1] for row in cells if len(row) == 2}


def test_the_card_says_what_was_measured_on_the_file_and_how_it_was_trained(
    copied, digits, tmp_path
):
    folder, out = copied(), tmp_path / "small.safetensors"
    known, config = load_classifier(folder / WEIGHTS)
    known.model.head.weight.data.mul_(-1)  # another network than the run's: the card is of the file
    save_weights(out, known.model, config, known.preprocess)
    info = json.loads((folder / "run.json").read_text())
    info["origin"]["command"] = f"leanres train digits --out {folder} --seed 0"
    (folder / "run.json").write_text(json.dumps(info))
    card = model_card(folder, out, digits, "cpu")
    found = load_predictor(out, "cpu", "float32").evaluate(digits.test, info["result"]["tta"])
    facts, run = rows(card), info["result"]
    assert found["accuracy"] < run["accuracy"]
    assert facts["test accuracy"] == accuracy_text(found)
    assert facts["before export"] == accuracy_text(run)
    assert facts["other metrics"] == other_metrics(found)
    assert facts["other metrics"].startswith(f"NLL {found['nll']:.4f}, ECE ")
    assert facts["network"].startswith(f"{found['params']:,} parameters, ")
    assert facts["classes"] == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert facts["trained on"].startswith("1,237 images of digits (fingerprint ")
    assert f"kernels: {info['hardware']['kernels']}" in facts["training took"]
    assert "batch_size = 200" in facts["recipe"]
    assert "predicted as" in facts["most confused"]
    params = f"{found['params'] / 1e6:.3g} M parameters"
    assert card.splitlines()[0] == f"# custom speednet, {params}"
    assert card.count("`small.safetensors`") == 1
    assert f"`{hashlib.sha256(out.read_bytes()).hexdigest()}`" in card
    assert "\nleanres train digits --seed 0   # trains it again\n" in card
    assert "\nleanres evaluate small.safetensors\n" in card


def test_a_run_without_a_command_or_a_result_has_no_line_or_no_card(copied, digits):
    folder = copied("plain")
    assert "# trains it again" not in model_card(folder, folder / WEIGHTS, digits, "cpu")
    info = json.loads((folder / "run.json").read_text())
    del info["result"]
    (folder / "run.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"has no result: `leanres resume"):
        model_card(folder, folder / WEIGHTS, digits, "cpu")


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("leanres train speed --seed 2", "leanres train speed --seed 2"),
        (
            "leanres train speed --device auto --seed 20 --out /home/me/runs/a --no-report --json",
            "leanres train speed --seed 20",
        ),
        (
            "leanres train --path=/home/me/data x.toml --set 'lr=0.1' --track mlflow --threads 2",
            "leanres train x.toml --set lr=0.1",
        ),
    ],
)
def test_the_command_leaves_out_what_depends_on_the_machine(command, shown):
    assert portable_command(command) == shown


@pytest.mark.parametrize("card", sorted(SHIPPED.glob("[!R]*.md")), ids=lambda path: path.stem)
def test_a_shipped_card_has_the_sum_of_its_weights_which_are_intact(card):
    weights = card.with_suffix(".safetensors")
    assert f"`{hashlib.sha256(weights.read_bytes()).hexdigest()}`" in card.read_text()
    load_classifier(weights)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cat", "cat"),
        ("a|b", r"a\|b"),
        ("<img src=x>", r"\<img src=x\>"),
        ("[x](http://y)", r"[x]\(http://y)"),
        ("`*a*`", r"\`\*a\*\`"),
        ("R&D", "R&amp;D"),
        (r"a\b", r"a\\b"),
    ],
)
def test_a_class_name_is_no_cell_tag_link_or_code(copied, digits, tmp_path, name, shown):
    folder, out = copied(), tmp_path / "named.safetensors"
    classes = (name, *digits.test.classes[1:])
    named = replace(digits, **{s: replace(getattr(digits, s), classes=classes) for s in SPLITS})
    known, config = load_classifier(folder / WEIGHTS)
    save_weights(out, known.model, config, replace(known.preprocess, classes=classes))
    info = json.loads((folder / "run.json").read_text())
    info["preprocess"]["classes"] = classes
    info["data"]["fingerprints"] = fingerprints(named)
    (folder / "run.json").write_text(json.dumps(info))
    assert rows(model_card(folder, out, named, "cpu"))["classes"].startswith(f"{shown}, 1, 2, ")


def test_the_card_names_the_precision_of_its_figures(copied, digits):
    folder = copied()
    assert "of this file in float32 on cpu." in model_card(folder, folder / WEIGHTS, digits, "cpu")
