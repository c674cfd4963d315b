"""The ledger: every run folder and committed result as one flat row; filter, sort, diff, CSV.

It reads JSON alone, so that listing a hundred runs loads neither torch nor the data.
"""

from __future__ import annotations

import csv
import io
import json
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from leanres.errors import UserError
from leanres.registry import Table, unknown

Row = dict[str, Any]
SHOWN = ("name", "status", "model", "params", "epochs", "seed", "split", "accuracy", "accuracy_tta")
_FIRST = (*SHOWN, "n", "nll", "ece", "train_seconds", "data", "started", "commit", "device", "path")
_OUTCOME = (
    "split",
    "n",
    "accuracy",
    "accuracy_tta",
    "tta",
    "nll",
    "ece",
    "params",
    "train_seconds",
)
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


def read_ledger(runs: Path, results: Path) -> tuple[list[Row], list[str]]:
    """(rows, notes): `runs`/*/run.json and `results`/*.json, oldest first; what is not readable.

    A row holds the outcome, every setting of the recipe, and where it came from. A committed
    result of a run whose folder is there too is one row, the folder's.
    """
    rows: dict[object, Row] = {}
    notes = []
    for path in (*sorted(runs.glob("*/run.json")), *sorted(results.glob("*.json"))):
        try:
            for row in _entries(path):
                rows.setdefault(_identity(row), row)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            notes.append(f"{path} is no run: {reason}")
    return sorted(rows.values(), key=lambda row: str(row["started"])), notes


def _identity(row: Row) -> object:
    """What two rows of one training share: when it began, its seed, and what came out of it."""
    if not row["started"] or row["accuracy"] is None:
        return row["path"], row["name"]
    return row["started"], row.get("seed"), row["split"], row["accuracy"], row["epochs"]


def read_entry(path: Path) -> Row:
    """The row of one run folder, run.json or results file (of several runs: the first).

    UserError where it is none.
    """
    file = path / "run.json" if path.is_dir() else path
    try:
        return _entries(file)[0]
    except FileNotFoundError:
        raise UserError(f"{path} is no run folder and no results file") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is no run: {type(error).__name__} {error}") from None


def _entries(path: Path) -> list[Row]:
    """The row of a run, or one per seed of a repeated one (`leanres bench race`)."""
    info = json.loads(path.read_text(encoding="utf-8"))
    name = path.resolve().parent.name if path.name == "run.json" else path.stem
    if "runs" not in info:
        return [_entry(path, name, info)]
    return [_entry(path, f"{name}:{run['seed']}", run) for run in info["runs"]]


def _entry(path: Path, name: str, info: Mapping[str, Any]) -> Row:
    recipe = dict(info["recipe"])
    result = _result(info)
    is_run = path.name == "run.json"
    about: Row = {
        "name": name,
        "path": str(path.parent if is_run else path),
        "status": "measured" if result.get("accuracy") is not None else "unfinished",
        "started": info.get("started", ""),
        "commit": info.get("commit"),
        "data": info.get("data", {}).get("name", ""),
        "device": info.get("hardware", {}).get("device", ""),
    }
    return about | {key: result.get(key) for key in _OUTCOME} | recipe


def _result(info: Mapping[str, Any]) -> Row:
    """The measurement: a run's `result`, or the `test` (else `val`) of a committed result."""
    if isinstance(info.get("result"), dict):
        return dict(info["result"])
    if "accuracy" in info:
        return {"split": "test", **info}
    for split in ("test", "val"):
        if isinstance(info.get(split), dict):
            return {"split": split, **info[split]}
    return {}


def columns(rows: Iterable[Row]) -> list[str]:
    """Every key of the rows, the usual ones first."""
    found = dict.fromkeys(key for row in rows for key in row)
    return [key for key in _FIRST if key in found] + [key for key in found if key not in _FIRST]


def matching(rows: list[Row], condition: str) -> list[Row]:
    """The rows that fit "epochs>=10", "model=resnet20" or "accuracy>0.9".

    Numbers are compared as numbers, all else as text. UserError for an unknown key or no sign.
    """
    match = re.fullmatch(r"\s*([\w.]+)\s*(!=|<=|>=|=|<|>)\s*(.*?)\s*", condition)
    if not match:
        raise UserError(f"condition {condition!r}: give key=value, also !=, <, <=, > or >=")
    key, sign, wanted = match.groups()
    _check_key(rows, key)
    return [row for row in rows if _fits(row.get(key), _SIGNS[sign], wanted)]


def _fits(value: Any, sign: Callable[[Any, Any], bool], wanted: str) -> bool:
    if value is None:
        return sign is operator.ne
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return sign(value, float(wanted))
        except ValueError:
            raise UserError(f"{wanted!r} is no number, and {value!r} is one") from None
    return sign(shown(value).lower(), wanted.lower())


def sort(rows: list[Row], key: str) -> list[Row]:
    """The rows by `key`, largest first with "-key"; rows without a value come last."""
    name = key.removeprefix("-")
    _check_key(rows, name)
    there = [row for row in rows if row.get(name) is not None]
    numbers = all(isinstance(row[name], int | float) for row in there)

    def rank(row: Row) -> Any:
        return row[name] if numbers else shown(row[name])

    ordered = sorted(there, key=rank, reverse=key.startswith("-"))
    return ordered + [row for row in rows if row.get(name) is None]


def _check_key(rows: list[Row], key: str) -> None:
    known = columns(rows)
    if rows and key not in known:
        raise UserError(unknown("column", key, known))


def to_csv(rows: Sequence[Row]) -> str:
    """All columns of all rows as CSV; lists and tables as JSON."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns(rows), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: "" if row[key] is None else shown(row[key]) for key in row})
    return text.getvalue()


def shown(value: Any) -> str:
    """A setting as people write it: text as it is, all else as JSON; "-" for nothing."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value)


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(key, first's value, second's value) of the keys that differ, as text; "-" for none."""
    keys = dict.fromkeys((*first, *second))
    return [
        (key, shown(first.get(key)), shown(second.get(key)))
        for key in keys
        if first.get(key) != second.get(key)
    ]


def diff(first: Row, second: Row) -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    """What differs between two rows: (in the recipe, in the outcome), as `differences` gives it."""
    outcome, skip = set(_OUTCOME), {"name", "path", "status", "started"}

    def part(row: Row, wanted: bool) -> Row:
        return {k: v for k, v in row.items() if (k in outcome) == wanted and k not in skip}

    recipe = differences(part(first, False), part(second, False))
    return recipe, differences(part(first, True), part(second, True))
