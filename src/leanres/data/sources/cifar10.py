"""CIFAR-10 from disk or network: python and binary batches, their archives, parquet shards.

Formats: https://www.cs.toronto.edu/~kriz/cifar.html (batches and archives) and the parquet layout
of the Hub's `uoft-cs/cifar10`. Pickled batches are read by a restricted reader: see `_BatchReader`.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import pickle
import queue
import re
import tarfile
import tempfile
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow.parquet
import torch
from numpy.typing import NDArray
from PIL import Image

from leanres.data.split import Split
from leanres.errors import UserError, first_line

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
ARCHIVES = ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz")
_ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")
CLASSES = ("airplane", "automobile", *_ANIMALS, "ship", "truck")
PYTHON_FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
BINARY_FILES = tuple(f"{name}.bin" for name in PYTHON_FILES)
SUBFOLDERS = ("", "cifar-10-batches-py", "cifar-10-batches-bin", "plain_text", "data", "cifar10")
_SHARD = re.compile(r"(train|test)-(\d{5})-of-(\d{5})\.parquet")
_ROWS, _PIXELS = 10_000, 3072  # of one official batch

Pixels = NDArray[np.uint8]  # (N, 3, 32, 32)
Labels = NDArray[np.int64]  # (N,)
Part = tuple[Pixels, Labels]
Progress = Callable[[str, int, int], None] | None  # what, done, total


@dataclass(frozen=True)
class Form:
    """One on-disk form that was recognised: its kind, folder and the files to read."""

    kind: str  # python, binary, archive, parquet
    root: Path
    files: tuple[Path, ...]


def find(path: Path) -> Form | None:
    """The form of CIFAR-10 at `path` (a folder, one obvious subfolder, or an archive), or None."""
    if path.is_file() and path.name.endswith((".tar.gz", ".tgz")):
        return Form("archive", path.parent, (path,))
    folders = [path / name for name in SUBFOLDERS if (path / name).is_dir()]
    return next((form for folder in folders if (form := _form(folder))), None)


def _form(folder: Path) -> Form | None:
    """The form whose files lie directly in `folder`: one present file is enough to know it."""
    for kind, names in (("python", PYTHON_FILES), ("binary", BINARY_FILES)):
        if any((folder / name).is_file() for name in names):
            meta = folder / ("batches.meta" if kind == "python" else "batches.meta.txt")
            files = [folder / name for name in names] + [meta] * meta.is_file()
            return Form(kind, folder, tuple(files))
    shards = tuple(sorted(p for p in folder.glob("*.parquet") if _SHARD.fullmatch(p.name)))
    if shards:
        return Form("parquet", folder, shards)
    archives = [folder / name for name in ARCHIVES if (folder / name).is_file()]
    return Form("archive", folder, tuple(archives[:1])) if archives else None


def read(form: Form, progress: Progress = None) -> tuple[Split, Split]:
    """Decode every file of `form`. -> (train, test), (N, 3, 32, 32) each, as the files order them.

    UserError naming the file and the reason for one that is missing, truncated or corrupt.
    """
    if form.kind == "parquet":
        return _read_parquet(form, progress)
    where = form.files[0] if form.kind == "archive" else form.root
    members = _archive_members(where) if form.kind == "archive" else _folder_members(form)
    python = not members.keys() & set(BINARY_FILES)
    parse = python_batch if python else binary_batch
    parts: list[Part] = []
    for name in PYTHON_FILES if python else BINARY_FILES:
        if name not in members:
            raise UserError(f"{where / name} is missing; put it there or fetch the archive again")
        parts.append(parse(members[name], str(where / name)))
        if progress:
            progress("reading CIFAR-10", len(parts), 6)
    classes = _class_names(members, where)
    return _split(parts[:5], classes), _split(parts[5:], classes)


def _split(parts: list[Part], classes: tuple[str, ...]) -> Split:
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Split(torch.from_numpy(images), torch.from_numpy(labels), classes)


def _folder_members(form: Form) -> dict[str, bytes]:
    try:
        return {path.name: path.read_bytes() for path in form.files if path.exists()}
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None


def _archive_members(archive: Path) -> dict[str, bytes]:
    """The batch files in a .tar.gz by base name, each read in memory: nothing is extracted."""
    wanted = {*PYTHON_FILES, *BINARY_FILES, "batches.meta", "batches.meta.txt"}
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                name = member.name.rsplit("/", 1)[-1]
                # A batch has 31 MB; a member that claims far more is not one.
                if member.isreg() and name in wanted and member.size < 64_000_000:
                    stream = tar.extractfile(member)
                    members[name] = stream.read() if stream else b""
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise UserError(f"{archive} is truncated or corrupt: {first_line(error)}") from None
    return members


def _class_names(members: dict[str, bytes], where: Path) -> tuple[str, ...]:
    """Names from the meta file; the usual ten where there is none (it is often left behind)."""
    names: list[str] = list(CLASSES)
    if "batches.meta.txt" in members:
        names = members["batches.meta.txt"].decode("utf-8", "replace").split()
    elif "batches.meta" in members:
        listed = _fields(members["batches.meta"], f"{where / 'batches.meta'}").get("label_names")
        names = [_text(item) for item in listed] if isinstance(listed, list) else []
    if len(names) != 10:
        raise UserError(
            f"{where}: its meta file names {len(names)} classes, not 10: fetch it again"
        )
    return tuple(names)


def _text(value: bytes | str) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


class _Array:
    """Stand-in for numpy's array in a pickle: keeps the state, checks it, runs none of numpy."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def matrix(self) -> NDArray[np.uint8]:
        """(rows, columns) uint8, row-major; ValueError for anything else."""
        _, shape, dtype, fortran, raw = self.state
        if not isinstance(dtype, _Dtype) or dtype.code != "u1" or fortran:
            raise ValueError("its array is not uint8 in row-major order")
        return np.frombuffer(raw, np.uint8).reshape(shape)


