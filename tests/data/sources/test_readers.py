"""Every layout gives the pixels, labels, classes and splits that its own library wrote."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import random
import struct
from dataclasses import replace
from pathlib import Path

import layouts
import numpy as np
import pytest
import torch
from layouts import channels_last, check, labels, pixels
from scipy.io import loadmat, savemat

from leanres.data.image_files import read_image
from leanres.data.sources import cifar10, cifar10_1, cifar100, idx, load_data, locate
from leanres.data.sources import stl10 as stl10_source
from leanres.data.sources import svhn as svhn_source
from leanres.data.sources.cifar10_formats import CLASSES
from leanres.data.sources.mat5 import read_mat5
from leanres.data.sources.published import load_published
from leanres.data.sources.source import LoadOptions
from leanres.errors import NotFoundError, UserError
from leanres.runs.layout import load_data_of
from leanres.runs.weights import load_classifier

pytestmark = pytest.mark.usefixtures("cache")

PUBLISHED = {
    "mnist": idx.MNIST,
    "fashion-mnist": idx.FASHION_MNIST,
    "svhn": svhn_source.SVHN,
    "stl10": stl10_source.STL10,
    "cifar10.1": cifar10_1.CIFAR10_1,
    "cifar100": cifar100.CIFAR100,
    "cifar100-coarse": cifar100.COARSE,
    "cifar10": cifar10.CIFAR10,
}
NUMBERS = tuple("0123456789")


# --- published formats ---------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("name", ["idx", "mnist", "fashion-mnist"])
def test_idx_files_are_read(tmp_path, name, end):
    folder = layouts.write_idx(tmp_path / "raw", end)
    data = load_data(folder) if name == "idx" else load_data(name, folder)
    assert data.name == name
    classes = idx.FASHION if name == "fashion-mnist" else NUMBERS
    check(data, pixels(0, 20, (28, 28)), pixels(1, 10, (28, 28)), classes)
    assert data.grows == (name == "idx")


def test_svhn_is_read_and_its_label_10_is_the_digit_0(tmp_path):
    data = load_data(layouts.write_svhn(tmp_path / "svhn"))
    check(data, pixels(0), pixels(1, 10), NUMBERS)
    assert data.name == "svhn"
    assert not data.grows


@pytest.mark.parametrize("packed", [False, True])
def test_stl10_is_read_by_columns_from_files_or_their_archive(tmp_path, packed):
    path = layouts.write_stl10(tmp_path / "stl10_binary")
    if packed:
        path = layouts.archive(path, tmp_path / "stl10_binary.tar.gz")
    shape = (96, 96, 3)
    data = load_data(path)
    check(data, pixels(0, 20, shape), pixels(1, 10, shape), stl10_source.CLASSES)
    assert load_data(path, size=48).train.images.shape == (20, 3, 48, 48)


@pytest.mark.parametrize("kind", ["python", "binary"])
@pytest.mark.parametrize("packed", [False, True])
def test_cifar100_is_read_with_fine_or_coarse_classes(tmp_path, kind, packed):
    path = layouts.write_cifar100(tmp_path / "cifar-100", kind)
    if packed:
        path = layouts.archive(path, tmp_path / f"cifar-100-{kind}.tar.gz")
    fine, coarse = load_data(path), load_data("cifar100-coarse", path)
    assert (fine.name, len(fine.train.classes), len(coarse.train.classes)) == ("cifar100", 100, 20)
    for split, images in ((fine.train, pixels(0)), (fine.test, pixels(1, 10))):
        np.testing.assert_array_equal(channels_last(split), images)
        assert split.labels.tolist() == (labels(len(images)) + 90).tolist()
    assert torch.equal(coarse.train.images, fine.train.images)
    assert coarse.train.labels.tolist() == (labels() % 5 + 15).tolist()
    assert (fine.train.classes[90], coarse.train.classes[15]) == ("fine90", "coarse15")


def test_cifar10_1_is_a_test_set_alone(tmp_path):
    data = load_data(layouts.write_cifar10_1(tmp_path / "new"))
    check(data, None, pixels(1, 20), CLASSES)
    assert [*data.splits] == ["test"]
    with pytest.raises(UserError, match=r"cifar10.1 has test images alone: train on other data"):
        data.check_trainable()
    again = load_data(tmp_path / "new")  # from the cache
    assert again.test.fingerprint == data.test.fingerprint
    assert not again.train


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_set_is_found_in_the_environment_the_cache_or_downloaded(
    name, tmp_path, cache, monkeypatch, write_binary
):
    """Where it is found it is the same, and nothing of it comes from elsewhere."""
    published = PUBLISHED[name]
    write = write_binary if name == "cifar10" else layouts.WRITERS[name]
    own = tmp_path / "elsewhere" / published.name.removesuffix("-coarse")
    own.parent.mkdir()
    write(own)
    expected = load_data(name, own)
    monkeypatch.setenv("LEANRES_DATA", str(own.parent))
    found = load_data(name)
    assert found.test.fingerprint == expected.test.fingerprint
    assert str(own) in found.source
    assert any("images, not" in note for note in found.notes)  # it is not complete
    monkeypatch.delenv("LEANRES_DATA")
    with pytest.raises(NotFoundError, match=f"{published.title} not found: tried"):
        load_data(name, download=False)
    own.rename(cache / published.name.removesuffix("-coarse"))
    assert load_data(name, download=False).test.fingerprint == expected.test.fingerprint


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "cifar10"])
def test_a_folder_of_other_data_in_the_environment_is_noted_and_not_used(
    name, tmp_path, cache, monkeypatch, write_binary
):
    monkeypatch.setenv("LEANRES_DATA", str(write_binary(tmp_path / "other")))
    cache.mkdir()
    layouts.WRITERS[name](cache / name.removesuffix("-coarse"))
    notes = load_data(name, download=False).notes
    told = f"other holds no {PUBLISHED[name].title}): not used"
    assert any(note.endswith(told) for note in notes)


@pytest.mark.parametrize("kind", ["python", "binary"])
def test_a_complete_set_with_a_changed_file_names_that_file(tmp_path, cache, kind):
    """Here the files that the test wrote stand for the published ones."""
    path = layouts.write_cifar100(tmp_path / "cifar-100", kind)
    content = {file.name: file.read_bytes() for file in path.iterdir()}
    small = replace(
        cifar100.CIFAR100,
        counts={"train": 20, "test": 10},
        md5={n: hashlib.md5(c).hexdigest() for n, c in content.items() if kind == "python"},
        downloads={n: ("", hashlib.sha256(c).hexdigest()) for n, c in content.items()}
        if kind == "binary"
        else {},
    )
    assert load_published(small, LoadOptions(path, cache)).notes == ()
    name = "test" if kind == "python" else "test.bin"
    if kind == "python":
        about = pickle.loads(content[name])
        about["data"][0, 0] ^= 1
        changed = pickle.dumps(about, 2)
    else:
        changed = content[name][:-1] + bytes([content[name][-1] ^ 1])
    (path / name).write_bytes(changed)
    (note,) = load_published(small, LoadOptions(path, cache)).notes
    assert note.startswith(f"{name} is not CIFAR-100's: it is damaged or was edited (")
    came = hashlib.new("md5" if kind == "python" else "sha256", changed).hexdigest()
    assert came in note


def test_mnist_is_never_taken_for_fashion_mnist(tmp_path, monkeypatch):
    layouts.write_idx(tmp_path / "MNIST" / "raw")
    monkeypatch.setenv("LEANRES_DATA", str(tmp_path))
    assert load_data("mnist").train.classes == NUMBERS
    with pytest.raises(NotFoundError):
        load_data("fashion-mnist", download=False)
    monkeypatch.setenv("LEANRES_DATA", str(tmp_path / "MNIST" / "raw"))
    with pytest.raises(NotFoundError):
        load_data("fashion-mnist", download=False)


def test_each_download_has_a_sha256_and_a_place_of_its_own():
    for published in PUBLISHED.values():
        assert published.downloads
        for url, sha256 in published.downloads.values():
            assert url.startswith("http")
            assert len(bytes.fromhex(sha256)) == 32


def test_what_is_downloaded_is_read(tmp_path, monkeypatch):
    layouts.write_idx(tmp_path / "made")
    seen = []

    def fake(target: Path, url: str, sha256: str, **_: object) -> None:
        seen.append((url, sha256))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((tmp_path / "made" / target.name).read_bytes())

    monkeypatch.setattr("leanres.data.sources.published.download", fake)
    check(load_data("mnist"), pixels(0, 20, (28, 28)), pixels(1, 10, (28, 28)), NUMBERS)
    assert seen == [*idx.MNIST.downloads.values()]
    load_data("mnist")
    assert len(seen) == 4
    assert load_data("fashion-mnist").train.classes == idx.FASHION
    assert len(seen) == 8


@pytest.mark.parametrize(
    ("name", "file", "content", "words"),
    [
        ("idx", "train-images-idx3-ubyte.gz", None, "no train images"),
        ("idx", "train-labels-idx1-ubyte.gz", b"\x1f\x8b0", "truncated or corrupt"),
        ("svhn", "train_32x32.mat", b"x" * 300, "truncated or corrupt"),
        ("stl10", "train_X.bin", b"x", "not 27,648 for each of the 20 labels"),
        ("stl10", "test_y.bin", None, "test_y.bin is missing"),
        ("stl10", "train_y.bin", b"\0" * 20, "labels run from -1"),
        ("cifar100", "train.bin", b"x", "no multiple of 3,074"),
        ("cifar100", "fine_label_names.txt", b"a b", "names 2 fine classes, not 100"),
        ("cifar10.1", cifar10_1.FILES[1], None, "is missing"),
        ("cifar10.1", cifar10_1.FILES[0], b"x", "truncated or corrupt"),
    ],
)
def test_a_missing_or_damaged_file_is_named(tmp_path, name, file, content, words):
    folder = layouts.WRITERS[name](tmp_path / "data")
    (folder / file).unlink() if content is None else (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        load_data(name, folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_idx_file_of_test_images_alone_is_for_testing(tmp_path):
    data = load_data(layouts.write_idx(tmp_path / "raw", only_test=True))
    assert [*data.splits] == ["test"]
    with pytest.raises(UserError, match="test images alone"):
        data.check_trainable()


# --- which source --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "named"), [(s, "cifar100" if s == "cifar100-coarse" else s) for s in layouts.WRITERS]
)
def test_each_layout_is_recognised_by_looking_and_named_in_one_line(tmp_path, source, named):
    named = "idx" if "mnist" in named else named
    path = layouts.WRITERS[source](tmp_path / "data")
    expected = {"data": named, "path": str(path), "size": None, "channels": None}
    assert locate(str(path)) == expected
    assert load_data(path).notes[0] == f"{path}: read as {named}"


def test_a_name_that_is_no_source_and_no_path_does_not_exist():
    with pytest.raises(
        UserError, match=r"^nofolder does not exist, and there is no data"
    ) as caught:
        load_data("nofolder")
    assert "arrays" not in str(caught.value)  # which runs alone can name
    for empty in ("", " "):
        with pytest.raises(UserError, match="no data set is named"):
            load_data(empty)
    with pytest.raises(UserError, match=r"^fashon-mnist does not exist.*did you mean 'fashion-mn"):
        load_data("fashon-mnist")
    with pytest.raises(UserError, match=r"a/b does not exist; give a folder"):
        load_data("a/b")


@pytest.mark.parametrize("text", [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
                                  b"<!DOCTYPE html><html>Not found</html>"])  # fmt: skip
@pytest.mark.parametrize("name", [name for name in layouts.WRITERS if "100-" not in name])
def test_a_file_that_stands_for_another_is_named_as_what_it_is(tmp_path, name, text):
    path = layouts.WRITERS[name](tmp_path / "data")
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    chosen = {"table": "labels.csv", "cifar100": "train.bin"}.get(name)
    file = path / chosen if chosen else files[-1]
    file.write_bytes(text)
    with pytest.raises(UserError) as caught:
        load_data(name, path)
    what = "a Git-LFS pointer" if b"lfs" in text else "a web page"
    assert f"{file} is {what}, not the file itself" in str(caught.value)


def test_an_image_that_stands_for_another_is_named_as_what_it_is(tmp_path, write_images):
    root = write_images(tmp_path / "images")
    (root / "cat" / "a.png").write_text("version https://git-lfs.github.com/spec/v1\n")
    (root / "cat" / "b.png").write_text("<html>")
    (note,) = [n for n in load_data(root).notes if "unreadable" in n]
    assert "cat/a.png (a Git-LFS pointer, not the file itself: run git lfs pull)" in note
    assert "cat/b.png (a web page, not the file itself: download it again)" in note
    with pytest.raises(UserError, match=r"a.png is a Git-LFS pointer"):
        read_image(root / "cat" / "a.png", 32)


def test_headers_that_claim_terabytes_are_refused_before_they_are_read(tmp_path):
    folder = layouts.write_idx(tmp_path / "raw", "")
    head = struct.pack(">4I", 0x803, 2**31, 2**20, 2**10)
    (folder / "train-images-idx3-ubyte").write_bytes(head + bytes(99))
    with pytest.raises(UserError, match="its header says 2,305,843,009,213,693,952 bytes"):
        load_data(folder)
    np.save(tmp_path / "one.npy", pixels(0))
    content = (tmp_path / "one.npy").read_bytes().replace(b"(20, 32, 32, 3)", b"(2000000000, 3)")
    folder = layouts.write_cifar10_1(tmp_path / "new")
    (folder / cifar10_1.FILES[0]).write_bytes(content)
    with pytest.raises(UserError, match="its header says uint8 of shape"):
        load_data(folder)


def test_weights_that_stand_for_others_are_named_as_what_they_are(tmp_path):
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="is a Git-LFS pointer, not the file itself"):
        load_classifier(tmp_path / "model.safetensors")


def test_a_run_on_a_named_column_finds_its_data_again(tmp_path):
    columns = {"fine": labels().tolist(), "odd": (labels() % 2).tolist()}
    layouts.write_shard(tmp_path / "train.parquet", pixels(0), columns)
    origin = locate(f"parquet,label=odd:{tmp_path / 'train.parquet'}")
    info = {"origin": origin, "data": {"name": "parquet"}}
    assert load_data_of(info).train.classes == ("0", "1")


# --- MATLAB files, whose reader is our own --------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_matlab_arrays_are_read_as_scipy_reads_them(tmp_path, packed):
    """Numbers of every type, some stored in fewer bytes, beside what has to be skipped."""
    rng, file = np.random.default_rng(0), tmp_path / "some.mat"
    codes = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
    arrays = {f"of_{c}": rng.integers(0, 100, (3, 1, 5)).astype(c) for c in codes}
    arrays |= {"small": np.array([[7]], np.uint8), "many": rng.normal(size=(700, 900))}
    other = {"text": "abc", "cell": np.array([1, "a"], object), "struct": {"a": 1}, "z": 1j}
    savemat(file, other | arrays, do_compression=packed)
    right = loadmat(file)
    with file.open("rb") as opened:
        found = read_mat5(opened, tuple(arrays), 10**7)
    assert found.keys() == arrays.keys()
    for name, array in found.items():
        assert array.dtype == right[name].dtype
        np.testing.assert_array_equal(array, right[name])
    for name, words in (("many", "elements of|with 5,040,000 bytes"), ("z", "no array of real")):
        with file.open("rb") as opened, pytest.raises(ValueError, match=words):
            read_mat5(opened, (name,), 10**6)


def test_a_matlab_file_of_the_other_byte_order_is_read(tmp_path):
    """Written by hand: scipy writes the machine's own order."""

    def element(kind: int, content: bytes) -> bytes:
        return struct.pack(">2I", kind, len(content)) + content + bytes(-len(content) % 8)

    parts = (6, struct.pack(">2I", 9, 0)), (5, struct.pack(">2i", 2, 3)), (1, b"X"), (2, b"abcdef")
    body = b"".join(element(*part) for part in parts)
    file = tmp_path / "big.mat"
    file.write_bytes(b"MATLAB 5.0".ljust(124) + b"\1\0MI" + element(14, body))
    with file.open("rb") as opened:
        found = read_mat5(opened, ("X",), 100)["X"]
    np.testing.assert_array_equal(found, loadmat(file)["X"])


