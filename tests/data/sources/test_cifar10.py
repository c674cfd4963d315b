"""CIFAR-10's formats against numpy's own pickles and plain loops; damaged and foreign files."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from leanres.data.sources import cifar10_formats as formats
from leanres.data.sources import load_data
from leanres.data.sources.cifar10 import find_files
from leanres.errors import UserError

ROWS = 30  # of a small batch; the official 10,000 where a test says so


def make_part(seed: int, rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    """(pixels (rows, 3072) uint8, labels (rows,))."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (rows, 3072), dtype=np.uint8), rng.integers(0, 10, rows)


def short(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text  # SHORT_BINSTRING: a Python 2 str


def python2_batch(pixels: np.ndarray, labels: np.ndarray) -> bytes:
    """A batch as Python 2.6's cPickle wrote the official files, opcode by opcode."""
    rows = len(pixels)
    memo = iter(range(1, 200))

    def put() -> bytes:
        return b"q" + bytes([next(memo)])

    out = b"\x80\x02}" + put() + b"("
    out += short(b"batch_label") + put() + short(b"training batch 1 of 5") + put()
    out += short(b"labels") + put() + b"]" + put() + b"("
    out += b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    out += short(b"data") + put() + b"cnumpy.core.multiarray\n_reconstruct\n" + put()
    out += b"cnumpy\nndarray\n" + put() + b"K\x00\x85" + short(b"b") + b"\x87R" + put()
    out += b"(K\x01M" + struct.pack("<H", rows) + b"M" + struct.pack("<H", 3072) + b"\x86"
    out += b"cnumpy\ndtype\n" + put() + short(b"u1") + b"K\x00K\x01\x87R" + put()
    out += b"(K\x03" + short(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    out += b"T" + struct.pack("<i", pixels.size) + pixels.tobytes() + put() + b"tb"
    out += short(b"filenames") + put() + b"]" + put() + b"(" + short(b"a_s_000001.png") + b"e"
    return out + b"u."


def python2_meta(names: tuple[str, ...]) -> bytes:
    listed = b"".join(short(name.encode()) for name in names)
    return b"\x80\x02}q\x01(" + short(b"label_names") + b"]q\x02(" + listed + b"eu."


def binary_batch(pixels: np.ndarray, labels: np.ndarray) -> bytes:
    return np.column_stack([labels.astype(np.uint8), pixels]).tobytes()


def png(row: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(row.reshape(3, 32, 32).transpose(1, 2, 0)).save(stream, "PNG")
    return stream.getvalue()


def write_shard(path: Path, blobs: list[bytes], labels: np.ndarray, names=formats.CLASSES) -> None:
    img = pa.array([{"bytes": blob, "path": None} for blob in blobs],
                   pa.struct([("bytes", pa.binary()), ("path", pa.string())]))  # fmt: skip
    features = {"label": {"names": list(names), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"img": img, "label": pa.array(labels, pa.int64())})
    pq.write_table(table.replace_schema_metadata(metadata), path)


def write_parquet(folder: Path, names=formats.CLASSES) -> None:
    for i, name in enumerate(
        ["train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"]
    ):
        pixels, labels = make_part(i)
        write_shard(folder / f"{name}.parquet", [png(row) for row in pixels], labels, names)


def write_batches(folder: Path, kind: str) -> None:
    """Six small batches and their meta file; batch i from `make_part(i)`."""
    write = python2_batch if kind == "python" else binary_batch
    names = formats.PYTHON_FILES if kind == "python" else formats.BINARY_FILES
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        (folder / name).write_bytes(write(*make_part(i)))
    if kind == "python":
        (folder / "batches.meta").write_bytes(python2_meta(formats.CLASSES))
    else:
        (folder / "batches.meta.txt").write_text("\n".join(formats.CLASSES) + "\n\n")


@pytest.fixture
def small(monkeypatch):
    """Batches of 30 images count as complete."""
    monkeypatch.setattr(formats, "_ROWS", ROWS)


def read(folder: Path):
    files = find_files(folder)
    assert files is not None
    return formats.read_cifar10(files)


# --- python batches -------------------------------------------------------------------------


def test_a_python_2_batch_of_the_official_size_is_read_as_numpy_reads_it():
    pixels, labels = make_part(0, 10_000)
    data = python2_batch(pixels, labels)
    images, numbers = formats.parse_python_batch(data, "data_batch_1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns at the integer flags of the old dtype
        oracle = pickle.loads(data, encoding="bytes")
    np.testing.assert_array_equal(images, oracle[b"data"].reshape(-1, 3, 32, 32))
    assert numbers.tolist() == oracle[b"labels"] == labels.tolist()


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("key", ["data", b"data"])
def test_a_batch_rewritten_by_python_3_is_read_too(small, protocol, key):
    pixels, labels = make_part(1)
    label_key = "labels" if isinstance(key, str) else b"labels"
    data = pickle.dumps({key: pixels, label_key: labels.tolist()}, protocol)
    images, numbers = formats.parse_python_batch(data, "again")
    np.testing.assert_array_equal(images.reshape(ROWS, 3072), pixels)
    np.testing.assert_array_equal(numbers, labels)


class Foreign:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(2, 5))
def test_a_pickle_with_a_foreign_global_is_refused_by_name_and_nothing_is_executed(
    small, tmp_path, protocol
):
    marker = tmp_path / "executed"
    pixels, labels = make_part(0)
    evil = {"data": pixels, "labels": labels.tolist(), "x": Foreign(os.mkdir, str(marker))}
    with pytest.raises(UserError, match=r"^batch_x names (posix|nt|os)\.mkdir.*refused"):
        formats.parse_python_batch(pickle.dumps(evil, protocol), "batch_x")
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["builtins\neval", "numpy\nload", "copyreg\n_reconstructor", "numpy.core.multiarray\nx"]
)
def test_no_global_but_the_five_of_an_array_is_allowed(name):
    with pytest.raises(UserError, match=name.replace("\n", ".")):
        formats.parse_python_batch(b"\x80\x02c" + name.encode() + b"\n.", "batch_x")


@pytest.mark.parametrize("name", [b"_codecs\nencode", b"numpy\ndtype"])
def test_a_pickle_cannot_change_the_reader(small, name):
    # BUILD with (None, {...}) sets attributes on whatever was built before: here, on the class.
    poison = b"\x80\x02c" + name + b"\n(N}X\x07\x00\x00\x00__new__K\x01stb."
    with pytest.raises(UserError, match="batch_x"):
        formats.parse_python_batch(poison, "batch_x")
    pixels, labels = make_part(1)
    data = pickle.dumps({"data": pixels, "labels": labels.tolist()}, 2)
    np.testing.assert_array_equal(formats.parse_python_batch(data, "good")[1], labels)


@pytest.mark.parametrize("state", [b"", b"Nb", b"K\x01b", b"(NNNNNtb", b"(N)cnumpy\ndtype\n)RNNtb"])
def test_an_array_without_its_content_is_refused(state):
    array = b"cnumpy\nndarray\n)\x81" + state  # made by __new__, without the call of __init__
    fields = b"X\x04\x00\x00\x00data" + array + b"sX\x06\x00\x00\x00labels]s"
    with pytest.raises(UserError, match=r"^batch_x is (truncated or )?corrupt"):
        formats.parse_python_batch(b"\x80\x02}" + fields + b".", "batch_x")


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.999])
def test_a_truncated_python_batch_is_named(small, share):
    data = python2_batch(*make_part(0))
    with pytest.raises(UserError, match=r"^data_batch_3 is truncated or corrupt"):
        formats.parse_python_batch(data[: int(share * len(data))], "data_batch_3")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data": make_part(0)[0][:9], "labels": [1] * 9}, r"\(9, 3072\), not \(30, 3072\)"),
        ({"data": make_part(0)[0].astype(np.int16), "labels": [1] * ROWS}, "not uint8"),
        ({"data": np.asfortranarray(make_part(0)[0]), "labels": [1] * ROWS}, "row-major"),
        ({"data": make_part(0)[0], "labels": [1] * 9}, "labels of shape"),
        ({"data": make_part(0)[0], "labels": [10] * ROWS}, "label 10"),
        ({"data": make_part(0)[0], "labels": [-1] * ROWS}, "label -1"),
        ({"data": make_part(0)[0], "labels": ["cat"] * ROWS}, "corrupt"),
        ({"labels": [1] * ROWS}, "lacks 'data' or 'labels'"),
        ([1, 2], "holds a list"),
    ],
)
def test_a_batch_with_the_wrong_content_is_refused_with_the_reason(small, fields, words):
    with pytest.raises(UserError, match=words) as caught:
        formats.parse_python_batch(pickle.dumps(fields, 2), "data_batch_2")
    assert str(caught.value).startswith("data_batch_2")
    assert "\n" not in str(caught.value)


