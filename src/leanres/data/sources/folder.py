"""A user's folder of images: `root/<class>/**`, or `root/{train,val,test}/<class>/**`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from unicodedata import normalize

from leanres.data.arrays import MAX_CLASSES
from leanres.data.image_files import image_files, image_paths, natural_key
from leanres.data.sources.cache import cached
from leanres.data.sources.decode import Listing, Row, counted, decode_dataset
from leanres.data.sources.source import SPLIT_NAMES, LoadOptions
from leanres.data.split import Dataset
from leanres.errors import UserError, printable

LAYOUT = "a folder with one subfolder per class"
Classes = dict[str, list[Path]]  # class name -> image files


@dataclass(frozen=True)
class FolderListing:
    """The image files of a folder, before any is opened.

    `files`: split ("all" if the folder has no splits) -> class -> image files. `skipped` counts
    everything else by kind ("hidden file{s}"); `notes` say what was joined or left out;
    `class_folders` are those of all splits, resolved.
    """

    root: Path
    files: dict[str, Classes]
    skipped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    class_folders: set[Path] = field(default_factory=set)


def load_folder(options: LoadOptions) -> Dataset:
    """The images of `options.path`, each resized to `options.size`, from the cache if it has them.

    UserError for a folder that is missing or has no classes to learn.
    """
    if options.path is None:
        raise UserError(f"a folder of images needs its path; give {LAYOUT}")
    listing = list_folder(options.path)
    paths = (path for classes in listing.files.values() for own in classes.values() for path in own)
    settings = [
        options.size,
        options.channels,
        options.strict,
        sorted(listing.skipped.items()),
        listing.notes,
    ]
    decode = partial(read_folder, listing, options)
    return cached("folder", options.path, paths, settings, options.cache, decode, options.whites)


def list_folder(root: Path) -> FolderListing:
    """List the images under `root` by split and class, in natural order (class2 before class10).

    UserError for a folder without class folders, with only one class or more than 1,000, with an
    empty class, or whose splits have different classes.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give {LAYOUT}")
    listing = FolderListing(root, {})
    splits = _split_folders(listing)
    listing.class_folders.update(_class_folders(splits or {"all": [root]}, root))
    for name, folders in splits.items():
        if name == "train" or not _is_unlabelled(listing, name, folders):
            listing.files[name] = _class_files(folders, listing)
    if not splits:
        listing.files["all"] = _class_files([root], listing)
    if not listing.files.keys() & {"train", "test", "all"}:
        raise UserError(f"{root} has {', '.join(splits)} but no train folder; add train/<class>/*")
    _check_same_classes(listing.files, root)
    return listing


def _split_folders(listing: FolderListing) -> dict[str, list[Path]]:
    """Split name -> its folders; empty if the folders hold images themselves: they are classes."""
    inside = _subfolders(listing.root)
    named: dict[str, list[Path]] = {name: [] for name in SPLIT_NAMES.values()}
    for path in inside:
        if name := SPLIT_NAMES.get(path.name.lower()):
            named[name].append(path)
    found = {name: folders for name, folders in named.items() if folders}
    if not any(_subfolders(folder) for folders in found.values() for folder in folders):
        return {}
    listing.skipped["folder{s} beside the splits"] += len(inside) - sum(map(len, found.values()))
    for name, folders in found.items():
        if len(folders) > 1:
            together = " and ".join(path.name for path in folders)
            listing.notes.append(f"the folders {together} together are {name}")
    return found


def _is_unlabelled(listing: FolderListing, name: str, folders: list[Path]) -> bool:
    """Whether a split has images without classes, as competitions have in test; a note says so."""
    classes = {normalize("NFC", p.name) for folder in folders for p in _subfolders(folder)}
    known = listing.files.get("train", {})
    if len(classes) > 1 or classes & known.keys() or (classes and not known):
        return False
    count = sum(len(image_files(folder)) for folder in folders)
    if count:
        place = printable(folders[0])
        listing.notes.append(
            f"{name} has {count:,} images without classes: not used; leanres predict RUN {place}"
            " classifies them"
        )
    return count > 0


