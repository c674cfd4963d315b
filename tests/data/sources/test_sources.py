"""load_data: which source is read, where CIFAR-10 is looked for, the cache of decoded images."""

from __future__ import annotations

import json
import os
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from sklearn.datasets import load_digits

from leanres.cli.options import DATA_HELP
from leanres.data.describe import describe
from leanres.data.sources import SOURCES, cifar10, folder, load_data, locate
from leanres.data.sources import cifar10_formats as formats
from leanres.data.sources.cifar10 import find_files
from leanres.data.sources.source import LoadOptions, Source
from leanres.data.split import Dataset, Split
from leanres.errors import UserError

ROWS = 20


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of its own, no data set by the user, no network."""
    monkeypatch.setenv("LEANRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LEANRES_DATA", raising=False)
    monkeypatch.setattr(formats, "_ROWS", ROWS)

    def offline(*_: object, **__: object) -> None:
        raise UserError("cannot download: no network in this test")

    monkeypatch.setattr(cifar10, "download", offline)
    return tmp_path / "cache"


def write_binary(folder: Path, seed: int = 0) -> Path:
    """Six binary batches of 20 random images."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name in formats.BINARY_FILES:
        records = rng.integers(0, 256, (ROWS, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())
    return folder


def write_images(root: Path, count: int = 5) -> Path:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def prints(data: Dataset) -> list[str]:
    return [s.fingerprint for s in (data.train, data.val, data.test) if s is not None]


# --- which source ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_splits_with_the_same_classes_and_says_where_they_are_from(
    name, tmp_path
):
    paths = {"cifar10": write_binary(tmp_path / "c"), "folder": write_images(tmp_path / "f")}
    data = load_data(name, paths.get(name))
    assert data.name == name
    assert data.source
    assert data.test is not None
    assert data.train.classes == data.test.classes
    assert data.train.images.shape[1:] == data.test.images.shape[1:] == (3, 32, 32)


def test_an_unknown_source_names_the_nearest():
    with pytest.raises(UserError, match=r"no data source 'cifar'; did you mean 'cifar10'\?"):
        load_data("cifar")


def test_the_help_of_the_command_line_lists_every_source():
    assert [name for name in SOURCES if name not in DATA_HELP] == []


def test_a_path_in_place_of_a_name_is_loaded_by_the_source_that_recognises_it(tmp_path):
    pictures, batches = write_images(tmp_path / "pictures"), write_binary(tmp_path / "batches")
    for path, name in ((pictures, "folder"), (batches, "cifar10")):
        found = load_data(str(path))
        assert found.name == name
        assert prints(found) == prints(load_data(name, path))
        assert prints(found) == prints(load_data(f"{name}:{path}"))
        assert locate(str(path)) == {"data": name, "path": str(path), "size": None}


def test_a_located_data_set_is_found_from_any_working_directory(tmp_path, monkeypatch):
    write_images(tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    for home in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(home, str(tmp_path))
    path = str(tmp_path / "pictures")
    for place in ("pictures", "./pictures", "~/pictures"):
        assert locate(place, size=16) == {"data": "folder", "path": path, "size": 16}
        assert locate("folder", place)["path"] == locate(f"folder:{place}")["path"] == path
    assert locate("digits") == {"data": "digits", "path": None, "size": None}


def test_a_source_before_a_path_reads_it_whatever_it_looks_like(tmp_path):
    pictures = write_images(tmp_path / "pictures")
    write_binary(pictures / "cifar10")
    assert locate(str(pictures))["data"] == "cifar10"
    assert locate(f"folder:{pictures}")["data"] == "folder"


@pytest.mark.parametrize(
    ("name", "problem"), [("absent", "does not exist"), ("notes.txt", "holds no known data set")]
)
def test_a_path_that_no_source_recognises_is_refused_with_the_layouts_that_fit(
    tmp_path, name, problem
):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError) as caught:
        load_data(str(tmp_path / name))
    assert str(caught.value) == (
        f"{tmp_path / name} {problem}; give a folder with one subfolder per class, or CIFAR-10"
        " (python or binary batches, their .tar.gz, or parquet)"
    )


