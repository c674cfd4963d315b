"""Images without labels: which files are found, under which names, and what batches hold."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leanres.data.batch_files import is_batch, open_batch
from leanres.data.unlabelled import UnlabelledImage, find_unlabelled
from leanres.errors import UserError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (7, 8, 8, 3), np.uint8)
PLANES = RGB.transpose(0, 3, 1, 2)
GREY = RNG.integers(0, 256, (7, 8, 8), np.uint8)


def read_all(*paths: Path, size: int = 8) -> list[UnlabelledImage]:
    return [image for chunk in find_unlabelled(paths).read(size) for image in chunk]


def pixels_of(path: Path) -> np.ndarray:
    return np.stack([image.pixels for image in read_all(path)])


@pytest.fixture
def tree(tmp_path) -> Path:
    """a/0.png, a/deep/2.png, a/10.png, b/0.png, and what is no image."""
    for name in ("a/0.png", "a/10.png", "a/deep/2.png", "b/0.png", ".hidden/0.png", "a/.1.png"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RGB[len(name) % 7]).save(path)
    (tmp_path / "tree" / "notes.txt").write_text("x")
    return tmp_path / "tree"


def test_a_folder_is_entered_and_ids_are_paths_in_it(tree):
    images = read_all(tree)
    assert [image.id for image in images] == ["a/0.png", "a/10.png", "a/deep/2.png", "b/0.png"]
    assert images[3].path == tree / "b" / "0.png"
    np.testing.assert_array_equal(images[0].pixels, RGB[len("a/0.png") % 7])
    assert len(find_unlabelled([tree])) == 4


def test_ids_of_several_places_begin_with_the_place(tree, monkeypatch):
    monkeypatch.chdir(tree)
    assert [i.id for i in read_all(Path("a"), Path("b"))] == [
        *("a/0.png", "a/10.png", "a/deep/2.png"),
        "b/0.png",
    ]
    np.save("c.npy", RGB[:2])
    mixed = [i.id for i in read_all(Path("b/0.png"), Path("c.npy"), Path("b"))]
    assert mixed == ["b/0.png", "c.npy/0", "c.npy/1", "b/0.png"]
    assert len(find_unlabelled(["b/0.png", "c.npy", "b"])) == 4


def test_a_link_to_a_folder_around_it_is_not_followed(tree):
    (tree / "a" / "loop").symlink_to(tree, target_is_directory=True)
    (tree / "linked").symlink_to(tree / "b", target_is_directory=True)
    assert [i.id for i in read_all(tree)][-1] == "linked/0.png"
    assert len(find_unlabelled([tree])) == 5


def test_stems_are_ids_where_they_differ(tree):
    (tree / "b" / "0.png").rename(tree / "b" / "1.png")
    found = find_unlabelled([tree], "stem")
    assert [i.id for chunk in found.read(8) for i in chunk] == ["0", "10", "2", "1"]
    (tree / "b" / "2.jpeg").write_bytes(b"")
    with pytest.raises(UserError, match=r"a/deep/2\.png and b/2\.jpeg have the same stem"):
        find_unlabelled([tree], "stem")


def as_npy(array, path):
    np.save(path, array)


def as_npz(array, path):
    np.savez(path, images=array, labels=np.arange(len(array))[:, None])


def as_npz_of_splits(array, path):
    np.savez_compressed(path, train_images=array[:2], test_images=array, test_labels=np.arange(7))


def as_pickle(array, path):
    path.write_bytes(pickle.dumps({b"data": array, b"ids": np.arange(7)}, protocol=4))


def as_new_pickle(array, path):
    path.write_bytes(pickle.dumps({b"data": array}, protocol=5))  # Python's default since 3.14


def as_old_pickle(array, path):
    path.write_bytes(pickle.dumps({"data": array, "labels": [1] * 7}, protocol=2))


LAYOUTS = {
    "channels last": (RGB, RGB),
    "planes": (PLANES, RGB),
    "rows": (PLANES.reshape(7, -1), RGB),
    "grey": (GREY, GREY[..., None].repeat(3, 3)),
    "rows of grey": (GREY.reshape(7, -1), GREY[..., None].repeat(3, 3)),
    "floats to 1": (RGB.astype(np.float32) / 255, RGB),
    "floats to 255": (RGB.astype(np.float64), RGB),
    "int64": (RGB.astype(np.int64), RGB),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(
    "save", [as_npy, as_npz, as_npz_of_splits, as_pickle, as_new_pickle, as_old_pickle]
)
def test_a_batch_of_any_layout_and_file_has_its_images(tmp_path, save, name):
    array, expected = LAYOUTS[name]
    path = tmp_path / ("batch.npy" if save is as_npy else "batch")
    save(np.ascontiguousarray(array), path)
    path = next(tmp_path.iterdir())  # numpy adds .npz
    assert is_batch(path)
    np.testing.assert_array_equal(pixels_of(path), expected)
    assert [image.id for image in read_all(path)] == [str(i) for i in range(7)]


def test_a_batch_is_cropped_and_resized_as_files_are(tmp_path):
    wide = RNG.integers(0, 256, (2, 20, 31, 3), np.uint8)
    np.save(tmp_path / "wide.npy", wide)
    Image.fromarray(wide[1]).save(tmp_path / "wide.png")
    (one,) = read_all(tmp_path / "wide.png")
    np.testing.assert_array_equal(read_all(tmp_path / "wide.npy")[1].pixels, one.pixels)


def test_a_batchs_own_ids_are_its_ids(tmp_path):
    names = [f"image {i}" for i in range(7)]
    np.savez(tmp_path / "a.npz", data=RGB, ids=np.array(names))
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({b"data": RGB, b"ids": list(range(9, 2, -1))}))
    assert [i.id for i in read_all(tmp_path / "a.npz")] == names
    assert [i.id for i in read_all(tmp_path / "b.pkl")] == list("9876543")


def test_floats_are_scaled_by_the_whole_batch_and_not_by_its_parts(tmp_path):
    values = np.zeros((1200, 4, 4, 3), np.float32)
    values[:600], values[1199] = 1, 200  # the first parts alone look like floats to 1
    np.save(tmp_path / "dark.npy", values)
    np.testing.assert_array_equal(
        np.stack([i.pixels for i in read_all(tmp_path / "dark.npy", size=4)]), values
    )


def test_a_single_image_is_a_batch_of_one(tmp_path):
    np.save(tmp_path / "one.npy", RGB[0])
    np.testing.assert_array_equal(pixels_of(tmp_path / "one.npy"), RGB[:1])


class Evil:
    def __reduce__(self):
        return os.system, ("echo executed",)


def npy_bytes(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


HUGE = npy_bytes(RGB).replace(b"(7, 8, 8, 3)", b"(7, 8, 9**9)")
OBJECTS = npy_bytes(np.array([Evil()], dtype=object))
MANY_OBJECTS = npy_bytes(np.full((2, 8, 8), Evil(), dtype=object))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.npy", b"", "truncated or corrupt"),
        ("a.npy", npy_bytes(RGB)[:-1], "truncated or corrupt"),
        ("a.npy", npy_bytes(RGB).replace(b"(7, 8, 8, 3)", b"(7, 8,888,3)"), "its header says"),
        ("a.npy", HUGE, "truncated or corrupt"),
        ("a.npy", OBJECTS, "holds object: give numbers"),
        ("a.npy", npy_bytes(np.arange(5)), "shape"),
        ("a.npy", npy_bytes(RGB - 1.0), "values from -1 to 254"),
        ("a.npz", zipped(images=MANY_OBJECTS), "holds object: give numbers"),
        ("a.npz", zipped(images=npy_bytes(RGB)[:-1]), r"\(images\) is truncated or corrupt"),
        ("a.npz", zipped(labels=npy_bytes(np.arange(7))), r"no array of images \(labels\)"),
        ("a.npz", zipped(b=npy_bytes(RGB), c=npy_bytes(RGB)), r"several arrays .* \(b, c\)"),
        ("a.npz", b"PK\3\4 and nothing", "truncated or corrupt"),
        ("a.npz", zipped(x=npy_bytes(RGB), ids=npy_bytes(np.arange(6))), r"ids of shape \(6,\)"),
        ("a.pkl", pickle.dumps({b"data": Evil()}), "names posix.system"),
        ("a.pkl", pickle.dumps(RGB), "not the dict"),
        ("a.pkl", pickle.dumps({b"labels": [1, 2]}), "no array of images"),
        ("a", pickle.dumps({b"data": RGB})[:-20], "truncated or corrupt"),
    ],
)
def test_a_batch_that_cannot_be_read_is_one_line_with_its_name(
    tmp_path, capfd, name, content, problem
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=problem) as refusal:
        find_unlabelled([tmp_path / name])
    assert str(refusal.value).startswith(str(tmp_path / name))
    assert len(str(refusal.value).splitlines()) == 1
    assert "executed" not in capfd.readouterr().out


def test_a_batch_that_unpacks_to_too_much_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("leanres.data.batch_files.MAX_BYTES", 1000)
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((20, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"a\.npz \(images\) unpacks to 3,968 bytes: give one of"):
        open_batch(tmp_path / "a.npz")


def test_mutated_batches_are_read_or_refused(tmp_path):
    """A thousand of each kind with some bytes of their heads changed: nothing but UserError."""
    kinds = {
        "npy": npy_bytes(RGB[:2]),
        "npz": zipped(images=npy_bytes(RGB[:2])),
        "pkl": pickle.dumps({b"data": RGB[:2], b"ids": [1, 2]}, protocol=4),
    }
    rng = np.random.default_rng(1)
    for kind, content in kinds.items():
        path, refused = tmp_path / f"a.{kind}", 0
        for _ in range(1000):
            changed = np.frombuffer(content, np.uint8).copy()
            places = rng.integers(0, min(len(changed), 250), rng.integers(1, 4))
            changed[places] = rng.integers(0, 256, len(places))
            path.unlink(missing_ok=True)  # quicker than to write over it
            path.write_bytes(changed.tobytes())
            try:
                open_batch(path).read(slice(0, 2), 8)
            except UserError:
                refused += 1
        assert refused > 100, kind