def test_a_damaged_svhn_file_never_ends_the_process(tmp_path):
    """scipy's reader ended it by a signal in 8 of 400 such files."""
    folder, rng = layouts.write_svhn(tmp_path / "svhn"), random.Random(0)
    file = folder / "train_32x32.mat"
    for packed in (True, False):
        arrays = loadmat(file)
        savemat(file, {name: arrays[name] for name in ("X", "y")}, do_compression=packed)
        whole = file.read_bytes()
        for _ in range(300):
            content = bytearray(whole)
            for _ in range(rng.randint(1, 4)):
                at = rng.choice((rng.randrange(128, 300), rng.randrange(1, 200) - 200))
                content[at] = rng.randrange(256)
            file.write_bytes(bytes(content[: rng.choice((len(whole), rng.randrange(len(whole))))]))
            with contextlib.suppress(UserError):
                images, numbers = svhn_source.read_mat(file)
                assert images.shape == (32, 32, 3, 20)
                assert numbers.size
        file.write_bytes(whole)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"X": np.zeros((32, 32, 3, 2), np.uint8)}, "one X and one y"),
        ({"X": np.zeros((32, 32, 3, 2)), "y": np.ones((2, 1))}, "its X is float64"),
        ({"X": np.zeros((32, 30, 3, 2), np.uint8), "y": np.ones((2, 1))}, "of shape .32, 30, 3, 2"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": "ab"}, "y is no array of real numbers"),
    ],
)
def test_a_matlab_file_of_other_arrays_is_refused(tmp_path, arrays, words):
    file = layouts.write_svhn(tmp_path / "svhn") / "train_32x32.mat"
    savemat(file, arrays)
    with pytest.raises(UserError, match=words):
        load_data("svhn", file.parent)
