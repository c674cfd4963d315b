"""run.json with a field that is missing or of a wrong type: one line or success, no traceback."""

from __future__ import annotations

import json
import math
import shutil
from copy import deepcopy
from pathlib import Path

import pytest

from leanres.errors import UserError
from leanres.io import CheckpointError
from leanres.runs.run_json import INFO, read_info

ABSENT = object()
WRONG = (ABSENT, None, [], {}, "x", -1, math.nan)
# What a run may be without; removing anything else is damage, except a setting of the recipe.
OPTIONAL = {"origin.command", "origin.data", "origin.path", "origin.size", "result", "test_reads"}
OPTIONAL |= {"preprocess.whites", "init", "plugins"}  # which a run of before has not


def fields(value, path=()):
    """The path of every field within a JSON object."""
    for key in value if isinstance(value, dict) else ():
        yield (*path, key)
        yield from fields(value[key], (*path, key))


def changed(info: dict, path: tuple[str, ...], value: object) -> dict:
    """A copy in which one field has another value, or is missing."""
    new = deepcopy(info)
    *parents, name = path
    place = new
    for key in parents:
        place = place[key]
    place[name] = value
    if value is ABSENT:
        del place[name]
    return new


def made(folder: Path) -> Path:
    """A finished run that names its data, as `leanres train` writes it."""
    info = json.loads((folder / INFO).read_text())
    info["origin"] = {"command": "leanres train", "data": "digits", "path": None, "size": 32}
    (folder / INFO).write_text(json.dumps(info))
    return folder


@pytest.fixture
def run(copied):
    return made(copied())


@pytest.fixture(scope="module")
def variants(three_runs, tmp_path_factory):
    """(path, value, what `read_info` says) for each field and wrong value; "" where it reads it."""
    run = made(shutil.copytree(three_runs / "a", tmp_path_factory.mktemp("variants") / "a"))
    good, found = json.loads((run / INFO).read_text()), []
    for path in fields(good):
        for value in WRONG:
            (run / INFO).write_text(json.dumps(changed(good, path, value)))
            try:
                read_info(run)
            except CheckpointError as error:
                found.append((path, value, str(error)))
            else:
                found.append((path, value, ""))
    return run, found


def test_a_damaged_field_is_named_in_one_line(variants):
    run, found = variants
    damages = [(path, error) for path, _, error in found if error]
    assert len(damages) > 400
    for path, error in damages:
        assert error.startswith(f"{run / INFO} is damaged: "), path
        # network and model are the network's own to check, but for its family
        assert ".".join(path) in error or path[-1] in ("network", "recipe", "model"), error
        assert "\n" not in error


def test_a_field_that_every_run_has_may_not_be_missing(variants):
    for path, value, error in variants[1]:
        if value is ABSENT:
            name = ".".join(path)
            of_network = name.startswith(("recipe.", "network.")) and path[-1] != "family"
            free = name in OPTIONAL or (of_network and name != "recipe.val")
            assert bool(error) != free, name


def test_a_value_of_a_wrong_type_is_damage(variants):
    """A number or text that another one could replace passes: "x" for a name, -1 for a float."""
    for path, value, error in variants[1]:
        if value is not ABSENT and type(value) in (list, dict) and path[0] in ("data", "hardware"):
            assert error, (path, value)


@pytest.mark.parametrize(
    "words",
    [
        ("report", "RUN", "--text"),
        ("report", "RUN", "OTHER", "--text"),
        ("resume", "RUN", "--no-report"),
        ("evaluate", "RUN", "--tta", "none"),
        ("runs", "--runs", "RUNS", "--results", "nowhere", "--sort", "-accuracy"),
        ("runs", "diff", "RUN", "OTHER"),
    ],
    ids=" ".join,
)
def test_every_reader_takes_or_refuses_such_a_run_in_one_line(
    run, copied, variants, leanres, words, keep_threads
):
    """One variant of each field, and all of the result's; the networks' own checks have tests."""
    places = {"RUN": run, "OTHER": copied("a", "other"), "RUNS": run.parent}
    good, done = json.loads((run / INFO).read_text()), set()
    for path, value, error in variants[1]:
        refused = error and words[0] != "runs"  # by `read_info`, which the ledger does not call
        if refused or path[:-1] in (("recipe",), ("recipe", "model"), ("network",)):
            continue
        if path in done and path[0] != "result":
            continue
        done.add(path)
        (run / INFO).write_text(json.dumps(changed(good, path, value)))
        code, _, err = leanres(*(places.get(word, word) for word in words))
        lines = [line for line in err.splitlines() if not line.startswith("note: ")]
        assert (code, len(lines)) in ((0, 0), (2, 1)), (path, value, err)


def test_a_run_whose_data_is_missing_is_not_taken_for_one_that_has_not_begun(run):
    info = json.loads((run / INFO).read_text())
    del info["data"]
    (run / INFO).write_text(json.dumps(info))
    with pytest.raises(CheckpointError, match="it lacks data"):
        read_info(run, queued=True)


def test_a_setting_that_an_older_version_did_not_have_gets_its_default(run):
    info = json.loads((run / INFO).read_text())
    del info["recipe"]["ema"]
    (run / INFO).write_text(json.dumps(info))
    assert read_info(run)["recipe"]["ema"] == 0.0


def test_names_of_a_plugin_that_is_not_imported_are_no_damage(run):
    info = json.loads((run / INFO).read_text())
    info["recipe"] |= {"optimizer": "mine", "augment": [["mine", {"size": 3}]], "model": "mine"}
    (run / INFO).write_text(json.dumps(info))
    assert read_info(run)["recipe"]["optimizer"] == "mine"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a run folder"),
        ("{", "damaged"),
        ("[]", "it is not a JSON object"),
        ("{}", "lacks recipe"),
        ('{"leanres": "1", "recipe": [], "data": 3}', r"recipe cannot be \[\]"),
        (
            '{"leanres": "1", "recipe": {"val": 0, "mix": 1}, "origin": {}}',
            "recipe.mix cannot be 1",
        ),
        ('{"leanres": "1", "recipe": {"val": 0}, "origin": {}}', "has not started yet"),
    ],
)
def test_a_folder_that_is_not_a_run_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / INFO).write_text(content)
    with pytest.raises(UserError, match=message):
        read_info(tmp_path)
