"""Images in parquet files, as the Hugging Face Hub has them: a file, or a folder of shards."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from leanres.data.image_files import ImageItem
from leanres.data.sources.cache import cached
from leanres.data.sources.columns import IMAGE, LABEL, SPLIT, column, no_column, numbered, split_of
from leanres.data.sources.decode import Listing, Row, counted, decode_dataset
from leanres.data.sources.source import SPLIT_NAMES, LoadOptions
from leanres.data.sources.table_files import inside
from leanres.data.split import Dataset
from leanres.errors import UserError, first_line, named, printable, undamaged
from leanres.io import MIB, column_values, open_data, parquet_file, parse_json

LAYOUT = "parquet files of images and labels"
SETTINGS = ("image", "label", "split")  # columns that a user may name
MAX_BYTES = 16_384 * MIB  # of a file
MAX_GROUP = 2048 * MIB  # of a row group in memory
_BATCH = 256  # rows that are in memory at a time, fewer where they may be large
BATCH_BYTES = 256 * MIB  # that these may have
_MOST_PACKED = 100  # times its size: images are packed already
_SHARD = re.compile(r"(.*-)(\d{5})-of-(\d{5})\.parquet", re.IGNORECASE)
_ERRORS = (pa.ArrowException, OSError, KeyError, ValueError, TypeError, OverflowError)


@dataclass(frozen=True)
class _Columns:
    """The columns to read, and the names of the classes where the labels are numbers of them."""

    image: str
    label: str
    split: str | None
    classes: tuple[str, ...] | None


def holds_images(path: Path) -> bool:
    """Whether a path is a parquet file of images, or a folder of such files."""
    try:
        first = next(iter(_paths(path)), None)
        return first is not None and bool(_image_columns(schema_of(first)))
    except UserError:
        return True  # reading it says what is wrong


def load_parquet(options: LoadOptions) -> Dataset:
    """The images of the file or folder `options.path`, each resized to `options.size`.

    UserError, naming the file, for one that is damaged or has no column that fits.
    """
    paths = _paths(options.path) if options.path else []
    if not paths or options.path is None:
        raise UserError(f"{options.path or 'parquet'} has no parquet files; give {LAYOUT}")
    _check_shards(paths)
    root = options.path if options.path.is_dir() else options.path.parent
    settings = [options.size, options.channels, options.strict, sorted(options.settings.items())]
    decode = partial(_read, root, paths, options)
    return cached("parquet", root, paths, settings, options.cache, decode, options.whites)


def _paths(path: Path) -> list[Path]:
    """The parquet files at a path: itself, those in it, or those in its subfolders."""
    if path.is_file():
        return [path] if _is_named(path) else []
    if not path.is_dir():
        return []
    inside = [p for p in sorted(path.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    return _parts(path) or [part for folder in inside for part in _parts(folder)]


def _parts(folder: Path) -> list[Path]:
    """The parquet files in a folder; of a folder x.parquet, as Spark and Dask write, its files."""
    found = sorted(filter(_is_named, folder.iterdir()))
    files = (sorted(filter(_is_named, p.rglob("*"))) if p.is_dir() else [p] for p in found)
    return [path for own in files for path in own if path.is_file()]


def _is_named(path: Path) -> bool:
    return path.suffix.lower() == ".parquet" and not path.name.startswith(".")


def _check_shards(paths: list[Path]) -> None:
    """UserError for a gap in the numbering of shards: a file is missing."""
    present = set(paths)
    for path in paths:
        if match := _SHARD.fullmatch(path.name):
            start, _, total = match.groups()
            for i in range(int(total)):
                other = path.with_name(f"{start}{i:05d}-of-{total}.parquet")
                if other not in present:
                    raise UserError(f"{other} is missing; put the file there")


def schema_of(path: Path) -> pa.Schema:
    """The schema of a parquet file. UserError, naming it, where it is damaged."""
    with undamaged(path, _ERRORS), open_data(path, MAX_BYTES) as file:
        return pq.read_schema(file)


def _image_columns(schema: pa.Schema) -> list[str]:
    """Columns of bytes, or of structs that have them."""

    def is_image(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            place = kind.get_field_index("bytes")
            return place >= 0 and is_image(kind.field(place).type)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    return [field.name for field in schema if is_image(field.type)]


def _columns(schema: pa.Schema, options: LoadOptions) -> _Columns:
    images = _image_columns(schema)
    image = column("image", images, IMAGE, options.settings, "parquet")
    image = image or (images[0] if len(images) == 1 else None)
    if image is None:
        raise no_column("image", images or schema.names, IMAGE, "parquet")
    others = [name for name in schema.names if name != image]
    named = named_classes(schema)
    label = column("label", others, LABEL, options.settings, "parquet")
    label = label or (next(iter(named)) if len(named) == 1 else None)
    if label is None:
        raise no_column("label", others, LABEL, "parquet")
    split = column("split", others, SPLIT, options.settings, "parquet")
    return _Columns(image, label, split, named.get(label))


def named_classes(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """Column -> class names, from the `huggingface` entry of the schema."""
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
        listed = {name: about.get("names") for name, about in features.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {
        name: tuple(map(str, names))
        for name, names in listed.items()
        if isinstance(names, list) and names
    }


def _read(root: Path, paths: list[Path], options: LoadOptions) -> Dataset:
    rows: list[tuple[str, str, Any]] = []  # name, split, label as it stands there
    chosen: dict[Path, list[bool]] = {}  # which rows of a file have a label
    skipped: Counter[str] = Counter()
    with named(root):
        columns = _columns(schema_of(paths[0]), options)
        for path in paths:
            own = _rows(root, path, columns)
            chosen[path] = [label not in (None, -1) for _, _, label in own]
            rows += [row for row, keep in zip(own, chosen[path], strict=True) if keep]
            skipped["row{s} without a label"] += chosen[path].count(False)
        labels, classes = numbered([label for *_, label in rows], columns.classes)
    listed = [Row(name, split, n) for (name, split, _), n in zip(rows, labels, strict=True)]
    items = partial(_items, root, chosen, columns.image)
    if outside := [n for n in labels if not 0 <= n < len(classes)]:
        raise UserError(f"{root}: label {outside[0]}, but there are {len(classes)} class names")
    told = f"images from column {columns.image!r}, labels from {columns.label!r}"
    notes = [printable(told), *counted(skipped)]
    images = Listing(listed, classes, items, root)
    return decode_dataset("parquet", images, options, notes, options.path or root)


def _rows(root: Path, path: Path, columns: _Columns) -> list[tuple[str, str, Any]]:
    """Name, split and label of each row of a file, from its small columns alone."""
    wanted = [name for name in (columns.label, columns.split) if name]
    with undamaged(path, _ERRORS):
        with open_data(path, MAX_BYTES) as file, parquet_file(file) as opened:
            _check_size(path, opened)
            types = [opened.schema_arrow.field(name).type for name in wanted]
            is_nested = any(map(pa.types.is_nested, types))
            table = None if is_nested else opened.read(wanted)
        labels = column_values(table[columns.label]) if table else []
        splits = column_values(table[columns.split]) if table and columns.split else []
    if is_nested or any(isinstance(label, bool) for label in labels):
        raise UserError(f"{path}: labels in column {columns.label!r} are neither numbers nor text")
    name = str(path.relative_to(root))
    of_file = _split_of_file(path, root)
    if splits and not of_file:
        found = [split_of(split, f"{name}, row {i}") for i, split in enumerate(splits)]
    else:
        found = [of_file or "all"] * len(labels)
    return [(f"{name} row {i}", s, y) for i, (s, y) in enumerate(zip(found, labels, strict=True))]


def _check_size(path: Path, opened: pq.ParquetFile) -> None:
    """UserError where a file says that it holds more than it can, or than fits into memory."""
    about = opened.metadata
    groups = [about.row_group(i).total_byte_size for i in range(about.num_row_groups)]
    rows = sum(about.row_group(i).num_rows for i in range(about.num_row_groups))
    if max(groups, default=0) > MAX_GROUP:
        raise UserError(f"{path} has a row group of {max(groups):,} bytes: write smaller ones")
    packed = path.stat().st_size
    if max(groups, default=0) > max(BATCH_BYTES, _MOST_PACKED * packed):
        raise UserError(f"{path} unpacks to {max(groups) // packed:,} times its size: give another")
    if rows > packed:
        raise UserError(f"{path} says it has {rows:,} rows, more than it has bytes: give another")


def _split_of_file(path: Path, root: Path) -> str:
    """The split that the name of a file, or of its folder, tells; empty where none does."""
    for name in (path.stem, *(part.name for part in path.relative_to(root).parents)):
        for word in re.split(r"[^a-z]+", name.lower()):
            if word in SPLIT_NAMES:
                return SPLIT_NAMES[word]
    return ""


def _items(root: Path, chosen: dict[Path, list[bool]], image: str) -> Iterator[ImageItem]:
    """The images of the chosen rows, some hundred at a time."""
    for path, keep in chosen.items():
        try:
            with open_data(path, MAX_BYTES) as file, pq.ParquetFile(file) as opened:
                for kept, value in zip(keep, _values(opened, image), strict=True):
                    if kept:
                        yield _item(root, value)
        except _ERRORS as error:
            raise UserError(f"{path} is truncated or corrupt: {first_line(error)}") from None


def _values(opened: pq.ParquetFile, image: str) -> Iterator[Any]:
    """The values of an image column, one by one.

    A value may be as long as its whole row group, and each row may have it: as many rows are read
    at a time as then fit.
    """
    is_struct = pa.types.is_struct(opened.schema_arrow.field(image).type)
    leaves = [f"{image}.bytes", f"{image}.path"] if is_struct else [image]
    for i in range(opened.num_row_groups):
        group = opened.metadata.row_group(i)
        chunks = [group.column(c) for c in range(group.num_columns)]
        size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema in leaves)
        rows = min(_BATCH, max(BATCH_BYTES // max(size, 1), 1))
        for batch in opened.iter_batches(rows, row_groups=[i], columns=leaves):
            yield from (value.as_py() for value in batch.column(0))


def _item(root: Path, value: Any) -> ImageItem:
    """An image: its bytes; or the path of its file, which has to lie in the folder."""
    if isinstance(value, dict):
        content, path = value.get("bytes"), value.get("path")
        value = content if content is not None else inside(root, path) if path else None
    return value if isinstance(value, bytes | Path | str) else "it has neither bytes nor a path"