def _subfolders(folder: Path) -> list[Path]:
    """The folders in `folder` that are not hidden, in natural order."""
    inside = [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
    return sorted(inside, key=lambda path: natural_key(path.name))


def has_class_folders(root: Path) -> bool:
    """Whether two folders, or two of a split's, have images: one may hold all of a table's."""
    inside = _subfolders(root)
    splits = [path for path in inside if path.name.lower() in SPLIT_NAMES]
    return any(
        sum(path not in splits and any(image_paths(path)) for path in folders) > 1
        for folders in (inside, *map(_subfolders, splits))
    )


def _class_files(folders: list[Path], listing: FolderListing) -> Classes:
    """Class name -> image files of one split. A name is one class however its accents are coded."""
    classes: Classes = {}
    for path in (path for folder in folders for path in _subfolders(folder)):
        elsewhere = listing.class_folders - {path.resolve()}
        classes.setdefault(normalize("NFC", path.name), []).extend(
            image_files(path, listing.skipped, elsewhere)
        )
    others = [p.name for folder in folders for p in folder.iterdir() if not p.is_dir()]
    num_hidden = sum(name.startswith(".") for name in others)
    listing.skipped["hidden file{s}"] += num_hidden
    listing.skipped["file{s} beside the classes"] += len(others) - num_hidden
    _check_classes(classes, folders[0])
    return dict(sorted(classes.items(), key=lambda entry: natural_key(entry[0])))


def _class_folders(splits: dict[str, list[Path]], root: Path) -> set[Path]:
    """The class folders of all splits, resolved. UserError for one that is not one class's alone.

    A link may make it another class's folder, or one that holds such: its images would have two
    classes, or be in train and in test.
    """
    owner: dict[Path, Path] = {}
    top = root.resolve()
    for path in (
        path for folders in splits.values() for own in folders for path in _subfolders(own)
    ):
        real = path.resolve()
        if real in (top, *top.parents):
            raise UserError(f"{path} is a link to a folder above: remove it")
        if (first := owner.setdefault(real, path)) != path:
            raise UserError(f"{path} and {first} are one folder: remove the link")
    for real, path in owner.items():
        for above in real.parents:
            if above in owner:
                raise UserError(f"{path} is a part of {owner[above]}: remove the link")
    return {*owner}


def _check_classes(classes: Classes, folder: Path) -> None:
    if not classes:
        raise UserError(f"{folder} has no class folders; give {LAYOUT}")
    if len(classes) == 1:
        only = next(iter(classes))
        raise UserError(f"{folder} has one class folder, {only!r}; give at least two classes")
    if len(classes) > MAX_CLASSES:
        raise UserError(f"{folder} has {len(classes):,} class folders: at most 1,000 fit")
    if empty := [printable(folder / name) for name, files in classes.items() if not files]:
        raise UserError(f"class folder {empty[0]} has no images; fill or remove it")


def _check_same_classes(files: dict[str, Classes], root: Path) -> None:
    first, *others = files
    for other in others:
        if differing := sorted(files[first].keys() ^ files[other].keys()):
            names = ", ".join(repr(name) for name in differing[:5])
            raise UserError(
                f"{root}: {first} and {other} do not have the same classes: only one of them has "
                f"{names}; give each split a folder for every class"
            )


def read_folder(listing: FolderListing, options: LoadOptions) -> Dataset:
    """Decode every listed image. -> Dataset with notes on what was skipped.

    Without split folders, the pixels of each image decide whether it is a test image
    (`data.split.content_split`).
    """
    paths, rows = [], []
    for split, classes in listing.files.items():
        for label, own in enumerate(classes.values()):
            paths += own
            rows += [Row(str(path.relative_to(listing.root)), split, label) for path in own]
    names = tuple(next(iter(listing.files.values())))
    classes_note = f"classes in this order: {', '.join(map(printable, names))}"
    notes = [classes_note, *listing.notes, *counted(listing.skipped)]
    images = Listing(rows, names, lambda: paths, listing.root)
    return decode_dataset("folder", images, options, notes, listing.root)
