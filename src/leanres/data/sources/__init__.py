"""Where images come from: CIFAR-10, the embedded digits or a user's folder, decoded once."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from leanres.data.sources import cifar10, folder
from leanres.data.sources.cifar10 import Progress as Progress
from leanres.data.split import Dataset, Split, stratified_split
from leanres.errors import NotFoundError, UserError, first_line
from leanres.io import cache_folder
from leanres.registry import Table

DIGITS_TEST = 360  # of 1,797
_FORMAT = 1  # of the cache files: raise it when decoding changes, and old files are rebuilt
_COMPLETE = (50_000, 10_000)  # images of CIFAR-10
_DAMAGE = (OSError, ValueError, KeyError, TypeError, SafetensorError)
_SPLITS = ("train", "val", "test")
_WAYS_OUT = (
    "give a path, or set LEANRES_DATA to a folder, with CIFAR-10 (python or binary batches, "
    "their .tar.gz, or parquet), or use the embedded digits (--data digits)"
)


@dataclass(frozen=True)
class Request:
    """What `load_data` was asked for, as the sources receive it."""

    path: Path | None
    cache: Path
    size: int = 32
    strict: bool = False
    download: bool = True
    progress: Progress = None


def load_data(
    name: str = "cifar10",
    path: str | Path | None = None,
    *,
    size: int = 32,
    strict: bool = False,
    download: bool = True,
    cache: Path | None = None,
    progress: Progress = None,
) -> Dataset:
    """The data set `name` ("cifar10", "digits", "folder", or the path of a folder), in memory.

    CIFAR-10 is looked for at `path`, `$LEANRES_DATA`, in the cache, and then downloaded; nothing
    is ever substituted. `size` is the side in pixels of digits and of a folder's images; `strict`
    makes an unreadable image an error; `progress` hears (what, done, total). UserError for what
    is missing, damaged or not understood.
    """
    if (
        name not in SOURCES
        and path is None
        and (os.sep in name or Path(name).expanduser().exists())
    ):
        name, path = "folder", name
    source = SOURCES[name]
    if not 4 <= size <= 1024:
        raise UserError(f"images of {size} pixels; give a size from 4 to 1024")
    where = Path(path).expanduser() if path is not None else None
    return source(Request(where, cache or cache_folder(), size, strict, download, progress))


def locate(name: str, path: str | Path | None = None, size: int = 32) -> dict[str, Any]:
    """What run.json keeps of the data's whereabouts, so that any working folder will do."""
    if name not in SOURCES and path is None:
        name, path = "folder", name
    where = None if path is None else str(Path(path).expanduser().resolve())
    return {"data": name, "path": where, "size": size}


def _load_digits(request: Request) -> Dataset:
    """scikit-learn's 1,797 digits of 8x8, enlarged bilinearly to `size`; 360 of them are test."""
    from sklearn.datasets import load_digits

    if request.path is not None:
        raise UserError(f"digits are embedded and need no path, got {request.path}; leave it out")
    bunch = load_digits()
    levels = torch.from_numpy(bunch.images.astype(np.uint8))[:, None].repeat(1, 3, 1, 1)
    classes = tuple(str(name) for name in bunch.target_names)
    small = Split(levels, torch.from_numpy(bunch.target.astype(np.int64)), classes)
    # Split before enlarging: rounding may differ between machines, the choice may not.
    train, test = (_enlarged(part, request.size) for part in stratified_split(small, DIGITS_TEST))
    notes = (f"8x8 digits enlarged bilinearly to {request.size}x{request.size}, grey as RGB",)
    return Dataset("digits", train, None, test, notes, "scikit-learn's digits, embedded")


def _enlarged(split: Split, size: int) -> Split:
    """Levels 0..16 of (N, 3, 8, 8) -> pixels 0..255 of (N, 3, size, size)."""
    large = F.interpolate(split.images.double(), size=(size, size), mode="bilinear")
    pixels = (large * (255 / 16)).round().to(torch.uint8)
    return Split(pixels.contiguous(), split.labels, split.classes)


