"""A table beside images: a .csv, .tsv or .parquet file of file names, labels and maybe splits."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from leanres.data.image_files import is_image_name
from leanres.data.sources.cache import cached
from leanres.data.sources.columns import FILE, LABEL, SPLIT, column, no_column, numbered, split_of
from leanres.data.sources.decode import Listing, Row, decode_dataset
from leanres.data.sources.folder import has_class_folders
from leanres.data.sources.source import LoadOptions
from leanres.data.sources.table_files import ImageIndex
from leanres.data.split import Dataset
from leanres.errors import UserError, first_line, named, printable
from leanres.io import MIB, column_values, open_data, read_parquet

LAYOUT = "a table of files and labels beside the images (labels.csv, .tsv or .parquet)"
SETTINGS = ("file", "label", "split")  # columns that a user may name
SUFFIXES = (".csv", ".tsv", ".parquet")
MAX_BYTES = 512 * MIB
_MAX_FIELD = 100_000  # characters
_LOOKED_AT = 100  # rows of a table beside class folders, to see whether it is of their images

_BITS = {"0", "1", "0.0", "1.0", "False", "True"}

Cells = dict[str, list[str]]  # column -> its cells


def find_table(path: Path) -> Path | None:
    """The table at a path: itself, or the one in a folder; else None.

    A folder of class folders is none, unless the table has files and labels, and names its images.
    """
    if path.is_file():
        return path if path.suffix.lower() in SUFFIXES else None
    tables = _candidates(path)
    best = _best(tables)
    if best is not None and has_class_folders(path):
        return best if _fits(best) and _names_images(best) else None
    return best


def _best(tables: Sequence[Path]) -> Path | None:
    """The first table with files and labels, else the first: reading it says what is wrong."""
    return next((table for table in tables if _fits(table)), next(iter(tables), None))


def _candidates(folder: Path) -> list[Path]:
    """labels.* and metadata.* in a folder, or its only .csv or .tsv file."""
    if not folder.is_dir():
        return []
    named = [folder / f"{stem}{end}" for stem in ("labels", "metadata") for end in SUFFIXES]
    tables = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES[:2] and p.name[0] != "."]
    return [p for p in named if p.is_file()] or (tables if len(tables) == 1 else [])


def _fits(table: Path) -> bool:
    try:
        names = list(_cells(table, most=1))
        return bool(column("file", names, FILE, {}, "") and column("label", names, LABEL, {}, ""))
    except UserError:
        return False


def _names_images(table: Path) -> bool:
    """Whether any of the first files in a table that fits is an image of its folder."""
    try:
        cells = _cells(table, most=_LOOKED_AT)
    except UserError:
        return True  # reading it says what is wrong
    file, index = column("file", list(cells), FILE, {}, ""), ImageIndex(table.parent)
    return file is not None and any(isinstance(index.find(name), Path) for name in cells[file])


def load_table(options: LoadOptions) -> Dataset:
    """The images that the table at `options.path` names, each resized to `options.size`.

    UserError for a table that is damaged, or lacks a column. A file that is not there, or lies
    outside of the table's folder, is left out, named and counted as an unreadable image is.
    """
    path = options.path
    if path is None:
        raise UserError(f"a table needs its path, as table:PATH; give {LAYOUT}")
    table = path if path.is_file() else _best(_candidates(path))
    if table is None:
        raise UserError(f"{path} has no table; give {LAYOUT}")
    index = ImageIndex(table.parent)
    paths = sorted({path for paths in index.known.values() for path in paths})
    settings = [options.size, options.channels, options.strict, sorted(options.settings.items())]
    told = []
    if path.is_dir() and has_class_folders(path):
        told = [f"its folders are not taken as classes: folder:{printable(path)} reads them"]
    decode = partial(_read, table, index, options, told)
    return cached(
        "table", table.parent, [table, *paths], settings, options.cache, decode, options.whites
    )


def _read(table: Path, index: ImageIndex, options: LoadOptions, told: Sequence[str]) -> Dataset:
    with named(table):
        names, values, splits = _columns(table, options)
        labels, classes = numbered(values, None)
        unique = _unique(names, labels, classes)
    rows = [Row(names[i], splits[i], labels[i]) for i in unique]
    items = [index.find(names[i]) for i in unique]
    listing = Listing(rows, classes, lambda: items, table.parent)
    notes = [*told, *_notes(table, len(names) - len(unique), index.count_others(items))]
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
    if file is None and any(is_image_name(name) for name in names):
        row = printable(", ".join(names))[:80]
        raise UserError(f"its first line is a row ({row}): put column names above it, file,label")
    if file is None:
        raise no_column("file", names, FILE, "table")
    label = column("label", [n for n in names if n != file], LABEL, given, "table")
    one_hot = [name for name in names if name != file and {*cells[name]} <= _BITS]
    if label is None and len(one_hot) > 1:
        shown = printable(", ".join(one_hot))[:80]
        raise UserError(f"columns of 0 and 1 ({shown}): give one column, label, with the class")
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


def _cells(table: Path, most: int | None = None) -> Cells:
    """Every cell as text, without blanks around it, of `most` rows at least.

    UserError, naming the table, where it is damaged.
    """
    try:
        if table.suffix.lower() == ".parquet":
            found = read_parquet(table, MAX_BYTES)
            columns = {name: column_values(found[name]) for name in found.column_names}
            return {
                name: ["" if v is None else str(v).strip() for v in values]
                for name, values in columns.items()
                if not any(isinstance(value, bytes | dict | list) for value in values[:1])
            }
        with open_data(table, MAX_BYTES) as raw:
            is_utf16 = raw.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            text = io.TextIOWrapper(raw, "utf-16" if is_utf16 else "utf-8-sig", newline="")
            return _parsed(text, table, most)
    except UserError:
        raise
    except UnicodeDecodeError:
        raise UserError(f"{table} is no UTF-8 text: save it as UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{table}: {error}: is a quote not closed?") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{table} cannot be read: {first_line(error)}") from None


def _parsed(text: io.TextIOWrapper, table: Path, most: int | None) -> Cells:
    """The cells of delimited text, of `most` rows: tabs in .tsv, else commas or semicolons."""
    first = text.readline(_MAX_FIELD)
    text.seek(0)
    between = "\t" if table.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    csv.field_size_limit(_MAX_FIELD)
    reader = csv.reader(text, delimiter=between, strict=True)
    names = [name.strip() for name in next(reader, [])]
    if not any(names):
        raise ValueError("it has no head: give a line of column names, then a row per image")
    if len(set(names)) < len(names):
        raise ValueError("two columns have the same name")
    cells: Cells = {name: [] for name in names}
    for row in filter(None, reader):
        if len(row) != len(names):
            raise ValueError(f"line {reader.line_num} has {len(row)} cells, not {len(names)}")
        for name, cell in zip(names, row, strict=True):
            cells[name].append(cell.strip())
        if most and len(cells[names[0]]) >= most:
            break
    return cells
