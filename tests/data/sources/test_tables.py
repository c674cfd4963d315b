"""Tables beside images, and the Hub's parquet files: columns, splits, and what is not there."""

from __future__ import annotations

import subprocess
import sys

import layouts
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from layouts import channels_last, labels, pixels, png

from leanres.data.sources import load_data, locate
from leanres.data.split import Dataset
from leanres.errors import UserError

pytestmark = pytest.mark.usefixtures("cache")


def everything(data: Dataset) -> dict[str, str]:
    """File -> class name, of all splits."""
    return {
        file: split.classes[label]
        for split in data.splits.values()
        for file, label in zip(split.files, split.labels.tolist(), strict=True)
    }


# --- a table beside images -----------------------------------------------------------------------


@pytest.mark.parametrize("end", ["csv", "tsv", "parquet"])
def test_a_table_gives_labels_and_splits_of_the_images_beside_it(tmp_path, end):
    folder = layouts.write_table(tmp_path / "set")
    rows = [line.split(",") for line in (folder / "labels.csv").read_text().split("\n")]
    if end != "csv":
        (folder / "labels.csv").unlink()
    if end == "tsv":
        (folder / "labels.tsv").write_text("\n".join("\t".join(row) for row in rows))
    if end == "parquet":
        columns = {name: list(cells) for name, *cells in zip(*rows, strict=True)}
        pq.write_table(pa.table(columns), folder / "labels.parquet")
    data = load_data(folder)
    assert data.train.classes == ("cat", "dog")
    assert (len(data.train), len(data.test)) == (14, 6)
    np.testing.assert_array_equal(channels_last(data.test), pixels(0)[:6])
    np.testing.assert_array_equal(channels_last(data.train), pixels(0)[6:])
    assert data.test.labels.tolist() == [1, 0, 1, 0, 1, 0]
    assert data.test.files == tuple(f"images/{i}.png" for i in range(6))
    assert f"files and labels from labels.{end}" in data.notes


@pytest.mark.parametrize("name", ["images/{}.png", "images/{}", "{}.png", "{}", "images\\{}.png"])
@pytest.mark.parametrize("head", ["file,label", "Filename,Class", "image_id;target", "id,category"])
def test_files_are_found_by_path_or_name_with_extension_or_without(tmp_path, name, head):
    between = ";" if ";" in head else ","
    lines = [head] + [between.join((name.format(i), str(i % 2))) for i in range(20)]
    data = load_data(layouts.write_table(tmp_path / "set", "\n".join(lines), "mine.csv"))
    assert everything(data) == {name.format(i): str(i % 2) for i in range(20)}
    assert any("are held out" in note for note in data.notes)


def test_other_columns_may_be_named_and_resume_finds_them_again(tmp_path):
    lines = ["photo,label,breed"] + [f"{i},x{i % 3},b{i % 2}" for i in range(20)]
    folder = layouts.write_table(tmp_path / "set", "\n".join(lines), "mine.csv")
    name = f"table,file=photo,label=breed:{folder / 'mine.csv'}"
    data = load_data(name)
    assert data.train.classes == ("b0", "b1")
    origin = locate(name)
    assert origin["data"] == "table,file=photo,label=breed"
    again = load_data(origin["data"], origin["path"])
    assert again.train.fingerprint == data.train.fingerprint
    with pytest.raises(UserError, match=r"table,colour=x: give table file=NAME, label=NAME"):
        load_data(f"table,colour=x:{folder}")
    with pytest.raises(UserError, match="no column 'weight': there are label, breed"):
        load_data(f"table,file=photo,label=weight:{folder / 'mine.csv'}")