class _Dtype:
    """Stand-in for numpy.dtype: keeps the type code. (numpy warns at the 2009 files' flags.)"""

    def __init__(self, code: bytes | str = "", *_: object) -> None:
        self.code = _text(code)

    def __setstate__(self, state: object) -> None:
        """Byte order and field layout mean nothing for one byte."""


class _Bytes(bytes):
    """Stand-in for `_codecs.encode(text, "latin1")`: how Python 3 writes bytes at protocol 2."""

    def __new__(cls, text: str, encoding: str = "latin1") -> _Bytes:
        return super().__new__(cls, text.encode("latin1"))

    def __setstate__(self, state: object) -> None:
        """Nothing to set: it keeps a pickle from writing attributes."""


_ALLOWED: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Bytes,
}


class _BatchReader(pickle.Unpickler):
    """Builds dicts, lists, strings, numbers and byte arrays; any other global is refused.

    The globals that an official file names are not imported either: inert stand-ins take their
    place, so nothing that a file says is executed.
    """

    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in _ALLOWED:
            raise UserError(f"asks for {module}.{name}, which no CIFAR-10 batch needs: refused")
        return _ALLOWED[module, name]


def _fields(data: bytes, name: str) -> dict[str, Any]:
    """The dict pickled in a batch or meta file, keys as str whichever Python wrote it."""
    try:
        found = _BatchReader(io.BytesIO(data), encoding="bytes").load()
    except UserError as error:
        raise UserError(f"{name} {error}; use the official file") from None
    except Exception as error:  # a damaged pickle fails with almost any exception
        raise UserError(f"{name} is truncated or corrupt: {first_line(error)}") from None
    if not isinstance(found, dict):
        raise UserError(f"{name} holds a {type(found).__name__}, not the dict of a CIFAR-10 batch")
    return {_text(key): value for key, value in found.items()}


def python_batch(data: bytes, name: str) -> Part:
    """Parse one pickled batch. -> images (10000, 3, 32, 32), labels (10000,).

    UserError naming the file for a foreign global, a wrong shape, type or label.
    """
    fields = _fields(data, name)
    array, labels = fields.get("data"), fields.get("labels")
    if not isinstance(array, _Array) or not isinstance(labels, list):
        raise UserError(f"{name} lacks 'data' or 'labels': it is no CIFAR-10 batch")
    try:
        pixels, numbers = array.matrix(), np.array(labels, dtype=np.int64)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{name} is corrupt: {first_line(error)}") from None
    if pixels.shape != (_ROWS, _PIXELS):
        raise UserError(f"{name} holds an array of {pixels.shape}, not ({_ROWS}, {_PIXELS})")
    return pixels.reshape(-1, 3, 32, 32), _checked(numbers, len(pixels), name)


def binary_batch(data: bytes, name: str) -> Part:
    """Parse one binary batch of 3,073-byte records. -> images (10000, 3, 32, 32), labels (10000,).

    UserError naming the file for a wrong size or label.
    """
    expected = _ROWS * (_PIXELS + 1)
    if len(data) != expected:
        raise UserError(f"{name} has {len(data):,} bytes, not {expected:,}: fetch it again")
    records = np.frombuffer(data, np.uint8).reshape(_ROWS, _PIXELS + 1)
    pixels = np.ascontiguousarray(records[:, 1:]).reshape(-1, 3, 32, 32)
    return pixels, _checked(records[:, 0].astype(np.int64), _ROWS, name)


def _checked(labels: Labels, count: int, name: str) -> Labels:
    if labels.shape != (count,):
        raise UserError(f"{name} has {count} images but labels of shape {labels.shape}")
    if outside := [label for label in labels.tolist() if not 0 <= label <= 9]:
        raise UserError(f"{name} is corrupt: it has label {outside[0]}, where 0 to 9 fit")
    return labels