# --- binary batches -------------------------------------------------------------------------


def test_a_binary_batch_of_the_official_size_is_read_record_by_record():
    pixels, labels = make_part(3, 10_000)
    data = binary_batch(pixels, labels)
    images, numbers = formats.parse_binary_batch(data, "data_batch_1.bin")
    for i in (0, 1, 4999, 9999):  # a record is one label byte and 3072 of pixels
        record = data[i * 3073 : (i + 1) * 3073]
        assert record[0] == numbers[i]
        assert images[i].tobytes() == record[1:]


def test_a_binary_batch_with_a_wrong_size_or_label_is_named(small):
    data = binary_batch(*make_part(0))
    with pytest.raises(UserError, match=r"^data_batch_1.bin has 92,189 bytes, not 92,190"):
        formats.parse_binary_batch(data[:-1], "data_batch_1.bin")
    with pytest.raises(UserError, match=r"^data_batch_1.bin is corrupt: it has label 99"):
        formats.parse_binary_batch(b"\x63" + data[1:], "data_batch_1.bin")


# --- folders and archives -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["python", "binary"])
@pytest.mark.parametrize("inside", ["", "cifar-10-batches-py", "cifar-10-batches-bin"])
def test_six_batches_in_a_folder_or_its_obvious_subfolder_are_found(small, tmp_path, kind, inside):
    write_batches(tmp_path / inside, kind)
    train, test = read(tmp_path)
    assert (len(train), len(test)) == (5 * ROWS, ROWS)
    third = train.images[2 * ROWS : 3 * ROWS].numpy().reshape(ROWS, 3072)
    np.testing.assert_array_equal(third, make_part(2)[0])
    np.testing.assert_array_equal(test.labels.numpy(), make_part(5)[1])
    assert train.classes == test.classes == formats.CLASSES