def _load_folder(request: Request) -> Dataset:
    if request.path is None:
        raise UserError("a folder of images needs its path; give it, one folder per class inside")
    tree = folder.scan(request.path)
    options = [request.size, request.strict, sorted(tree.skipped.items())]
    return _cached(
        _Key("folder", request.path, tuple(tree.paths()), options),
        request.cache,
        lambda: folder.read(tree, request.size, strict=request.strict),
    )


def _load_cifar10(request: Request) -> Dataset:
    """Given path -> $LEANRES_DATA -> cache -> download."""
    if request.size != 32:
        raise UserError(f"CIFAR-10 has 32x32 pixels, not {request.size}; leave the size out")
    if request.path is not None:
        return _read_cifar10(_found(request.path, "the given path"), request)
    set_by_user = os.environ.get("LEANRES_DATA")
    if set_by_user and (path := Path(set_by_user).expanduser()).exists():
        return _read_cifar10(_found(path, "$LEANRES_DATA"), request)
    unused = f"$LEANRES_DATA ({set_by_user} does not exist)" if set_by_user else "$LEANRES_DATA"
    dataset = _cached_cifar10(request) or _download_cifar10(request, unused)
    return replace(dataset, notes=(*dataset.notes, *([f"{unused}: not used"] * bool(set_by_user))))


def _found(path: Path, what: str) -> cifar10.Form:
    if not path.exists():
        raise UserError(f"{what} {path} does not exist; {_WAYS_OUT}")
    if form := cifar10.find(path):
        return form
    looked = "data_batch_1, data_batch_1.bin, train-*.parquet or cifar-10-python.tar.gz"
    raise UserError(f"{what} {path} holds no CIFAR-10 (looked for {looked}); {_WAYS_OUT}")


def _read_cifar10(form: cifar10.Form, request: Request) -> Dataset:
    def decode() -> Dataset:
        train, test = cifar10.read(form, request.progress)
        usual = (len(train), len(test)) == _COMPLETE
        note = f"{len(train):,} train and {len(test):,} test images, not 50,000 and 10,000"
        where = f"{form.root} ({form.kind})"
        return Dataset("cifar10", train, None, test, () if usual else (note,), where)

    return _cached(_Key("cifar10", form.root, form.files, [form.kind]), request.cache, decode)


def _download_cifar10(request: Request, unused: str) -> Dataset:
    tried = f"CIFAR-10 not found: tried {unused} and the cache {request.cache}"
    if not request.download:
        raise NotFoundError(f"{tried}; {_WAYS_OUT}")
    target = request.cache / cifar10.ARCHIVES[0]
    try:
        cifar10.download(target, progress=request.progress)
    except UserError as error:
        raise NotFoundError(f"{tried}; {error}; {_WAYS_OUT}") from None
    return _read_cifar10(_found(target, "the downloaded archive"), request)


# One data set a cache file: uint8 images and labels of each split, and a JSON text about them with
# the CRC-32 of each tensor. CRC-32 finds every single flipped bit and any truncation, and takes
# 0.1 s for the 184 MB of CIFAR-10, where sha256 takes 0.5 s: it guards against a failing disk.


@dataclass(frozen=True)
class _Key:
    """What the decoded images depend on: the source's files and the options of decoding."""

    kind: str
    root: Path
    files: tuple[Path, ...]
    options: list[Any]

    def digest(self) -> str:
        """Of the format, the options, and each file's name, size and time of change."""
        stats = [(str(path.relative_to(self.root)), *_size_and_time(path)) for path in self.files]
        text = json.dumps([_FORMAT, self.kind, self.options, stats])
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def file(self, cache: Path) -> Path:
        return cache / f"{self.prefix()}{self.digest()}.safetensors"

    def prefix(self) -> str:
        """Start of the names of all cache files of this folder, current or outdated."""
        root = os.fsencode(self.root.resolve())
        return f"{self.kind}-{hashlib.sha256(root).hexdigest()[:8]}-"


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return (-1, -1)  # missing: the reader will say so
    return (stat.st_size, stat.st_mtime_ns)


