"""Small data sets in every layout, written by the formats' own libraries, and what is in them."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from leanres.data.sources import cifar10_1
from leanres.data.split import Dataset, Split

Pixels = NDArray[np.uint8]


def pixels(seed: int, count: int = 20, shape: tuple[int, ...] = (32, 32, 3)) -> Pixels:
    """Random images (count, *shape)."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def labels(count: int = 20, classes: int = 10) -> NDArray[np.int64]:
    return np.arange(count) % classes


def channels_last(split: Split) -> Pixels:
    return split.images.permute(0, 2, 3, 1).numpy()


def png(image: Pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def write_npz(path: Path, names: str = "train_images train_labels test_images test_labels") -> Path:
    arrays = [pixels(0), labels()[:, None], pixels(1, 10), labels(10)[:, None]]
    np.savez(path, **dict(zip(names.split(), arrays, strict=False)))
    return path


def write_idx(folder: Path, end: str = ".gz", only_test: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write = gzip.compress if end else bytes
    parts = {"train": (0, 20), "t10k": (1, 10)}
    for name, (seed, count) in list(parts.items())[int(only_test) :]:
        images = pixels(seed, count, (28, 28))
        head = struct.pack(">4I", 0x803, *images.shape)
        (folder / f"{name}-images-idx3-ubyte{end}").write_bytes(write(head + images.tobytes()))
        numbers = labels(count).astype(np.uint8)
        head = struct.pack(">2I", 0x801, count)
        (folder / f"{name}-labels-idx1-ubyte{end}").write_bytes(write(head + numbers.tobytes()))
    return folder


def write_svhn(folder: Path) -> Path:
    folder.mkdir()
    for name, seed, count in (("train", 0, 20), ("test", 1, 10)):
        y = labels(count)
        y[y == 0] = 10
        arrays = {"X": pixels(seed, count).transpose(1, 2, 3, 0), "y": y[:, None].astype(np.uint8)}
        savemat(folder / f"{name}_32x32.mat", arrays, do_compression=True)
    return folder


def write_stl10(folder: Path) -> Path:
    folder.mkdir()
    for name, seed, count in (("train", 0, 20), ("test", 1, 10)):
        by_columns = pixels(seed, count, (96, 96, 3)).transpose(0, 3, 2, 1)
        (folder / f"{name}_X.bin").write_bytes(by_columns.tobytes())
        (folder / f"{name}_y.bin").write_bytes((labels(count) + 1).astype(np.uint8).tobytes())
    return folder


def write_cifar100(folder: Path, kind: str = "binary") -> Path:
    folder.mkdir()
    names = {"fine": [f"fine{i}" for i in range(100)], "coarse": [f"coarse{i}" for i in range(20)]}
    for name, seed, count in (("train", 0, 20), ("test", 1, 10)):
        rows = pixels(seed, count).transpose(0, 3, 1, 2).reshape(count, -1)
        fine, coarse = labels(count) + 90, labels(count) % 5 + 15
        if kind == "binary":
            records = np.column_stack([coarse, fine, rows]).astype(np.uint8)
            (folder / f"{name}.bin").write_bytes(records.tobytes())
        else:
            numbers = {"fine_labels": fine.tolist(), "coarse_labels": coarse.tolist()}
            about = {"data": rows, "filenames": ["x"] * count, **numbers}
            (folder / name).write_bytes(pickle.dumps(about, 2))
    for which, listed in names.items():
        (folder / f"{which}_label_names.txt").write_text("\n".join(listed))
    if kind == "python":
        about = {f"{which}_label_names": listed for which, listed in names.items()}
        (folder / "meta").write_bytes(pickle.dumps(about, 2))
    return folder


def write_cifar10_1(folder: Path) -> Path:
    folder.mkdir()
    np.save(folder / cifar10_1.FILES[0], pixels(1, 20))
    np.save(folder / cifar10_1.FILES[1], labels().astype(np.int32))
    return folder


def write_shard(
    path: Path, images: Pixels, columns: dict[str, list[object]], **names: list[str]
) -> Path:
    """A parquet file as the Hub has it; `names` are the classes of a column of numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    struct_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array([{"bytes": png(image), "path": None} for image in images], struct_type)
    features = {key: {"names": listed, "_type": "ClassLabel"} for key, listed in names.items()}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"image": column, **{key: pa.array(v) for key, v in columns.items()}})
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=7)
    return path


def write_parquet(folder: Path) -> Path:
    for name, seed, count in (("train", 0, 20), ("test", 1, 10)):
        path = folder / "data" / f"{name}-00000-of-00001.parquet"
        names = [f"class{i}" for i in range(10)]
        write_shard(path, pixels(seed, count), {"label": labels(count).tolist()}, label=names)
    return folder


def write_table(folder: Path, text: str | None = None, name: str = "labels.csv") -> Path:
    """Twenty images in images/, and a table of them."""
    (folder / "images").mkdir(parents=True)
    lines = ["file,label,split"]
    for i, image in enumerate(pixels(0)):
        (folder / "images" / f"{i}.png").write_bytes(png(image))
        lines.append(f"images/{i}.png,{'cat' if i % 2 else 'dog'},{'test' if i < 6 else 'train'}")
    (folder / name).write_text(text if text is not None else "\n".join(lines))
    return folder


def archive(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, folder.name)
    return path


WRITERS = {
    "npz": lambda folder: write_npz(folder.with_suffix(".npz")),
    "idx": write_idx,
    "mnist": write_idx,
    "fashion-mnist": write_idx,
    "svhn": write_svhn,
    "stl10": write_stl10,
    "cifar10.1": write_cifar10_1,
    "cifar100": write_cifar100,
    "cifar100-coarse": write_cifar100,
    "parquet": write_parquet,
    "table": write_table,
}  # source -> writes it at a path; -> where it lies


def check(data: Dataset, train: np.ndarray | None, test: np.ndarray, classes: tuple[str, ...]):
    """The splits are these images (N, H, W[, C]), grey as RGB, in order, labelled 0, 1, ... 9."""
    for split, images in ((data.train, train), (data.test, test)):
        if images is None:
            assert len(split) == 0
            continue
        rgb = images if images.ndim == 4 else images[..., None].repeat(3, 3)
        np.testing.assert_array_equal(channels_last(split), rgb)
        assert split.labels.tolist() == labels(len(images)).tolist()
        assert split.classes == classes