@pytest.mark.parametrize("kind", ["python", "binary"])
def test_an_archive_gives_what_its_folder_gives(small, tmp_path, kind):
    write_batches(tmp_path / "made", kind)
    archive = tmp_path / f"cifar-10-{kind}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made", "cifar-10-batches")
    expected = [split.fingerprint for split in read(tmp_path / "made")]
    assert [split.fingerprint for split in read(tmp_path)] == expected
    assert [split.fingerprint for split in read(archive)] == expected


def test_an_archive_writes_nothing_to_the_disk_wherever_its_members_point(small, tmp_path):
    write_batches(tmp_path / "made", "binary")
    archive = tmp_path / "in" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        for path in (tmp_path / "made").iterdir():
            tar.add(path, f"../../{path.name}")
    before = sorted(tmp_path.rglob("*"))
    assert len(read(archive.parent)[0]) == 5 * ROWS
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_truncated_archive_is_named(small, tmp_path, share):
    write_batches(tmp_path / "made", "python")
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made", "cifar-10-batches-py")
    archive.write_bytes(archive.read_bytes()[: int(share * archive.stat().st_size)])
    with pytest.raises(UserError, match=r"cifar-10-python.tar.gz"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["mine.tar.gz", "cifar-9.tgz"])
def test_an_archive_is_known_by_what_is_in_it(tmp_path, small, name):
    (tmp_path / "photos" / "train").mkdir(parents=True)
    (tmp_path / "photos" / "train" / "0.png").write_bytes(os.urandom(9999))
    (tmp_path / "photos" / "labels.csv").write_text("x")
    write_batches(tmp_path / "made", "binary")
    for folder in ("photos", "made"):
        with tarfile.open(tmp_path / name, "w:gz") as tar:
            tar.add(tmp_path / folder, "inside")
        found = find_files(tmp_path / name)
        assert (found and found.paths) == ((tmp_path / name,) if folder == "made" else None)


@pytest.mark.parametrize("suffix", [".tar.gz", ".zip", ".TGZ"])
def test_an_archive_of_other_things_is_to_be_unpacked(tmp_path, suffix):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "0.png").write_bytes(os.urandom(99))
    kind = "zip" if suffix == ".zip" else "gztar"
    made = Path(shutil.make_archive(str(tmp_path / "made"), kind, tmp_path / "photos"))
    made = made.rename(tmp_path / f"mine{suffix}")
    with pytest.raises(UserError, match=r"mine.* is an archive of no known data set: unpack it"):
        load_data(made)


