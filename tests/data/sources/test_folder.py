from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from leanres.data.sources.folder import (
    image_files,
    natural_key,
    read,
    read_image,
    read_image_or_reason,
    scan,
)
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
    return read(scan(folder), size, strict=strict)


def header_only_png(path: Path, width: int, height: int) -> None:
    """A PNG that announces its size and holds no pixels."""
    body = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    out = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", body), (b"IDAT", b"")):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        out += struct.pack(">I", len(data)) + kind + data + crc
    path.write_bytes(out)


# the tree


def test_a_folder_of_classes_is_read_pixel_by_pixel_and_a_fifth_becomes_the_test(root):
    data = load(root)
    assert data.train.classes == ("cat", "dog")
    assert (len(data.train), len(data.test)) == (16, 4)
    assert torch.bincount(data.test.labels).tolist() == [2, 2]
    expected = {np.asarray(noise(1000 * c + i)).tobytes(): c for c in (0, 1) for i in range(10)}
    for split in (data.train, data.test):
        for image, label in zip(split.images, split.labels, strict=True):
            assert expected.pop(image.permute(1, 2, 0).numpy().tobytes()) == label
    assert not expected
    assert any("4 of 20" in note for note in data.notes)


def test_split_folders_are_taken_as_they_are(tmp_path):
    for seed, (split, count) in enumerate((("train", 4), ("Validation", 2), ("test", 3))):
        for c, name in enumerate(("a", "b")):
            make_class(tmp_path / split / name, count, 10 * seed + c)
    data = load(tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (8, 4, 6)
    assert data.train.classes == data.val.classes == data.test.classes == ("a", "b")
    first = data.test.images[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(first, np.asarray(noise(20_000)))


def test_classes_come_in_natural_order_and_the_order_is_shown(tmp_path):
    for name in ("class10", "class2", "Class1"):
        make_class(tmp_path / name, 3)
    data = load(tmp_path)
    assert data.train.classes == ("Class1", "class2", "class10")
    assert any("Class1, class2, class10" in note for note in data.notes)


def test_natural_order_is_total_and_knows_mixed_names():
    names = ["b", "10", "9", "a10b", "a9c", "a", "A2", "²", "a09"]
    assert sorted(names, key=natural_key) == ["9", "10", "a", "A2", "a09", "a9c", "a10b", "b", "²"]


def test_a_class_named_train_is_a_class_where_it_holds_images_itself(tmp_path):
    for seed, name in enumerate(("train", "car", "ship")):
        make_class(tmp_path / name, 5, seed)
    assert load(tmp_path).train.classes == ("car", "ship", "train")


def test_hidden_files_other_files_and_inner_folders_are_skipped_and_counted(root):
    for name in (".DS_Store", "cat/._0.png", "dog/.hidden"):
        (root / name).write_bytes(b"x")
    (root / "cat" / "notes.txt").write_text("x")
    (root / "labels.csv").write_text("x")
    make_class(root / "dog" / "puppies", 2)
    make_class(root / ".git", 2)
    data = load(root, strict=True)
    assert len(data.train) + len(data.test) == 20
    counted = ["3 hidden files", "1 non-image file", "1 file beside the classes"]
    for what in (*counted, "1 folder inside a class"):
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


def test_names_of_any_letters_are_fine_and_notes_stay_one_line(tmp_path):
    for name in ("猫 と 犬", "line\nbreak", "100 % {x}", os.fsdecode(b"bad\xff")):
        make_class(tmp_path / name, 2)
        (tmp_path / name / "é ?\n.PNG").write_bytes(b"no image")
    data = load(tmp_path)
    assert set(data.train.classes) == {"猫 と 犬", "line?break", "100 % {x}", "bad?"}
    assert len(data.train.fingerprint) == 64
    assert all(note.isprintable() for note in data.notes)
    assert any(note.startswith("4 unreadable images skipped") for note in data.notes)


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        ({}, "no class folders"),
        ({"only": 3}, "one class folder, 'only'"),
        ({"a": 3, "b": 0}, r"b has no images"),
        ({"test/a": 2, "test/b": 2}, "no train folder"),
        ({"train/a": 2, "train/b": 2, "test/a": 2, "test/c": 2}, "'b', 'c'"),
        ({"train/a": 2, "train/b": 2, "val/a": 2, "val/b": 0}, r"b has no images"),
        ({"train/a": 2, "train/b": 2, "val": 0}, r"val has no class folders"),
        ({"a": 1, "b": 5}, "'a' has fewer than 2"),
    ],
)
def test_a_tree_that_cannot_be_learned_from_is_refused_in_one_line(tmp_path, folders, words):
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
            scan(tmp_path / name)


def test_the_images_of_one_folder_are_listed_and_read_in_natural_order(root):
    (root / "cat" / "10.png").write_bytes(b"x")
    (root / "cat" / "notes.txt").write_text("x")
    files = image_files(root / "cat")
    assert [path.name for path in files] == [f"{i}.png" for i in range(11)]
    *images, reason = read_image_or_reason(files, 32)
    for i, image in enumerate(images):
        np.testing.assert_array_equal(image, np.asarray(noise(i)))
    assert isinstance(reason, str)
    assert "10.png" in reason


