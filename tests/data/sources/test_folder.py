"""Folders of classes and splits: what is read, what is skipped and counted, what is refused."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from leanres.data.image_files import image_files
from leanres.data.sources import load_data
from leanres.data.sources.folder import list_folder, read_folder
from leanres.data.sources.source import LoadOptions
from leanres.errors import UserError


def noise(seed: int, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> Image.Image:
    """A random picture of (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def make_class(folder: Path, count: int, seed: int = 0) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        noise(1000 * seed + i).save(folder / f"{i}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, ten images each."""
    for seed, name in enumerate(("cat", "dog")):
        make_class(tmp_path / "images" / name, 10, seed)
    return tmp_path / "images"


def load(folder: Path, size: int = 32, strict: bool = False):
    return read_folder(list_folder(folder), LoadOptions(folder, folder, size, strict=strict))


# --- classes and splits ---------------------------------------------------------------------


def test_every_pixel_of_a_class_folder_is_read_and_a_fifth_of_the_images_becomes_test(root):
    data = load(root)
    assert data.train.classes == ("cat", "dog")
    assert (len(data.train), len(data.test)) == (13, 7)
    assert torch.bincount(data.test.labels).min() > 0
    expected = {np.asarray(noise(1000 * c + i)).tobytes(): c for c in (0, 1) for i in range(10)}
    for split in (data.train, data.test):
        for image, label in zip(split.images, split.labels, strict=True):
            assert expected.pop(image.permute(1, 2, 0).numpy().tobytes()) == label
    assert not expected
    assert any("7 of 20" in note for note in data.notes)


def test_split_folders_become_the_splits(tmp_path):
    for seed, (split, count) in enumerate((("train", 4), ("Validation", 2), ("test", 3))):
        for c, name in enumerate(("a", "b")):
            make_class(tmp_path / split / name, count, 10 * seed + c)
    data = load(tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (8, 4, 6)
    assert data.train.classes == data.val.classes == data.test.classes == ("a", "b")
    first = data.test.images[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(first, np.asarray(noise(20_000)))


def test_classes_are_in_natural_order_and_a_note_shows_it(tmp_path):
    for name in ("class10", "class2", "Class1"):
        make_class(tmp_path / name, 3)
    data = load(tmp_path)
    assert data.train.classes == ("Class1", "class2", "class10")
    assert any("Class1, class2, class10" in note for note in data.notes)


def test_a_folder_named_train_that_holds_images_is_a_class(tmp_path):
    for seed, name in enumerate(("train", "car", "ship")):
        make_class(tmp_path / name, 5, seed)
    assert load(tmp_path).train.classes == ("car", "ship", "train")


def test_hidden_files_and_other_files_are_skipped_and_counted_and_inner_folders_are_read(root):
    for name in (".DS_Store", "cat/._0.png", "dog/.hidden"):
        (root / name).write_bytes(b"x")
    (root / "cat" / "notes.txt").write_text("x")
    (root / "labels.csv").write_text("x")
    make_class(root / "dog" / "puppies", 2)
    make_class(root / ".git", 2)
    data = load(root, strict=True)
    assert len(data.train) + len(data.test) == 22
    assert {"dog/puppies/0.png", "dog/puppies/1.png"} < {*data.train.files, *data.test.files}
    for what in ("3 hidden files", "1 non-image file", "1 file beside the classes"):
        assert f"{what} skipped" in data.notes


def test_a_folder_beside_the_splits_is_counted(tmp_path):
    for name in ("train/a", "train/b", "test/a", "test/b", "extra"):
        make_class(tmp_path / name, 2)
    assert "1 folder beside the splits skipped" in load(tmp_path).notes


def test_links_to_images_and_to_classes_are_followed(root, tmp_path):
    make_class(tmp_path / "else" / "owl", 4, 7)
    (root / "owl").symlink_to(tmp_path / "else" / "owl", target_is_directory=True)
    (root / "cat" / "linked.png").symlink_to(tmp_path / "else" / "owl" / "0.png")
    data = load(root, strict=True)
    assert data.train.classes == ("cat", "dog", "owl")
    assert len(data.train) + len(data.test) == 25


def test_names_may_have_any_characters_and_notes_stay_on_one_line(tmp_path):
    names = {"猫 と 犬": "猫 と 犬", "100 % {x}": "100 % {x}"}  # as stored -> as shown
    if sys.platform == "linux":  # elsewhere the file system refuses these
        names |= {"line\nbreak": "line?break", os.fsdecode(b"bad\xff"): "bad?"}
    for name in names:
        make_class(tmp_path / name, 2)
        bad = "é ?\n.PNG" if sys.platform == "linux" else "é.PNG"
        (tmp_path / name / bad).write_bytes(b"no image")
    data = load(tmp_path)
    assert set(data.train.classes) == set(names.values())
    assert len(data.train.fingerprint) == 64
    assert all(note.isprintable() for note in data.notes)
    assert any(note.startswith(f"{len(names)} unreadable images skipped") for note in data.notes)


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        ({}, "no class folders"),
        ({"only": 3}, "one class folder, 'only'"),
        ({"a": 3, "b": 0}, r"b has no images"),
        ({"val/a": 2, "val/b": 2}, "no train folder"),
        ({"train/a": 2, "train/b": 2, "test/a": 2, "test/c": 2}, "'b', 'c'"),
        ({"train/a": 2, "train/b": 2, "val/a": 2, "val/b": 0}, r"b has no images"),
        ({"train/a": 2, "train/b": 2, "val": 0}, r"val has no class folders"),
        ({"a": 1, "b": 5}, "'a' has fewer than 2"),
    ],
)
def test_a_folder_without_classes_to_learn_is_refused_in_one_line(tmp_path, folders, words):
    for seed, (name, count) in enumerate(folders.items()):
        make_class(tmp_path / "root" / name, count, seed)
    (tmp_path / "root").mkdir(exist_ok=True)
    with pytest.raises(UserError, match=words) as caught:
        load(tmp_path / "root")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "root") in str(caught.value)


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for name in ("file", "absent"):
        with pytest.raises(UserError, match="not a folder"):
            list_folder(tmp_path / name)


# --- unreadable images ----------------------------------------------------------------------


@pytest.fixture
def damaged(root, header_only_png) -> list[str]:
    """Adds six files, each damaged in another way, to class cat; their names."""
    whole = (root / "cat" / "0.png").read_bytes()
    (root / "cat" / "a_cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "cat" / "b_empty.jpg").write_bytes(b"")
    (root / "cat" / "c_text.jpg").write_text("<html>not found</html>")
    (root / "cat" / "d_link.png").symlink_to(root / "nowhere")
    (root / "cat" / "e_flip.png").write_bytes(whole[:200] + b"\x00" * 50 + whole[250:])
    header_only_png(root / "cat" / "f_huge.png", 6000, 5000)
    return ["a_cut.png", "b_empty.jpg", "c_text.jpg", "d_link.png", "e_flip.png", "f_huge.png"]


def test_corrupt_images_are_skipped_named_and_counted(root, damaged):
    data = load(root)
    assert len(data.train) + len(data.test) == 20
    (note,) = [note for note in data.notes if "unreadable" in note]
    assert note.startswith("6 unreadable images skipped")
    assert all(name in note for name in damaged[:5])
    assert note.endswith("and 1 more")


@pytest.mark.usefixtures("damaged")
def test_strict_stops_at_the_first_corrupt_image(root):
    with pytest.raises(UserError, match=r"a_cut.png cannot be read"):
        load(root, strict=True)


def test_a_class_whose_images_are_all_corrupt_is_refused(root):
    for path in (root / "dog").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(UserError, match=r"'dog' of .* none of its images can be read"):
        load(root)


# --- other layouts of folders ---------------------------------------------------------------


def test_val_and_validation_together_are_one_split_and_a_note_says_so(tmp_path):
    for seed, name in enumerate(("training", "val", "validation", "testing")):
        for c in ("a", "b"):
            make_class(tmp_path / name / c, 3, 10 * seed + (c == "b"))
    data = load(tmp_path)
    assert [len(split) for split in data.splits.values()] == [6, 12, 6]
    assert "the folders val and validation together are val" in data.notes


@pytest.mark.parametrize("inner", ["", "unknown"])
def test_a_test_folder_without_classes_is_named_with_the_way_out(tmp_path, inner):
    make_class(tmp_path / "train" / "a", 3)
    make_class(tmp_path / "train" / "b", 3, 1)
    (tmp_path / "test").mkdir()
    make_class(tmp_path / "test" / (inner or "x"), 4, 2)
    if not inner:
        for path in (tmp_path / "test" / "x").iterdir():
            path.rename(tmp_path / "test" / path.name)
        (tmp_path / "test" / "x").rmdir()
    data = load(tmp_path)
    assert [*data.splits] == ["train"]
    told = f"test has 4 images without classes: not used; leanres predict RUN {tmp_path / 'test'}"
    assert any(note.startswith(told) for note in data.notes)


def test_test_folders_alone_are_for_testing(tmp_path):
    for c in ("a", "b"):
        make_class(tmp_path / "test" / c, 3, c == "b")
    assert [*load(tmp_path).splits] == ["test"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep one form of a name")
def test_a_name_in_two_unicode_forms_is_one_class(tmp_path):
    make_class(tmp_path / "caf\u00e9", 3)
    make_class(tmp_path / "cafe\u0301", 3, 1)
    make_class(tmp_path / "tea", 3, 2)
    data = load(tmp_path)
    assert data.train.classes == ("caf\u00e9", "tea")
    assert len(data.train) + len(data.test) == 9


def test_more_than_1000_classes_are_refused_before_any_is_read(tmp_path):
    for i in range(1001):
        (tmp_path / f"{i}").mkdir()
    with pytest.raises(UserError, match="has 1,001 class folders: at most 1,000"):
        load(tmp_path)


def test_links_in_a_circle_end(root):
    (root / "cat" / "again").symlink_to(root / "cat", target_is_directory=True)
    data = load(root)
    assert len(data.train) + len(data.test) == 20
    assert "1 link to a folder above skipped" in data.notes


def test_decoding_reports_its_progress(root):
    seen: list[tuple[str, int, int]] = []
    options = LoadOptions(root, root, progress=lambda *report: seen.append(report))
    read_folder(list_folder(root), options)
    assert seen[-1] == ("decoding images", 20, 20)


# --- grey values out of range -----------------------------------------------------------------


def greys(folder: Path, values: np.ndarray, end: str = "png") -> Path:
    """Two classes of pictures of one value each, (N,) as their type says."""
    for i, value in enumerate(values):
        path = folder / f"class{i % 2}" / f"{i}.{end}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), value)).save(path)
    return folder


def pixel_values(folder: Path, size: int = 8) -> tuple[dict[str, int], list[str]]:
    data = load(folder, size)
    splits = [split for split in data.splits.values() if split]
    found = {
        Path(f).stem: int(image[0, 0, 0])
        for s in splits
        for f, image in zip(s.files, s.images, strict=True)
    }
    return found, [note for note in data.notes if "grey image" in note]


def test_twelve_bits_in_sixteen_are_scaled_alike_in_the_whole_set_and_named(tmp_path):
    values = np.array([0, 100, 2000, 4095, 4080, 17], np.uint16)
    found, (note,) = pixel_values(greys(tmp_path / "set", values))
    assert [found[str(i)] for i in range(6)] == [round(v * 255 / 4095) for v in values.tolist()]
    assert note == (
        "6 16-bit grey images have values from 0 to 4095: 0 is read as black, 4095 as white"
    )


def test_a_dark_image_of_sixteen_bits_stays_dark(tmp_path):
    values = np.array([0, 100, 2000, 65535, 30000, 17], np.uint16)
    found, notes = pixel_values(greys(tmp_path / "set", values))
    assert [found[str(i)] for i in range(6)] == [round(v / 257) for v in values.tolist()]
    assert notes == []


def test_floats_above_255_are_not_white_in_silence(tmp_path):
    values = np.array([0, 1, 300, 4000, 65535, 20000], np.float32)
    found, (note,) = pixel_values(greys(tmp_path / "set", values, "tif"))
    assert [found[str(i)] for i in range(6)] == [round(v / 257) for v in values.tolist()]
    assert "float grey images have values from 0 to 65535: 0 is read as black, 65535" in note


def test_what_is_clipped_is_named(tmp_path):
    values = np.array([-5, 1, 0.5, 0.25, 0, 1], np.float32)
    found, (note,) = pixel_values(greys(tmp_path / "set", values, "tif"))
    assert (found["0"], found["1"]) == (0, 255)
    assert "0 is read as black, 1 as white, and what is outside is clipped, in 1 of them" in note


def test_whites_that_are_given_replace_the_sets_own_and_clip_what_is_outside(tmp_path):
    values = np.array([0, 100, 2000, 4095, 50000, 17], np.uint16)
    root = greys(tmp_path / "set", values)
    own = load_data(root, cache=tmp_path / "cache")
    assert own.whites == {"integer": 65535}
    data = load_data(root, cache=tmp_path / "cache", whites={"integer": 4095, "float": 1})
    assert data.whites["integer"] == 4095
    assert any(note.endswith("what is outside is clipped, in 1 of them") for note in data.notes)
    found = {
        Path(f).stem: int(image[0, 0, 0])
        for split in data.splits.values()
        for f, image in zip(split.files, split.images, strict=True)
    }
    assert found == {str(i): min(round(v * 255 / 4095), 255) for i, v in enumerate(values.tolist())}
    again = load_data(root, cache=tmp_path / "cache")  # neither takes the other's cache file
    assert again.train.fingerprint == own.train.fingerprint
    assert len([*(tmp_path / "cache").glob("folder-*")]) == 2
    with pytest.raises(UserError, match=r"whites = .*give a number for integer, float"):
        load_data(root, whites={"int": 4095})


# --- links: an image has one class --------------------------------------------------------------


@pytest.fixture
def linked(tmp_path) -> Path:
    """A folder of two classes, and a third class outside of it that is linked into it."""
    for seed, place in enumerate(("set/c0", "set/c1", "pool/c2")):
        make_class(tmp_path / place, 6, seed)
    (tmp_path / "set" / "c2").symlink_to("../pool/c2")
    return tmp_path / "set"


@pytest.mark.parametrize(
    ("link", "target", "kind"),
    [
        ("c0/all", "..", "folder above"),
        ("c0/all", "../..", "folder above"),
        ("c0/sub/all", "../..", "folder above"),
        ("c2/all", "../../set", "folder above"),  # c2 is elsewhere, and below it as a link
        ("c0/other", "../c1", "another class"),
        ("c0/other", "../c2", "another class"),
        ("c0/other", "../../pool", "another class"),
        ("c0/other", "../c1/deep", "another class"),
    ],
)
def test_no_link_brings_images_of_other_classes_into_a_class(linked, link, target, kind):
    before = list_folder(linked).files["all"]
    (linked / "c1" / "deep").mkdir()
    noise(99).save(linked / "c1" / "deep" / "99.png")
    (linked / link).parent.mkdir(exist_ok=True)
    (linked / link).symlink_to(target)
    listing = list_folder(linked)
    own = {
        name: [p for p in files if "deep" not in p.parts]
        for name, files in listing.files["all"].items()
    }
    assert own == before
    assert sum(listing.skipped.values()) >= 1
    assert all("link" in what for what in listing.skipped if listing.skipped[what])
    assert any(kind in what for what in listing.skipped)


def test_a_link_within_a_class_and_one_to_images_elsewhere_are_followed(linked, tmp_path):
    make_class(tmp_path / "more", 3, seed=7)
    (linked / "c0" / "more").symlink_to(tmp_path / "more")
    (linked / "c1" / "one.png").symlink_to(tmp_path / "more" / "0.png")
    counts = {name: len(files) for name, files in list_folder(linked).files["all"].items()}
    assert counts == {"c0": 9, "c1": 7, "c2": 6}


@pytest.mark.parametrize(
    ("link", "target", "words"),
    [
        ("c3", "c1", "c3 and .*c1 are one folder: remove the link"),
        ("c3", ".", "c3 is a link to a folder above: remove it"),
        ("c3", "../..", "c3 is a link to a folder above: remove it"),
        ("c3", "c1/deep", "c3 is a part of .*c1: remove the link"),
        ("c3", "../pool", "c2 is a part of .*c3: remove the link"),
    ],
)
def test_a_class_folder_that_is_a_link_to_another_is_refused(linked, link, target, words):
    (linked / "c1" / "deep").mkdir()
    (linked / link).symlink_to(target)
    with pytest.raises(UserError, match=words):
        list_folder(linked)


def test_a_test_folder_that_is_a_link_to_train_is_refused(tmp_path):
    for name in ("cat", "dog"):
        make_class(tmp_path / "train" / name, 3)
    (tmp_path / "test").symlink_to("train")
    with pytest.raises(UserError, match="are one folder"):
        list_folder(tmp_path)


def test_images_to_classify_and_those_of_a_table_come_from_below_their_folder_alone(linked):
    (linked / "c0" / "up").symlink_to("..")
    skipped = Counter()
    assert len(image_files(linked / "c0", skipped)) == 6
    assert skipped == {"link{s} to a folder above": 1}