def test_an_archive_without_batches_is_refused(tmp_path):
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz"):
        pass
    with pytest.raises(UserError, match=r"data_batch_1 is missing"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("kind", "name"), [("python", "data_batch_4"), ("binary", "test_batch.bin")]
)
def test_a_missing_batch_is_named(small, tmp_path, kind, name):
    write_batches(tmp_path, kind)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        read(tmp_path)


def test_without_a_meta_file_the_official_ten_names_are_used(small, tmp_path):
    write_batches(tmp_path, "python")
    (tmp_path / "batches.meta").unlink()
    assert read(tmp_path)[0].classes == formats.CLASSES


def test_the_meta_file_gives_the_class_names_and_one_with_a_foreign_global_is_refused(
    small, tmp_path
):
    write_batches(tmp_path, "python")
    (tmp_path / "batches.meta").write_bytes(python2_meta(tuple("abcdefghij")))
    assert read(tmp_path)[0].classes == tuple("abcdefghij")
    (tmp_path / "batches.meta").write_bytes(pickle.dumps(Foreign(os.mkdir, "x"), 2))
    with pytest.raises(UserError, match=r"batches.meta names .*mkdir"):
        read(tmp_path)


def test_a_folder_without_known_files_is_not_recognised_as_cifar10(tmp_path):
    (tmp_path / "other.parquet").write_bytes(b"x")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "other.parquet"):
        assert find_files(path) is None


# --- parquet --------------------------------------------------------------------------------


def test_parquet_shards_are_joined_in_order_with_the_names_of_the_schema(tmp_path):
    write_parquet(tmp_path, tuple("abcdefghij"))
    train, test = read(tmp_path)
    expected = np.concatenate([make_part(0)[0], make_part(1)[0]])
    np.testing.assert_array_equal(train.images.numpy().reshape(-1, 3072), expected)
    np.testing.assert_array_equal(test.labels.numpy(), make_part(2)[1])
    assert train.classes == tuple("abcdefghij")


def test_a_missing_shard_is_named(tmp_path):
    write_parquet(tmp_path)
    (tmp_path / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(UserError, match=r"train-00001-of-00002.parquet is missing"):
        read(tmp_path)


def test_a_missing_test_shard_is_named(tmp_path):
    write_parquet(tmp_path)
    (tmp_path / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"test-00000-of-00001.parquet is missing"):
        read(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_shard_is_named(tmp_path, share):
    write_parquet(tmp_path)
    shard = tmp_path / "train-00001-of-00002.parquet"
    shard.write_bytes(shard.read_bytes()[: int(share * shard.stat().st_size)])
    with pytest.raises(UserError, match=r"train-00001-of-00002.parquet is truncated or corrupt"):
        read(tmp_path)


def test_a_damaged_or_wrongly_sized_png_is_named_by_shard_and_row(tmp_path):
    write_parquet(tmp_path)
    pixels, labels = make_part(0)
    blobs = [png(row) for row in pixels]
    shard = tmp_path / "train-00000-of-00002.parquet"
    write_shard(shard, [*blobs[:7], blobs[7][:99], *blobs[8:]], labels)
    with pytest.raises(UserError, match=r"00000-of-00002.parquet is corrupt: image in row 7"):
        read(tmp_path)
    stream = io.BytesIO()
    Image.new("RGB", (31, 32)).save(stream, "PNG")
    write_shard(shard, [*blobs[:-1], stream.getvalue()], labels)
    with pytest.raises(UserError, match="row 29: 31x32 pixels"):
        read(tmp_path)


def test_a_shard_with_other_columns_or_labels_is_refused(tmp_path):
    write_parquet(tmp_path)
    shard = tmp_path / "test-00000-of-00001.parquet"
    write_shard(shard, [png(row) for row in make_part(0)[0]], np.full(ROWS, 12))
    with pytest.raises(UserError, match=r"test-00000-of-00001.parquet is corrupt: it has label 12"):
        read(tmp_path)
    pq.write_table(pa.table({"picture": [1]}), shard)
    with pytest.raises(UserError, match=r"test-00000-of-00001.parquet"):
        read(tmp_path)