def test_files_that_are_missing_or_outside_are_named_and_counted(tmp_path):
    layouts.write_table(tmp_path / "set")
    (tmp_path / "secret.png").write_bytes(png(pixels(9)[0]))
    lines = ["file,label"] + [f"images/{i}.png,{i % 2}" for i in range(18)]
    lines += ["../secret.png,1", f"{tmp_path / 'secret.png'},0", "gone.png,0", "images/0.png,0"]
    (tmp_path / "set" / "labels.csv").write_text("\n".join(lines))
    data = load_data(tmp_path / "set")
    assert len(data.train) + len(data.test) == 18
    (note,) = [note for note in data.notes if "unreadable" in note]
    assert note.startswith("3 unreadable images skipped: ../secret.png (outside of the table's fol")
    assert "gone.png (there is no such file)" in note
    assert "1 rows name a file again: used once" in data.notes
    assert "2 images are not in the table: not used" in data.notes
    with pytest.raises(UserError, match="outside of the table's folder"):
        load_data(tmp_path / "set", strict=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2", "which column is the file"),
        ("file,b\n1,2", "which column is the label"),
        ("file,label\n1", "line 2 has 1 cells, not 2"),
        ("file,label\n", "has no row with a file and a label"),
        ("file,file\n1,2", "two columns have the same name"),
        ("file,label\n0,a\n0,b\n", "0 is labelled a and b"),
        ("file,label,split\n0,a,dev\n1,b,holdout", "row 3: split 'holdout': give train, val or"),
        ("", "it has no head: give a line of column names"),
        ("a/0.png,cat\na/1.png,dog", r"its first line is a row \(a/0.png, cat\): put column names"),
        ("file,cat,dog\n0,1,0\n1,0,1", r"columns of 0 and 1 \(cat, dog\): give one column, label"),
        ('file,label\n0,"a\n1,b\n', "unexpected end of data: is a quote not closed"),
        ('"file,label\n0,a\n1,b\n', "unexpected end of data: is a quote not closed"),
        ("file,label\n\xff\x00", "one of its|cells"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_in_one_line(tmp_path, text, words):
    folder = layouts.write_table(tmp_path / "set", text)
    for path in (folder / "labels.csv", folder):  # the table's reason, in its folder too
        with pytest.raises(UserError, match=words) as caught:
            load_data(path)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["labels.csv", "list.csv", "labels.tsv"])
def test_text_of_another_encoding_is_read_where_that_is_certain_and_else_refused(tmp_path, name):
    folder = layouts.write_table(tmp_path / "set")
    text = (folder / "labels.csv").read_text().replace("cat", "c\u00e4t")
    (folder / "labels.csv").unlink()
    text = text.replace(",", "\t") if name.endswith("tsv") else text
    for encoding in ("utf-16", "utf-8-sig", "utf-8"):
        (folder / name).write_text(text, encoding)
        assert load_data(folder).train.classes == ("c\u00e4t", "dog")
    for encoding in ("latin-1", "cp1252", "utf-16-be"):
        (folder / name).write_text(text, encoding)
        with pytest.raises(
            UserError, match=f"{name} is no UTF-8 text: save it|{name}.*no head|col"
        ):
            load_data(folder)


def test_a_table_beside_class_folders_counts_if_it_names_their_images(tmp_path, write_images):
    root = write_images(tmp_path / "images")
    (root / "notes.csv").write_text("id,name,class\n1,ann,a\n2,bob,b\n")
    assert load_data(root).name == "folder"  # its classes were those of the notes
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    rows = "".join(f"{file},{'even' if i % 2 else 'odd'}\n" for i, file in enumerate(files))
    (root / "notes.csv").write_text(f"file,label\n{rows}")
    data = load_data(root)
    assert (data.name, data.train.classes) == ("table", ("even", "odd"))
    assert f"its folders are not taken as classes: folder:{root} reads them" in data.notes
    assert load_data(f"folder:{root}").name == "folder"
    (root / "notes.csv").write_bytes("file,label\n\xe4.png,a\n".encode("latin-1"))
    assert load_data(root).name == "folder"


def test_a_table_beside_split_folders_counts_if_it_names_their_images(tmp_path, write_images):
    for part in ("train", "test"):
        write_images(tmp_path / "set" / part)
    (tmp_path / "set" / "labels.csv").write_text("id,name,class\n1,ann,a\n2,bob,b\n")
    assert load_data(tmp_path / "set").name == "folder"


def test_a_table_of_other_things_beside_class_folders_is_left_alone(tmp_path, write_images):
    root = write_images(tmp_path / "images")
    (root / "notes.csv").write_text("day,weather\n1,rain\n")
    assert load_data(root).name == "folder"


# --- parquet -------------------------------------------------------------------------------------


def test_the_hubs_shards_are_read_by_split_with_their_class_names(tmp_path):
    data = load_data(layouts.write_parquet(tmp_path / "hub"))
    for split, images in ((data.train, pixels(0)), (data.test, pixels(1, 10))):
        np.testing.assert_array_equal(channels_last(split), images)
        assert split.labels.tolist() == labels(len(images)).tolist()
        assert split.classes == tuple(f"class{i}" for i in range(10))
    assert "images from column 'image', labels from 'label'" in data.notes
    assert data.test.files[3] == "data/test-00000-of-00001.parquet row 3"


@pytest.mark.parametrize(
    "names",
    [
        ("train.parquet/part-00000-8f1c.snappy.parquet", "test.parquet/part.0.parquet"),
        ("train/x.parquet/part.0.parquet", "test/x.parquet/split=a/part.0.parquet"),
        ("train-00000-of-00001.parquet/part.0.parquet", "test.parquet"),
        ("train.PARQUET", "test.Parquet"),
    ],
)
def test_a_folder_named_as_a_file_and_an_upper_case_name_are_parquet_too(tmp_path, names):
    """Spark and Dask write a folder x.parquet of parts, beside files that are none."""
    for name, seed, count in zip(names, (0, 1), (20, 10), strict=True):
        columns = {"label": labels(count).tolist()}
        layouts.write_shard(tmp_path / "set" / name, pixels(seed, count), columns)
        if "part" in name:
            (tmp_path / "set" / name).with_name("_SUCCESS").touch()
            (tmp_path / "set" / name).with_name(".part-0.parquet").write_bytes(b"crc")
    data = load_data(tmp_path / "set")
    assert data.name == "parquet"
    for split, images in ((data.train, pixels(0)), (data.test, pixels(1, 10))):
        np.testing.assert_array_equal(channels_last(split), images)
    alone = tmp_path / "set" / names[0].partition("/")[0]
    assert sum(map(len, load_data(alone).splits.values())) == 20


def test_a_single_parquet_may_have_plain_bytes_text_labels_and_a_split_column(tmp_path):
    columns = {
        "scan": [png(image) for image in pixels(0)],
        "label": [f"kind {i % 2}" for i in range(20)],
        "split": ["train"] * 12 + ["validation"] * 4 + ["test"] * 4,
    }
    pq.write_table(pa.table(columns), tmp_path / "all.parquet")
    data = load_data(tmp_path / "all.parquet")
    assert [len(split) for split in data.splits.values()] == [12, 4, 4]
    np.testing.assert_array_equal(channels_last(data.val), pixels(0)[12:16])
    assert data.val.classes == ("kind 0", "kind 1")


def test_paths_in_a_parquet_are_read_in_its_folder_alone(tmp_path):
    layouts.write_table(tmp_path / "set", "")
    (tmp_path / "secret.png").write_bytes(png(pixels(9)[0]))
    paths = [f"images/{i}.png" for i in range(18)] + ["../secret.png", "gone.png"]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    image = pa.array([{"bytes": None, "path": path} for path in paths], kind)
    table = pa.table({"image": image, "label": labels() % 2})
    pq.write_table(table, tmp_path / "set" / "train.parquet")
    data = load_data(tmp_path / "set" / "train.parquet")
    np.testing.assert_array_equal(channels_last(data.train), pixels(0)[:18])
    (note,) = [note for note in data.notes if "unreadable" in note]
    assert note.startswith("2 unreadable images skipped")


def test_columns_are_chosen_by_name_or_given(tmp_path):
    columns = {"fine_label": labels().tolist(), "coarse_label": (labels() % 5).tolist()}
    path = layouts.write_shard(tmp_path / "train.parquet", pixels(0), columns)
    assert len(load_data(path).train.classes) == 10
    name = f"parquet,label=coarse_label:{path}"
    assert len(load_data(name).train.classes) == 5
    assert locate(name)["data"] == "parquet,label=coarse_label"
    other = layouts.write_shard(
        tmp_path / "other.parquet", pixels(0), {"a": [1] * 20, "b": [2] * 20}
    )
    with pytest.raises(UserError, match=r"which column is the label\? there are a, b;") as caught:
        load_data(other)
    assert "--data parquet,label=NAME:PATH" in str(caught.value)


def test_rows_without_a_label_are_left_out_and_counted(tmp_path):
    own = [None if i == 3 else -1 if i == 4 else i % 2 for i in range(20)]
    path = layouts.write_shard(tmp_path / "train.parquet", pixels(0), {"label": own})
    data = load_data(path)
    kept = [i for i in range(20) if i not in (3, 4)]
    np.testing.assert_array_equal(channels_last(data.train), pixels(0)[kept])
    assert "2 rows without a label skipped" in data.notes


def test_a_missing_shard_is_named(tmp_path):
    layouts.write_shard(
        tmp_path / "train-00000-of-00002.parquet", pixels(0), {"label": [0, 1] * 10}
    )
    with pytest.raises(UserError, match=r"train-00001-of-00002.parquet is missing"):
        load_data(tmp_path)


def test_a_shard_of_cifar10_goes_its_own_way_and_no_other_does(tmp_path):
    path = layouts.write_parquet(tmp_path / "hub") / "data"
    assert locate(str(path))["data"] == "parquet"
    for shard in path.glob("*.parquet"):
        table = pq.read_table(shard)
        pq.write_table(table.rename_columns(["img", "label"]), shard)
    assert locate(str(path))["data"] == "cifar10"


def test_a_class_that_is_in_test_alone_is_refused_whatever_the_source(tmp_path):
    """No network can learn it: accuracy was 0 without a word."""
    images, numbers = pixels(0), np.array([0, 1] * 10)
    for name, test in (("apart", numbers + 2), ("more", numbers * 2)):
        arrays = {"train_images": images, "train_labels": numbers}
        np.savez(tmp_path / f"{name}.npz", **arrays, test_images=images, test_labels=test)
        with pytest.raises(UserError, match="class '2' has test images and no train images"):
            load_data(tmp_path / f"{name}.npz")
    folder = layouts.write_table(tmp_path / "set")
    rows = (folder / "labels.csv").read_text().replace("cat,train", "owl,train")
    (folder / "labels.csv").write_text(rows)
    with pytest.raises(UserError, match=r"set.*class 'cat' has test images and no train images"):
        load_data(folder)


# --- files of 2 KB that unpack to 300 MB: each row refers to one value of a dictionary ------

MEASURED = """
import contextlib, resource, sys
from leanres.data.sources import load_data
from leanres.errors import UserError
import pyarrow.parquet, PIL.Image
from leanres.data import image_files
from leanres.data.sources import parquet
parquet.BATCH_BYTES //= 4  # as much less as the files have
image_files._AHEAD_BYTES //= 4
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for file in sys.argv[1:]:
    try:
        load_data(file)
    except UserError as error:
        print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def repeated(value, count: int) -> pa.Array:
    """A column of one value, which is there once: a list would copy it."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([value]))


def test_small_parquet_files_take_little_memory(tmp_path):
    """One process reads them all, so that what one of them takes cannot hide."""
    large, long = repeated(bytes(2_500_000), 120), repeated("x" * 1_250_000, 200)
    in_structs = pa.StructArray.from_arrays([large], ["bytes"])
    cases = {
        "a": ({"image": large, "label": [0, 1] * 60}, "can be read: a.parquet row 0"),
        "b": ({"image": in_structs, "label": [0, 1] * 60}, "can be read"),
        "c": ({"image": [b"x"] * 200, "label": long}, "has 1,250,000 characters"),
        "labels": ({"file": ["x"] * 200, "label": long}, "1,250,000 characters"),
        "d": (
            {"image": [b"x"] * 9, "label": [["x" * 250_000] * 9] * 9},
            "neither numbers nor text",
        ),
    }
    files = [tmp_path / f"{name}.parquet" for name in cases]
    whole = {"compression": "zstd", "dictionary_pagesize_limit": 10**9, "store_schema": False}
    for file, (columns, _) in zip(files, cases.values(), strict=True):
        pq.write_table(pa.table(columns), file, **whole)
        assert file.stat().st_size < 20_000
    command = [sys.executable, "-c", MEASURED, *map(str, files)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    *problems, grown = told.stdout.splitlines()
    for problem, (_, words) in zip(problems, cases.values(), strict=True):
        assert words in problem
    assert int(grown) < 225  # MiB


def test_a_row_group_that_unpacks_to_many_times_its_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("leanres.data.sources.parquet.BATCH_BYTES", 10**6)
    table = pa.table({"image": [bytes(100_000)] * 40, "label": [0, 1] * 20})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    with pytest.raises(UserError, match=r"a.parquet unpacks to [\d,]+ times its size"):
        load_data(tmp_path / "a.parquet")


def test_rows_are_read_one_by_one_where_they_may_be_large(tmp_path, monkeypatch):
    """The same images come out, in order, of row groups of any size."""
    images = [png(image) for image in pixels(0)]
    table = pa.table({"image": images, "label": labels(20)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    whole = load_data(tmp_path / "a.parquet", cache=tmp_path / "one")
    monkeypatch.setattr("leanres.data.sources.parquet.BATCH_BYTES", 10)

    monkeypatch.setattr("leanres.data.image_files._AHEAD_BYTES", 1)
    again = load_data(tmp_path / "a.parquet", cache=tmp_path / "two")
    assert torch.equal(whole.train.images, again.train.images)
    assert again.train.files == whole.train.files
