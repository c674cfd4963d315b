"""The ledger: every run folder and committed result as one flat row; filter, sort, diff, CSV.

Only JSON is read, so listing a hundred runs imports no torch and loads no data.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from leanres.errors import UserError, first_line
from leanres.io import csv_text, parse_json, read_file
from leanres.metrics.classification import HEADLINE, METRICS
from leanres.registry import Table, unknown
from leanres.runs.manifest import edited

LedgerRow = dict[str, Any]
Difference = tuple[str, str, str]  # key, first value, second value
SHOWN = ("name", "status", "model", "params", "epochs", "seed", "split", *HEADLINE)  # in a listing
FOLDS, A_FOLD = "folds.json", "fold-*/run.json"  # of a cross-validation
_ORIGIN = ("train_seconds", "data", "started", "commit", "device", "path")
_SIGNS: Table[Callable[[Any, Any], bool]] = Table(
    "sign",
    {
        "=": operator.eq,
        "!=": operator.ne,
        "<": operator.lt,
        "<=": operator.le,
        ">": operator.gt,
        ">=": operator.ge,
    },
)


def read_ledger(runs: Path, results: Path) -> tuple[list[LedgerRow], list[str]]:
    """The rows of `runs`/*/run.json and `results`/*.json, oldest first, and a note per bad file.

    A row holds the outcome, every setting of the recipe, and its origin. A committed result of a
    run whose folder exists too is not a row of its own: the folder's row stands for both. A
    cross-validation, `runs`/*/folds.json, is one row: the figures of all its images; it has none
    while its folds train.
    """
    rows: dict[str, LedgerRow] = {}
    notes = []
    folds = {*runs.glob(f"*/{FOLDS}"), *(p.parents[1] / FOLDS for p in runs.glob(f"*/{A_FOLD}"))}
    found = (runs.glob("*/run.json"), folds, results.glob("*.json"))
    for path in (path for paths in found for path in sorted(paths)):
        try:
            for row in _read_rows(path):
                rows.setdefault(_identity(row), row)
            if path.name != FOLDS:  # it has no checksum: the runs of the folds have
                notes += edited(path.parent) if path.name == "run.json" else edited_entry(path)
        except UserError as error:
            notes.append(str(error))
    return sorted(rows.values(), key=lambda row: str(row["started"])), notes


def entry_sum(entry: Mapping[str, Any]) -> str:
    """The sha256 of a ledger entry's content, which the entry itself carries as `sha256`."""
    content = {key: value for key, value in entry.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def edited_entry(path: Path) -> list[str]:
    """A note if a ledger entry is not as leanres wrote it. UserError if it is none."""
    try:
        entry = parse_json(read_file(path))
        intact = entry.get("sha256") == entry_sum(entry)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a ledger entry: {first_line(error)}") from None
    return [] if intact else [f"{path} was edited: it is not as leanres wrote it"]


def _identity(row: LedgerRow) -> str:
    """What two rows of the same training have in common: its start, seed and outcome."""
    if not row["started"] or row["accuracy"] is None:
        return str((row["path"], row["name"]))
    keys = ("started", "seed", "split", "accuracy", "epochs")
    return str([row.get(key) for key in keys])


def read_row(path: Path) -> LedgerRow:
    """The row of one run folder, run.json or results file (of several runs: the first one's).

    UserError where `path` is none of these.
    """
    is_folds = (path / FOLDS).exists() or any(path.glob(A_FOLD))
    file = path / (FOLDS if is_folds else "run.json") if path.is_dir() else path
    if not file.exists() and not is_folds:
        raise UserError(f"{path} is neither a run folder nor a results file")
    return _read_rows(file)[0]


def _read_rows(path: Path) -> list[LedgerRow]:
    """The row of a run, or one per seed where a file holds several (`leanres bench race`).

    UserError where it holds none.
    """
    if path.name == FOLDS and not path.exists():
        return [_unfinished_folds(path.parent)]
    name = path.resolve().parent.name if path.name in ("run.json", FOLDS) else path.stem
    try:
        info = parse_json(read_file(path))
        if "runs" not in info:
            return [_to_row(path, name, info)]
        rows = [_to_row(path, f"{name}:{run['seed']}", run) for run in info["runs"]]
    except KeyError as error:
        raise UserError(f"{path} is not a run: it lacks {error}") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a run: {first_line(error)}") from None
    if not rows:
        raise UserError(f"{path} is not a run: it holds none")
    return rows


def _unfinished_folds(folder: Path) -> LedgerRow:
    """The row of a cross-validation that has no summary yet: its recipe, as a fold has it."""
    (row,) = _read_rows(min(folder.glob(A_FOLD)))
    own = {"name": folder.resolve().name, "path": str(folder), "status": "unfinished"}
    return row | dict.fromkeys(_outcome_keys()) | own


def _to_row(path: Path, name: str, info: Mapping[str, Any]) -> LedgerRow:
    recipe = dict(info["recipe"])
    result = _result(info)
    is_run = path.name in ("run.json", FOLDS)
    about: LedgerRow = {
        "name": name,
        "path": str(path.parent if is_run else path),
        "status": _status(result),
        "started": info.get("started", ""),
        "commit": info.get("commit"),
        "data": info.get("data", {}).get("name"),
        "device": info.get("hardware", {}).get("device"),
    }
    return about | {key: result.get(key) for key in _outcome_keys()} | recipe


def _status(result: Mapping[str, Any]) -> str:
    """A run that has a result without figures had no images to be measured on."""
    if result.get("accuracy") is not None:
        return "measured"
    return "unmeasured" if result else "unfinished"


def _outcome_keys() -> tuple[str, ...]:
    """The columns of a measurement; those of METRICS may be extended."""
    return ("split", "n", *HEADLINE, "tta", *METRICS, "params", "train_seconds")


def _result(info: Mapping[str, Any]) -> LedgerRow:
    """The measurement: a run's `result`, or the `test` (else `val`) of a committed result."""
    if isinstance(info.get("result"), dict):
        return dict(info["result"])
    if isinstance(info.get("pooled"), dict):
        seconds = sum(fold["train_seconds"] for fold in info["folds"])
        whole = {"params": info.get("params"), "train_seconds": round(seconds, 1)}
        return {"split": "folds", **whole, **info["pooled"]}
    if "accuracy" in info:
        return {"split": "test", **info}
    for split in ("test", "val"):
        if isinstance(info.get(split), dict):
            return {"split": split, **info[split]}
    return {}


def columns(rows: Iterable[LedgerRow]) -> list[str]:
    """Every key of the rows, the most used first."""
    found = dict.fromkeys(key for row in rows for key in row)
    first = dict.fromkeys((*SHOWN, "n", *METRICS, *_ORIGIN))
    return [key for key in first if key in found] + [key for key in found if key not in first]


def matching(rows: list[LedgerRow], condition: str) -> list[LedgerRow]:
    """The rows that meet a condition: "epochs>=10", "model=resnet20" or "accuracy>0.9".

    Numbers are compared as numbers, everything else as text, ignoring case. UserError for an
    unknown key, a missing sign, or text where the column holds numbers.
    """
    match = re.fullmatch(r"\s*([\w.]+)\s*(!=|<=|>=|=|<|>)\s*(.*?)\s*", condition)
    if not match:
        raise UserError(f"condition {condition!r}: give key=value, also !=, <, <=, > or >=")
    key, sign, wanted = match.groups()
    _check_key(rows, key)
    return [row for row in rows if _meets(row.get(key), _SIGNS[sign], wanted)]


def _meets(value: Any, sign: Callable[[Any, Any], bool], wanted: str) -> bool:
    if value is None:
        return sign is operator.ne
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return sign(value, float(wanted))
        except ValueError:
            raise UserError(
                f"{wanted!r} is not a number: give one to compare {value!r} with"
            ) from None
    return sign(shown(value).lower(), wanted.lower())


def sort_rows(rows: list[LedgerRow], key: str) -> list[LedgerRow]:
    """The rows sorted by `key`, or by "-key" largest first; rows without a value come last.

    UserError for an unknown key.
    """
    name = key.removeprefix("-")
    _check_key(rows, name)
    with_value = [row for row in rows if row.get(name) is not None]
    are_numbers = all(isinstance(row[name], int | float) for row in with_value)

    def rank(row: LedgerRow) -> Any:
        return row[name] if are_numbers else shown(row[name])

    ordered = sorted(with_value, key=rank, reverse=key.startswith("-"))
    return ordered + [row for row in rows if row.get(name) is None]


def _check_key(rows: list[LedgerRow], key: str) -> None:
    known = columns(rows)
    if rows and key not in known:
        raise UserError(unknown("column", key, known))


def to_csv(rows: Sequence[LedgerRow]) -> str:
    """All columns of all rows as CSV, lists and tables in it as JSON."""
    text = io.StringIO()
    heads = columns(rows)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(csv_text, heads))
    for row in rows:
        values = (row.get(key) for key in heads)
        writer.writerow(["" if value is None else csv_text(shown(value)) for value in values])
    return text.getvalue()


def shown(value: Any) -> str:
    """A setting as text: a string as it is, everything else as JSON, None as "-"."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value)


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """The keys whose values differ, with both as text of six digits; "-" for a missing one."""
    found: list[Difference] = []
    for key in dict.fromkeys((*first, *second)):
        pair = first.get(key), second.get(key)
        if pair[0] != pair[1]:
            short = [f"{value:.6g}" if isinstance(value, float) else shown(value) for value in pair]
            if short[0] == short[1]:  # they differ beyond the sixth digit
                short = [shown(value) for value in pair]
            found.append((key, short[0], short[1]))
    return found


def diff_rows(first: LedgerRow, second: LedgerRow) -> tuple[list[Difference], list[Difference]]:
    """What differs between two rows: in recipe and origin, and in the outcome."""
    outcome, skip = set(_outcome_keys()), {"name", "path", "status", "started"}

    def part(row: LedgerRow, of_outcome: bool) -> LedgerRow:
        return {k: v for k, v in row.items() if (k in outcome) == of_outcome and k not in skip}

    recipe = differences(part(first, False), part(second, False))
    return recipe, differences(part(first, True), part(second, True))
