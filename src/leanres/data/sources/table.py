"""A table beside images: a .csv, .tsv or .parquet file of file names, labels and maybe splits."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from leanres.data.sources.cache import cached
from leanres.data.sources.columns import FILE, LABEL, SPLIT, column, no_column, numbered, split_of
from leanres.data.sources.decode import Listing, Row, decode_dataset
from leanres.data.sources.source import LoadOptions
from leanres.data.sources.table_files import ImageIndex
from leanres.data.split import Dataset
from leanres.errors import UserError, first_line, named, printable
from leanres.io import MIB, open_data, read_parquet

LAYOUT = "a table of files and labels beside the images (labels.csv, .tsv or .parquet)"
SETTINGS = ("file", "label", "split")  # columns that a user may name
SUFFIXES = (".csv", ".tsv", ".parquet")
MAX_BYTES = 512 * MIB
_MAX_FIELD = 100_000  # characters

Cells = dict[str, list[str]]  # column -> its cells


def find_table(path: Path) -> Path | None:
    """The table at a path: itself, or the one in a folder with files and labels; else None."""
    if path.is_file():
        return path if path.suffix.lower() in SUFFIXES else None
    return next((table for table in _candidates(path) if _fits(table)), None)


def _candidates(folder: Path) -> list[Path]:
    """labels.* and metadata.* in a folder, or its only .csv or .tsv file."""
    if not folder.is_dir():
        return []
    named = [folder / f"{stem}{end}" for stem in ("labels", "metadata") for end in SUFFIXES]
    tables = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES[:2] and p.name[0] != "."]
    return [p for p in named if p.is_file()] or (tables if len(tables) == 1 else [])


def _fits(table: Path) -> bool:
    try:
        names = list(_cells(table, head=True))
        return bool(column("file", names, FILE, {}, "") and column("label", names, LABEL, {}, ""))
    except UserError:
        return False


def load_table(options: LoadOptions) -> Dataset:
    """The images that the table at `options.path` names, each resized to `options.size`.

    UserError for a table that is damaged, or lacks a column. A file that is not there, or lies
    outside of the table's folder, is left out, named and counted as an unreadable image is.
    """
    path = options.path
    if path is None:
        raise UserError(f"a table needs its path, as table:PATH; give {LAYOUT}")
    table = find_table(path) or next(iter(_candidates(path)), None)
    if table is None:
        raise UserError(f"{path} has no table; give {LAYOUT}")
    index = ImageIndex(table.parent)
    paths = sorted({path for paths in index.known.values() for path in paths})
    settings = [options.size, options.channels, options.strict, sorted(options.settings.items())]
    decode = partial(_read, table, index, options)
    return cached(
        "table", table.parent, [table, *paths], settings, options.cache, decode, options.whites
    )


def _read(table: Path, index: ImageIndex, options: LoadOptions) -> Dataset:
    with named(table):
        names, values, splits = _columns(table, options)
        labels, classes = numbered(values, None)
        unique = _unique(names, labels, classes)
    rows = [Row(names[i], splits[i], labels[i]) for i in unique]
    items = [index.find(names[i]) for i in unique]
    listing = Listing(rows, classes, lambda: items, table.parent)
    notes = _notes(table, len(names) - len(unique), index.count_others(items))
    return decode_dataset("table", listing, options, notes, table)


def _notes(table: Path, repeated: int, others: int) -> list[str]:
    notes = [f"files and labels from {printable(table.name)}"]
    notes += [f"{repeated:,} rows name a file again: used once"] if repeated else []
    return notes + ([f"{others:,} images are not in the table: not used"] if others else [])


def _columns(table: Path, options: LoadOptions) -> tuple[list[str], list[str], list[str]]:
    """File, label and split of every row that has a file and a label."""
    cells = _cells(table)
    names, given = list(cells), options.settings
    file = column("file", names, FILE, given, "table")
    if file is None:
        raise no_column("file", names, FILE, "table")
    label = column("label", [n for n in names if n != file], LABEL, given, "table")
    if label is None:
        raise no_column("label", names, LABEL, "table")
    split = column("split", names, SPLIT, given, "table")
    kept = [i for i, (f, y) in enumerate(zip(cells[file], cells[label], strict=True)) if f and y]
    if not kept:
        raise UserError(f"it has no row with a {file} and a {label}")
    splits = [split_of(cells[split][i], f"row {i + 2}") if split else "all" for i in kept]
    return [cells[file][i] for i in kept], [cells[label][i] for i in kept], splits


def _unique(names: Sequence[str], labels: Sequence[int], classes: Sequence[str]) -> list[int]:
    """The first row of each file. UserError where another row gives the file another label."""
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        if labels[first.setdefault(name, i)] != labels[i]:
            two = " and ".join(classes[labels[j]] for j in (first[name], i))
            raise UserError(f"{printable(name)} is labelled {two}: give one label per file")
    return list(first.values())


def _cells(table: Path, head: bool = False) -> Cells:
    """Every cell as text, without blanks around it; with `head` maybe those of few rows.

    UserError, naming the table, where it is damaged.
    """
    try:
        if table.suffix.lower() == ".parquet":
            found = read_parquet(table, MAX_BYTES)
            columns = {name: found[name].to_pylist() for name in found.column_names}
            return {
                name: ["" if v is None else str(v).strip() for v in values]
                for name, values in columns.items()
                if not any(isinstance(value, bytes | dict | list) for value in values[:1])
            }
        with open_data(table, MAX_BYTES) as raw:
            text = io.TextIOWrapper(raw, "utf-8-sig", newline="")
            return _parsed(text, table, most=1 if head else None)
    except UserError:
        raise
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise UserError(f"{table} cannot be read: {first_line(error)}") from None


def _parsed(text: io.TextIOWrapper, table: Path, most: int | None) -> Cells:
    """The cells of delimited text, of `most` rows: tabs in .tsv, else commas or semicolons."""
    first = text.readline(_MAX_FIELD)
    text.seek(0)
    between = "\t" if table.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    csv.field_size_limit(_MAX_FIELD)
    reader = csv.reader(text, delimiter=between)
    names = [name.strip() for name in next(reader, [])]
    if len(set(names)) < len(names):
        raise ValueError("two columns have the same name")
    cells: Cells = {name: [] for name in names}
    for row in reader:
        if not row:
            continue
        if len(row) != len(names):
            raise ValueError(f"line {reader.line_num} has {len(row)} cells, not {len(names)}")
        for name, cell in zip(names, row, strict=True):
            cells[name].append(cell.strip())
        if most and len(cells[names[0]]) >= most:
            break
    return cells