def test_a_new_source_is_one_table_entry_and_comes_before_the_general_folder(tmp_path, monkeypatch):
    (tmp_path / "images.npy").write_bytes(b"")

    def load_arrays(options: LoadOptions) -> Dataset:
        pixels = torch.full((4, 3, options.size, options.size), 7, dtype=torch.uint8)
        split = Split(pixels, torch.arange(4) % 2, ("a", "b"))
        return Dataset("arrays", split, None, None, (), str(options.path))

    def has_arrays(path: Path) -> bool:
        return (path / "images.npy").exists()

    monkeypatch.setitem(SOURCES, "arrays", Source(load_arrays, has_arrays, "a folder of arrays"))
    found = load_data(str(tmp_path), size=8)
    assert (found.name, found.source) == ("arrays", str(tmp_path))
    assert found.train.images.shape == (4, 3, 8, 8)
    assert locate(str(tmp_path))["data"] == "arrays"
    with pytest.raises(UserError, match=r"a folder of arrays$"):
        load_data(str(tmp_path / "absent"))


def test_a_size_that_a_source_does_not_resize_to_is_refused(monkeypatch):
    pixels = torch.zeros(4, 3, 28, 28, dtype=torch.uint8)
    made = Dataset("arrays", Split(pixels, torch.arange(4) % 2, ("a", "b")), None, None)
    monkeypatch.setitem(SOURCES, "arrays", Source(lambda _: made))
    assert load_data("arrays") is load_data("arrays", size=28) is made
    for size in (16, 32):
        with pytest.raises(UserError, match=f"not resized: they have 28 pixels, not {size}"):
            load_data("arrays", size=size)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "digits", "path": "x"}, "digits are embedded"),
        ({"name": "folder"}, "needs its path"),
        ({"name": "cifar10", "size": 64}, "32x32"),
        ({"name": "digits", "size": 2}, "from 4 to 1024"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        load_data(**arguments)


# --- where CIFAR-10 is looked for ------------------------------------------------------------


def test_a_given_path_comes_before_the_environment_and_that_before_the_cache(
    tmp_path, monkeypatch, cache
):
    given, named = write_binary(tmp_path / "given", 1), write_binary(tmp_path / "named", 2)
    write_binary(cache / "cifar-10-batches-bin", 3)
    monkeypatch.setenv("LEANRES_DATA", str(named))
    seen = [load_data(path=given).source, load_data().source]
    monkeypatch.delenv("LEANRES_DATA")
    seen.append(load_data().source)
    assert [Path(source.split(" (")[0]) for source in seen] == [
        given, named, cache / "cifar-10-batches-bin"
    ]  # fmt: skip


def test_a_given_path_without_the_data_is_an_error_and_nothing_else_is_tried(
    tmp_path, monkeypatch, cache
):
    write_binary(cache)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"given path .*empty holds no CIFAR-10 \(looked for data_b"
    ):
        load_data(path=tmp_path / "empty")
    with pytest.raises(UserError, match=r"given path .*absent does not exist"):
        load_data(path=tmp_path / "absent")
    monkeypatch.setenv("LEANRES_DATA", str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"\$LEANRES_DATA .*empty holds no CIFAR-10"):
        load_data()


def test_a_missing_folder_in_the_environment_is_skipped_and_noted(tmp_path, monkeypatch, cache):
    write_binary(cache)
    monkeypatch.setenv("LEANRES_DATA", str(tmp_path / "gone"))
    assert any("gone does not exist" in note for note in load_data().notes)


@pytest.mark.parametrize("download", [True, False])
def test_without_data_the_error_lists_what_was_tried_and_what_to_do(cache, download):
    with pytest.raises(UserError) as caught:
        load_data(download=download)
    message = str(caught.value)
    assert ("no network in this test" in message) == download
    for words in ("$LEANRES_DATA", str(cache), "--data digits"):
        assert words in message
    assert "\n" not in message


def test_a_download_lands_in_the_cache_and_is_read_from_there(tmp_path, monkeypatch, cache):
    def fake(target: Path, *_: object, **__: object) -> Path:
        target.parent.mkdir(parents=True)
        with tarfile.open(target, "w:gz") as tar:
            tar.add(write_binary(tmp_path / "made"), "cifar-10-batches-bin")
        return target

    with pytest.MonkeyPatch.context() as network:
        network.setattr(cifar10, "download", fake)
        first = load_data()
    again = load_data(download=False)
    assert prints(first) == prints(again)
    assert again.train.images.shape == (5 * ROWS, 3, 32, 32)


def test_a_complete_set_that_was_decoded_before_is_found_without_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "_COMPLETE", (5 * ROWS, ROWS))
    folder = write_binary(tmp_path / "usb_stick")
    expected = prints(load_data(path=folder))
    folder.rename(tmp_path / "unplugged")
    found = load_data(download=False)
    assert prints(found) == expected
    assert "usb_stick" in found.source


