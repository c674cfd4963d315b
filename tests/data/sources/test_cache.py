"""The cache of decoded images; real CIFAR-10 through it, where there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from leanres.data.describe import describe
from leanres.data.sources import cifar10, folder, load_data
from leanres.data.sources import cifar10_formats as formats
from leanres.data.sources.cache import write_cache_file
from leanres.data.sources.cifar10 import find_files
from leanres.data.split import Dataset, Split
from leanres.errors import UserError

ROWS = 20  # of a binary batch

pytestmark = pytest.mark.usefixtures("cache")


def prints(data: Dataset) -> list[str]:
    return [split.fingerprint for split in data.splits.values()]


def only_file(cache: Path) -> Path:
    (file,) = cache.glob("*.safetensors")
    return file


@pytest.mark.parametrize("name", ["cifar10", "folder"])
def test_the_second_load_decodes_nothing_and_gives_the_same(
    tmp_path, monkeypatch, name, write_binary, write_images
):
    write = write_binary if name == "cifar10" else write_images
    path = write(tmp_path / "source")
    first = load_data(name, path)

    def broken(*_: object, **__: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(cifar10, "read_cifar10", broken)
    monkeypatch.setattr(folder, "read_folder", broken)
    second = load_data(name, path)
    assert prints(second) == prints(first)
    assert (second.notes, second.source) == (first.notes, first.source)
    assert second.train.classes == first.train.classes


def test_a_changed_source_is_decoded_again_and_the_outdated_cache_removed(
    tmp_path, cache, write_binary
):
    path = write_binary(tmp_path / "source", 1)
    before = prints(load_data(path=path))
    write_binary(path, 2)
    after = prints(load_data(path=path))
    assert before != after
    assert only_file(cache)


@pytest.mark.parametrize("change", ["rename", "add", "hide", "move", "size", "touch"])
def test_every_kind_of_change_in_a_folder_is_noticed(tmp_path, change, write_images):
    root = write_images(tmp_path / "images")
    before = load_data("folder", root)
    image = root / "cat" / "0.png"
    if change == "rename":
        (root / "cat").rename(root / "lynx")
    elif change == "add":
        (root / "cat" / "new.png").write_bytes((root / "dog" / "0.png").read_bytes())
    elif change == "hide":
        image.rename(root / "cat" / ".0.png")
    elif change == "move":
        image.rename(root / "dog" / "00.png")
    elif change == "touch":
        other = (root / "cat" / "1.png").read_bytes()
        image.write_bytes(other)
        os.utime(image, ns=(1, image.stat().st_mtime_ns + 1))
    after = load_data("folder", root, size=16 if change == "size" else 32)
    assert prints(after) != prints(before)


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 4
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("position", [3, 60, 400, -1, -70_000, "cut", "empty"])
def test_a_damaged_cache_is_noted_and_rebuilt(tmp_path, cache, position, write_binary):
    path = write_binary(tmp_path / "source")
    expected = prints(load_data(path=path))
    file = only_file(cache)
    if isinstance(position, int):
        flip(file, position)
    else:
        file.write_bytes(file.read_bytes()[: -5 if position == "cut" else 0])
    rebuilt = load_data(path=path)
    assert prints(rebuilt) == expected
    assert any("was damaged" in note and "\n" not in note for note in rebuilt.notes)
    assert not any("damaged" in note for note in load_data(path=path).notes)


def test_a_cache_that_cannot_be_written_is_noted_and_no_error(tmp_path, write_binary):
    (tmp_path / "file").write_text("in the way")
    data = load_data(path=write_binary(tmp_path / "source"), cache=tmp_path / "file" / "cache")
    assert len(data.train) == 5 * ROWS
    assert any("could not be cached" in note for note in data.notes)


def test_a_full_disk_leaves_no_half_written_cache(tmp_path, cache, monkeypatch, write_binary):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    data = load_data(path=write_binary(tmp_path / "source"))
    assert any("No space left" in note for note in data.notes)
    assert list(cache.iterdir()) == []


def test_strict_does_not_use_what_was_cached_without_it(tmp_path, write_images):
    root = write_images(tmp_path / "images")
    (root / "cat" / "bad.png").write_bytes(b"x")
    assert any("bad.png" in note for note in load_data("folder", root).notes)
    with pytest.raises(UserError, match=r"bad.png cannot be read"):
        load_data("folder", root, strict=True)


# --- real CIFAR-10, where $LEANRES_DATA has it ---------------------------------------------------

# Read at import: the `cache` fixture hides the variable from the tests.
REAL = next((Path(p) for p in [os.environ.get("LEANRES_DATA")] if p and find_files(Path(p))), None)


@pytest.fixture
def bulky(monkeypatch):
    """A cache for half a gigabyte, removed right after the test."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("LEANRES_CACHE", f"{folder}/cache")
        yield Path(folder)