def _read_parquet(form: Form, progress: Progress) -> tuple[Split, Split]:
    """All shards of both splits; a gap in the numbering is a missing file."""
    _check_shards(form)
    parts: dict[str, list[Part]] = {"train": [], "test": []}
    for done, path in enumerate(form.files, 1):
        parts[path.name.split("-")[0]].append(_read_shard(path))
        if progress:
            progress("decoding CIFAR-10", done, len(form.files))
    classes = _schema_classes(form.files[0])
    return _split(parts["train"], classes), _split(parts["test"], classes)


def _check_shards(form: Form) -> None:
    present = {path.name for path in form.files}
    for split in ("train", "test"):
        total = next((name[-13:-8] for name in present if name.startswith(split)), "00001")
        for i in range(int(total)):
            if (name := f"{split}-{i:05d}-of-{total}.parquet") not in present:
                raise UserError(f"{form.root / name} is missing; put the file there")


def _read_shard(path: Path) -> Part:
    try:
        table = pyarrow.parquet.read_table(path, columns=["img", "label"])
        blobs = table["img"].combine_chunks().field("bytes").to_pylist()
        labels = table["label"].to_numpy().astype(np.int64)
    except (pyarrow.ArrowException, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is truncated or corrupt: {first_line(error)}") from None
    pixels = np.empty((len(blobs), 32, 32, 3), np.uint8)
    for row, blob in enumerate(blobs):
        pixels[row] = _png(blob, path, row)
    images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    return images, _checked(labels, len(blobs), str(path))


def _png(blob: bytes, path: Path, row: int) -> NDArray[np.uint8]:
    """(32, 32, 3) uint8. Two threads decode no faster than one: the work per image is small."""
    try:
        with Image.open(io.BytesIO(blob), formats=("PNG",)) as image:
            if image.size != (32, 32):
                raise ValueError(f"{image.size[0]}x{image.size[1]} pixels, not 32x32")
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except Exception as error:  # Pillow raises almost anything on damaged bytes
        raise UserError(f"{path} is corrupt: image in row {row}: {first_line(error)}") from None


def _schema_classes(path: Path) -> tuple[str, ...]:
    """Class names from the `huggingface` entry of the schema; the usual ten where there is none."""
    metadata = pyarrow.parquet.read_schema(path).metadata or {}
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        names = tuple(str(name) for name in features["label"]["names"])
    except (KeyError, TypeError, ValueError):
        return CLASSES
    return names if len(names) == 10 else CLASSES


def download(
    target: Path,
    url: str = URL,
    sha256: str = SHA256,
    limit_s: float = 10,
    progress: Progress = None,
) -> Path:
    """Fetch `url` to `target`, whole and verified or not at all. -> target.

    UserError when no first byte came within `limit_s` seconds in all (name look-up included), when
    the stream then stalls that long or breaks off, when the digest differs, or at a full disk.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(".part", target.name, target.parent) as folder:
            part = Path(folder) / target.name
            with part.open("wb") as file:
                found = _save(file, url, limit_s, progress)
            if found != sha256:
                raise UserError(f"{url} gave a file with sha256 {found}, not {sha256}; try later")
            os.replace(part, target)
    except OSError as error:
        raise UserError(f"cannot store {target}: {first_line(error)}") from None
    return target


def _save(file: BinaryIO, url: str, limit_s: float, progress: Progress) -> str:
    """Write what `url` gives to `file`. -> its sha256."""
    response, chunk = _first(url, limit_s)
    digest, done = hashlib.sha256(), 0
    total = int(response.headers.get("Content-Length") or 0)
    with response:
        while chunk:
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            if progress:
                progress("downloading CIFAR-10", done, total)
            try:
                chunk = response.read1(1 << 18)
            except (OSError, http.client.HTTPException):
                total, chunk = max(total, done + 1), b""  # a stall counts as the end
    if done < total:
        raise UserError(f"{url} broke off after {done:,} of {total:,} bytes; try again")
    return digest.hexdigest()


def _first(url: str, limit_s: float) -> tuple[http.client.HTTPResponse, bytes]:
    """The open response and its first bytes, or UserError after `limit_s` at the latest.

    A socket's time-out does not bound the name look-up, nor several addresses in a row; so a
    daemon thread connects, and this one stops waiting for it.
    """
    answers: queue.Queue[tuple[http.client.HTTPResponse, bytes] | Exception] = queue.Queue()

    def connect() -> None:
        try:
            response = urllib.request.urlopen(url, timeout=limit_s)
            answers.put((response, response.read1(1 << 14)))
        except Exception as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it is an open response as well
            answers.put(error)

    threading.Thread(target=connect, daemon=True).start()
    try:
        answer = answers.get(timeout=limit_s)
    except queue.Empty:
        answer = TimeoutError(f"no answer within {limit_s:g} s")
    if isinstance(answer, Exception):
        raise UserError(f"cannot download {url}: {first_line(answer)}") from None
    return answer