def test_an_incomplete_cifar10_is_noted_and_never_taken_from_the_cache(tmp_path):
    data = load_data(path=write_binary(tmp_path / "part"))
    assert any("100 train and 20 test images, not 50,000 and 10,000" in n for n in data.notes)
    with pytest.raises(UserError, match="not found"):
        load_data(download=False)


# --- the cache of decoded images -------------------------------------------------------------


def only_file(cache: Path) -> Path:
    (file,) = cache.glob("*.safetensors")
    return file


@pytest.mark.parametrize("name", ["cifar10", "folder"])
def test_the_second_load_decodes_nothing_and_gives_the_same(tmp_path, monkeypatch, name):
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


def test_a_changed_source_is_decoded_again_and_the_outdated_cache_removed(tmp_path, cache):
    path = write_binary(tmp_path / "source", 1)
    before = prints(load_data(path=path))
    write_binary(path, 2)
    after = prints(load_data(path=path))
    assert before != after
    assert only_file(cache)


@pytest.mark.parametrize("change", ["rename", "add", "hide", "move", "size", "touch"])
def test_every_kind_of_change_in_a_folder_is_noticed(tmp_path, change):
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
def test_a_damaged_cache_is_noted_and_rebuilt(tmp_path, cache, position):
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


def test_a_cache_that_cannot_be_written_is_noted_and_no_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    data = load_data(path=write_binary(tmp_path / "source"), cache=tmp_path / "file" / "cache")
    assert len(data.train) == 5 * ROWS
    assert any("could not be cached" in note for note in data.notes)


def test_a_full_disk_leaves_no_half_written_cache(tmp_path, cache, monkeypatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    data = load_data(path=write_binary(tmp_path / "source"))
    assert any("No space left" in note for note in data.notes)
    assert list(cache.iterdir()) == []


def test_strict_does_not_use_what_was_cached_without_it(tmp_path):
    root = write_images(tmp_path / "images")
    (root / "cat" / "bad.png").write_bytes(b"x")
    assert any("bad.png" in note for note in load_data("folder", root).notes)
    with pytest.raises(UserError, match=r"bad.png cannot be read"):
        load_data("folder", root, strict=True)


# --- the digits -----------------------------------------------------------------------------


def test_the_digits_are_all_there_and_split_by_class():
    data = load_data("digits")
    assert (len(data.train), len(data.test)) == (1437, 360)
    counts = torch.bincount(data.train.labels) + torch.bincount(data.test.labels)
    assert counts.tolist() == np.bincount(load_digits().target).tolist()
    assert torch.bincount(data.test.labels).min() >= 34
    assert [d.count for d in describe(data).duplicates] == [0, 0, 0]


def test_the_digits_are_the_scanned_ones_enlarged():
    data = load_data("digits", size=8)
    grey = torch.cat([data.train.images, data.test.images])
    assert (grey == grey[:, :1]).all()
    found = {image.numpy().tobytes() for image in grey[:, 0]}
    expected = (load_digits().images * 255 / 16).round().astype(np.uint8)
    assert found == {image.tobytes() for image in expected}
    small = data.test.images[:, 0].numpy().astype(np.float32)
    large = load_data("digits").test.images[:, 0].numpy().astype(np.float32)
    for one, enlarged in zip(small[:50], large[:50], strict=True):
        oracle = Image.fromarray(one).resize((32, 32), Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(oracle) - enlarged).max() <= 1  # each is rounded once


# --- real CIFAR-10, where $LEANRES_DATA has it -----------------------------------------------


# Read at import: the `cache` fixture hides the variable from the tests.
REAL = next((Path(p) for p in [os.environ.get("LEANRES_DATA")] if p and find_files(Path(p))), None)


@pytest.fixture
def bulky(monkeypatch):
    """A cache for half a gigabyte, removed right after the test."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("LEANRES_CACHE", f"{folder}/cache")
        yield Path(folder)


def test_cifar10_has_the_known_figures_loads_fast_and_is_the_same_in_every_format(
    bulky, monkeypatch
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


def test_the_cache_file_says_what_it_is(tmp_path, cache):
    load_data(path=write_binary(tmp_path / "source"))
    with safe_open(only_file(cache), "pt") as opened:
        about = json.loads(opened.metadata()["about"])
        shape = opened.get_slice("train.images").get_shape()
    assert about["classes"] == list(formats.CLASSES)
    assert shape == [5 * ROWS, 3, 32, 32]