def _cached(key: _Key, cache: Path, decode: Callable[[], Dataset]) -> Dataset:
    """The data set from its cache file, or decoded and then cached; notes say what went wrong."""
    file, notes = key.file(cache), []
    try:
        return _read_cache(file)
    except FileNotFoundError:
        pass
    except _DAMAGE as error:
        notes.append(f"the cache file {file} was damaged ({first_line(error)}) and is rebuilt")
    dataset = decode()
    try:
        _write_cache(file, dataset)
        _drop_outdated(key.prefix(), file)
    except (OSError, SafetensorError) as error:
        notes.append(f"the decoded images could not be cached in {cache} ({first_line(error)})")
    return replace(dataset, notes=(*dataset.notes, *notes))


def _read_cache(file: Path) -> Dataset:
    """The data set in `file`. FileNotFoundError, or anything else where it is damaged."""
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() or {}
    about = json.loads(metadata["about"])
    if _crc(metadata["about"].encode()) != int(metadata["crc"]):
        raise ValueError("its header has a wrong checksum")
    tensors = load_file(file)
    if {name: _crc(tensor.numpy()) for name, tensor in tensors.items()} != about["crcs"]:
        raise ValueError("its tensors have wrong checksums")
    classes = tuple(about["classes"])
    splits = {name: _from_tensors(tensors, name, classes) for name in _SPLITS}
    train, val, test = (splits[name] for name in _SPLITS)
    if train is None:
        raise ValueError("it has no train split")
    return Dataset(about["name"], train, val, test, tuple(about["notes"]), about["source"])


def _from_tensors(tensors: dict[str, Tensor], name: str, classes: tuple[str, ...]) -> Split | None:
    if f"{name}.images" not in tensors:
        return None
    return Split(tensors[f"{name}.images"], tensors[f"{name}.labels"], classes)


def _write_cache(file: Path, dataset: Dataset) -> None:
    """Whole or not at all: written beside `file`, then renamed."""
    splits = {name: getattr(dataset, name) for name in _SPLITS if getattr(dataset, name)}
    tensors = {f"{name}.images": split.images for name, split in splits.items()}
    tensors |= {f"{name}.labels": split.labels for name, split in splits.items()}
    crcs = {name: _crc(tensor.numpy()) for name, tensor in tensors.items()}
    fields = {"name": dataset.name, "source": dataset.source, "notes": dataset.notes}
    about = json.dumps({**fields, "classes": dataset.train.classes, "crcs": crcs})
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(".part", file.name + ".", file.parent)
    os.close(handle)
    try:
        save_file(tensors, part, {"about": about, "crc": str(_crc(about.encode()))})
        os.replace(part, file)
    finally:
        Path(part).unlink(missing_ok=True)


def _drop_outdated(prefix: str, current: Path) -> None:
    """Remove what the same folder was decoded to before its files changed."""
    for file in current.parent.glob(f"{prefix}*.safetensors"):
        if file != current:
            file.unlink(missing_ok=True)


def _cached_cifar10(request: Request) -> Dataset | None:
    """A downloaded archive, or the newest intact, complete CIFAR-10 ever decoded here, if any."""
    if form := cifar10.find(request.cache):
        return _read_cifar10(form, request)
    files = request.cache.glob("cifar10-*.safetensors")
    for file in sorted(files, key=lambda file: -_size_and_time(file)[1]):
        try:
            dataset = _read_cache(file)
        except _DAMAGE:
            continue
        if (len(dataset.train), len(dataset.test or ())) == _COMPLETE:
            return replace(dataset, source=f"{file}, decoded from {dataset.source}")
    return None


def _crc(data: Any) -> int:
    return zlib.crc32(data)


SOURCES: Table[Callable[[Request], Dataset]] = Table(
    "data source", {"cifar10": _load_cifar10, "digits": _load_digits, "folder": _load_folder}
)
