"""load_data: which source is read, where CIFAR-10 is looked for, the digits."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import layouts
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from leanres.cli.options import DATA_HELP
from leanres.data.describe import describe
from leanres.data.sources import PUBLISHED, SOURCES, cifar10, load_data, locate, published
from leanres.data.sources.kept import keep_arrays
from leanres.data.sources.source import LoadOptions, Source
from leanres.data.split import Dataset, Split
from leanres.errors import UserError

ROWS = 20  # of a binary batch

pytestmark = pytest.mark.usefixtures("cache")


def prints(data: Dataset) -> list[str]:
    return [split.fingerprint for split in data.splits.values()]


# --- which source --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_splits_with_the_same_classes_and_says_where_they_are_from(
    name, tmp_path, write_binary, write_images
):
    writers = {"cifar10": write_binary, "folder": write_images, **layouts.WRITERS}
    if name == "arrays":
        data = load_data(name, keep_arrays(load_data("digits")))
        assert data.name == "digits"
    else:
        data = load_data(name, writers[name](tmp_path / "data") if name in writers else None)
        assert data.name == name
    assert data.source
    assert data.test
    assert data.train.classes == data.test.classes
    assert data.train.images.shape[1:] == data.test.images.shape[1:]


def test_an_unknown_source_names_the_nearest():
    with pytest.raises(UserError, match=r"no data source 'cifar'; did you mean 'cifar10'\?"):
        load_data("cifar")


def test_the_help_of_the_command_line_lists_every_source():
    assert [name for name in SOURCES if name not in DATA_HELP] == ["arrays"]


def located(
    source: str, path: str | None = None, size: int | None = None, channels: int | None = None
) -> dict[str, object]:
    return {"data": source, "path": path, "size": size, "channels": channels}


def test_a_path_in_place_of_a_name_is_loaded_by_the_source_that_recognises_it(
    tmp_path, write_binary, write_images
):
    pictures, batches = write_images(tmp_path / "pictures"), write_binary(tmp_path / "batches")
    for path, name in ((pictures, "folder"), (batches, "cifar10")):
        found = load_data(str(path))
        assert found.name == name
        assert prints(found) == prints(load_data(name, path))
        assert prints(found) == prints(load_data(f"{name}:{path}"))
        assert locate(str(path)) == located(name, str(path))


def test_a_located_data_set_is_found_from_any_working_directory(
    tmp_path, monkeypatch, write_images
):
    write_images(tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    for home in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(home, str(tmp_path))
    path = str(tmp_path / "pictures")
    for place in ("pictures", "./pictures", "~/pictures"):
        assert locate(place, size=16, channels=1) == located("folder", path, 16, 1)
        assert locate("folder", place)["path"] == locate(f"folder:{place}")["path"] == path
    assert locate("digits") == located("digits")


def test_a_source_before_a_path_reads_it_whatever_it_looks_like(
    tmp_path, write_binary, write_images
):
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
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / name} {problem}; give a folder with one subfolder per")
    assert all(entry.layout in message for entry in SOURCES.values())
    assert all(name in message for name in PUBLISHED)


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
    with pytest.raises(UserError, match="or a folder of arrays, or"):
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


# --- where CIFAR-10 is looked for ----------------------------------------------------------------


def test_a_given_path_comes_before_the_environment_and_that_before_the_cache(
    tmp_path, monkeypatch, cache, write_binary
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
    tmp_path, monkeypatch, cache, write_binary
):
    write_binary(cache)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"given path .*empty holds no CIFAR-10; give a path"):
        load_data(path=tmp_path / "empty")
    with pytest.raises(UserError, match=r"given path .*absent does not exist"):
        load_data(path=tmp_path / "absent")
    monkeypatch.setenv("LEANRES_DATA", str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"\$LEANRES_DATA .*empty holds no CIFAR-10"):
        load_data()


def test_a_missing_folder_in_the_environment_is_skipped_and_noted(
    tmp_path, monkeypatch, cache, write_binary
):
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


def test_a_download_lands_in_the_cache_and_is_read_from_there(
    tmp_path, monkeypatch, cache, write_binary
):
    def fake(target: Path, *_: object, **__: object) -> Path:
        target.parent.mkdir(parents=True)
        with tarfile.open(target, "w:gz") as tar:
            tar.add(write_binary(tmp_path / "made"), "cifar-10-batches-bin")
        return target

    with pytest.MonkeyPatch.context() as network:
        network.setattr(published, "download", fake)
        first = load_data()
    again = load_data(download=False)
    assert prints(first) == prints(again)
    assert again.train.images.shape == (5 * ROWS, 3, 32, 32)


def test_a_complete_set_that_was_decoded_before_is_found_without_its_folder(
    tmp_path, monkeypatch, write_binary
):
    counts = {"train": 5 * ROWS, "test": ROWS}
    monkeypatch.setattr(cifar10, "CIFAR10", replace(cifar10.CIFAR10, counts=counts))
    folder = write_binary(tmp_path / "usb_stick")
    expected = prints(load_data(path=folder))
    folder.rename(tmp_path / "unplugged")
    found = load_data(download=False)
    assert prints(found) == expected
    assert "usb_stick" in found.source


def test_an_incomplete_cifar10_is_noted_and_never_taken_from_the_cache(tmp_path, write_binary):
    data = load_data(path=write_binary(tmp_path / "part"))
    assert any(
        "100 train and 20 test images, not 50,000 train and 10,000 test" in n for n in data.notes
    )
    with pytest.raises(UserError, match="not found"):
        load_data(download=False)


# --- the digits ----------------------------------------------------------------------------------


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


@pytest.mark.parametrize("source", ["npz", "idx", "parquet", "table", "folder"])
def test_a_single_class_is_refused_by_every_source(tmp_path, monkeypatch, source):
    path = tmp_path / ("x.npz" if source == "npz" else "x")
    if source == "table":
        layouts.write_table(path, "file,label\n" + "\n".join(f"{i},cat" for i in range(20)))
    elif source == "parquet":
        layouts.write_shard(path / "a.parquet", layouts.pixels(0), {"label": ["cat"] * 20})
    elif source == "folder":
        (path / "cat").mkdir(parents=True)
        (path / "cat" / "0.png").write_bytes(layouts.png(layouts.pixels(0)[0]))
    else:
        monkeypatch.setattr(layouts, "labels", lambda n=20, k=10: np.zeros(n, np.int64))
        layouts.write_npz(path) if source == "npz" else layouts.write_idx(path)
    with pytest.raises(UserError, match=r"one class.*give at least two classes") as caught:
        load_data(f"{source}:{path}")
    assert str(path) in str(caught.value)


def test_a_single_class_of_arrays_is_refused():
    with pytest.raises(UserError, match="one class, 'cat': give at least two classes"):
        Dataset.from_arrays(layouts.pixels(0), ["cat"] * 20)


def test_the_note_on_a_held_out_test_says_why_it_is_more_than_a_fifth():
    x = layouts.pixels(0, 40)
    tiny = Dataset.from_arrays(x, np.arange(40) % 20)
    count = len(tiny.test)
    assert count == 20  # one of the two of each class
    assert f"{count} of 40 images are held out (more than a fifth: pixels decide" in tiny.notes[0]
    usual = Dataset.from_arrays(layouts.pixels(0, 400, (8, 8, 3)), np.arange(400) % 2)
    assert usual.notes == (f"no test split: {len(usual.test)} of 400 images are held out",)