# bad images among good ones


def damaged_copies(root: Path) -> list[str]:
    """Six damaged files of different kinds in class cat; their names."""
    whole = (root / "cat" / "0.png").read_bytes()
    (root / "cat" / "a_cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "cat" / "b_empty.jpg").write_bytes(b"")
    (root / "cat" / "c_text.jpg").write_text("<html>not found</html>")
    (root / "cat" / "d_link.png").symlink_to(root / "nowhere")
    (root / "cat" / "e_flip.png").write_bytes(whole[:200] + b"\x00" * 50 + whole[250:])
    header_only_png(root / "cat" / "f_huge.png", 6000, 5000)
    return ["a_cut.png", "b_empty.jpg", "c_text.jpg", "d_link.png", "e_flip.png", "f_huge.png"]


def test_corrupt_images_among_good_ones_are_named_and_counted(root):
    names = damaged_copies(root)
    data = load(root)
    assert len(data.train) + len(data.test) == 20
    (note,) = [note for note in data.notes if "unreadable" in note]
    assert note.startswith("6 unreadable images skipped")
    assert all(name in note for name in names[:5])
    assert note.endswith("and 1 more")


def test_strict_stops_at_the_first_corrupt_image(root):
    damaged_copies(root)
    with pytest.raises(UserError, match=r"a_cut.png cannot be read"):
        load(root, strict=True)


def test_a_class_whose_images_are_all_corrupt_is_refused(root):
    for path in (root / "dog").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(UserError, match=r"'dog' of .* none of its images can be read"):
        load(root)


@pytest.mark.parametrize(
    "size", [(5001, 5000), (10_000, 10_000), (20_000, 20_000), (30_000_000, 1)]
)
def test_more_than_25_megapixels_are_refused_by_the_header_alone(tmp_path, size):
    header_only_png(tmp_path / "huge.png", *size)  # decoding it would fail with another message
    with pytest.raises(ValueError, match="megapixels"):
        read_image(tmp_path / "huge.png", 32)


def test_exactly_25_megapixels_are_decoded(tmp_path):
    Image.new("L", (25_000_000 // 2, 2), 90).save(tmp_path / "long.png")
    assert (read_image(tmp_path / "long.png", 8) == 90).all()


# modes and sizes

WHITE, GREY = [255, 255, 255], [128, 128, 128]


@pytest.mark.parametrize(
    ("mode", "colour", "name", "expected"),
    [
        ("1", 1, "x.png", WHITE),
        ("L", 128, "x.png", GREY),
        ("L", 128, "x.JPEG", GREY),
        ("LA", (0, 0), "x.png", WHITE),
        ("RGBA", (255, 0, 0, 0), "x.png", WHITE),
        ("RGBA", (0, 0, 0, 127), "x.webp", GREY),
        ("RGB", (10, 20, 30), "x.bmp", [10, 20, 30]),
        ("CMYK", (0, 0, 0, 127), "x.tiff", GREY),
        ("I;16", 128 * 257, "x.png", GREY),
        ("I;16", 65535, "x.tif", WHITE),
        ("I", 128 * 257, "x.tif", GREY),
        ("F", 0.5, "x.tif", GREY),
        ("F", 128.0, "x.tif", GREY),
        ("P", 0, "x.gif", [0, 0, 0]),
        ("YCbCr", (128, 128, 128), "x.tif", GREY),
    ],
)
def test_any_mode_becomes_rgb_over_white(tmp_path, mode, colour, name, expected):
    Image.new(mode, (40, 40), colour).save(tmp_path / name)
    found = read_image(tmp_path / name, 32)
    assert found.shape == (32, 32, 3)
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_a_transparent_palette_colour_is_white(tmp_path):
    image = Image.new("P", (32, 32), 1)
    image.putpalette([0, 0, 0, 200, 0, 0])
    image.save(tmp_path / "x.png", transparency=1)
    assert (read_image(tmp_path / "x.png", 32) == 255).all()


def test_of_an_animation_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / "x.gif", 32) == [255, 0, 0]).all()


def test_the_exif_orientation_is_applied(tmp_path):
    image = noise(3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be shown 90 degrees clockwise
    image.save(tmp_path / "x.png", exif=exif)
    upright = image.transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png", 32), np.asarray(upright))


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (61, 60), (400, 3), (7, 20)])
def test_the_centre_square_is_kept_and_nothing_is_squashed(tmp_path, size):
    noise(1, size).save(tmp_path / "x.png")
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    square = noise(1, size).crop((left, top, left + side, top + side))
    expected = square.resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png", 32), np.asarray(expected))


def test_downsizing_is_antialiased(tmp_path):
    stripes = np.zeros((256, 256), np.uint8)
    stripes[:, ::2] = 255  # finer than the result can show: it must come out grey
    Image.fromarray(stripes).save(tmp_path / "x.png")
    inner = read_image(tmp_path / "x.png", 32)[:, 4:-4]
    assert np.abs(inner.astype(int) - 128).max() <= 3