def test_cifar10_has_the_known_figures_loads_fast_and_is_the_same_in_every_format(
    bulky, monkeypatch, write_binary
):
    """With the real 60,000 images if $LEANRES_DATA has them, otherwise with 120 random ones."""
    if REAL:
        monkeypatch.setattr(formats, "_ROWS", 10_000)
    place = REAL or write_binary(bulky / "made")
    first = load_data(path=place)
    start = time.perf_counter()
    second = load_data(path=place)
    assert time.perf_counter() - start < 1
    assert prints(second) == prints(first)
    mean, std, classes = known_figures(first)
    found = describe(second)
    assert found.splits["train"].mean == pytest.approx(mean, abs=5e-5)
    assert found.splits["train"].std == pytest.approx(std, abs=5e-5)
    assert list(found.splits["train"].per_class.values()) == classes
    assert [d.count for d in found.duplicates] == [0, 0, 0]
    assert prints(load_data(path=rewritten(first, bulky / "binary"))) == prints(first)


def known_figures(data: Dataset) -> tuple[list[float], list[float], list[int]]:
    """Mean, std and class counts of train: published ones of the real data, else numpy's."""
    if REAL:
        return [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616], [5000] * 10
    pixels = data.train.images.numpy() / 255
    counts = np.bincount(data.train.labels.numpy(), minlength=10)
    return pixels.mean((0, 2, 3)).tolist(), pixels.std((0, 2, 3)).tolist(), counts.tolist()


def rewritten(data: Dataset, target: Path) -> Path:
    """The same images as official binary batches."""
    target.mkdir()
    images = torch.cat([data.train.images, data.test.images]).flatten(1).numpy()
    labels = torch.cat([data.train.labels, data.test.labels]).numpy().astype(np.uint8)
    records = np.column_stack([labels, images])
    for name, batch in zip(formats.BINARY_FILES, np.array_split(records, 6), strict=True):
        batch.tofile(target / name)
    (target / "batches.meta.txt").write_text("\n".join(data.train.classes))
    return target


def test_the_cache_file_says_what_it_is(tmp_path, cache, write_binary):
    load_data(path=write_binary(tmp_path / "source"))
    with safe_open(only_file(cache), "pt") as opened:
        about = json.loads(opened.metadata()["about"])
        shape = opened.get_slice("train.images").get_shape()
    assert about["classes"] == list(formats.CLASSES)
    assert shape == [5 * ROWS, 3, 32, 32]


# --- memory --------------------------------------------------------------------------------------

CHILD = """
import sys
from pathlib import Path
from leanres.data.sources.cache import read_cache_file

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

read_cache_file(Path(sys.argv[2]))
before = anonymous()
data = read_cache_file(Path(sys.argv[1]))
assert int(data.train.images[::100].sum()) >= 0
print(anonymous() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc tells the memory")
def test_a_cached_set_is_mapped_and_takes_no_memory_of_its_own(bulky):
    count = 65_000  # of 3,072 bytes: 200 MB
    for name, n in (("large", count), ("small", 10)):
        images = torch.zeros((n, 3, 32, 32), dtype=torch.uint8)
        split = Split(images, torch.arange(n) % 2, ("a", "b"))
        write_cache_file(bulky / name, Dataset(name, split, None, split.subset(range(10))))
    words = [sys.executable, "-c", CHILD, str(bulky / "large"), str(bulky / "small")]
    grown = int(subprocess.run(words, capture_output=True, check=True, text=True).stdout)
    assert grown < 20_000  # KiB, of 200,000


HELD_OUT = CHILD.replace("int(data.train", "int(data.with_val(0.5).train")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc tells the memory")
def test_holding_images_out_takes_no_memory_of_their_size(bulky, monkeypatch):
    monkeypatch.setenv("LEANRES_CACHE", str(bulky / "rooms"))
    count, rng = 65_000, np.random.default_rng(0)
    for name, n in (("large", count), ("small", 100)):
        images = torch.from_numpy(rng.integers(256, size=(n, 3, 32, 32), dtype=np.uint8))
        split = Split(images, torch.arange(n) % 2, ("a", "b"))
        write_cache_file(bulky / name, Dataset(name, split, None, split.subset(range(10))))
    words = [sys.executable, "-c", HELD_OUT, str(bulky / "large"), str(bulky / "small")]
    for _ in range(2):  # the second finds the files of the first
        grown = int(subprocess.run(words, capture_output=True, check=True, text=True).stdout)
        assert grown < 60_000  # KiB, of 200,000: digests, labels, and what sorting them takes
        assert len([*bulky.glob("rooms/shared/*.images")]) == 2
