"""The image files that a table names: found within its folder, never outside of it."""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from unicodedata import normalize

from leanres.data.image_files import ImageItem, image_files


def inside(root: Path, name: str) -> ImageItem:
    """The file that a path relative to `root` names, or why there is none."""
    plain = _plain(root, name)
    if plain is None:
        return "outside of the table's folder: copy it there"
    path = root / plain
    return path if path.is_file() else "there is no such file"


def _plain(root: Path, name: str) -> str | None:
    """A path as relative to `root`, in one spelling; None for one that leads outside."""
    name = normalize("NFC", name.strip()).replace("\\", "/")
    if posixpath.isabs(name) or os.path.isabs(name):
        whole = Path(os.path.normpath(name))
        if not whole.is_relative_to(root.absolute()):
            return None
        name = whole.relative_to(root.absolute()).as_posix()
    name = posixpath.normpath(name)
    return None if name == ".." or name.startswith("../") else name


class ImageIndex:
    """The image files under a folder by what a table may call them.

    That is the path from the folder, with its extension or without, or where that is unique the
    name of the file alone.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.known: dict[str, list[Path]] = defaultdict(list)
        for path in image_files(root):
            for name in _names(normalize("NFC", path.relative_to(root).as_posix())):
                self.known[name].append(path)

    def find(self, name: str) -> ImageItem:
        """The file of that name, or why there is none."""
        plain = _plain(self.root, name)
        if plain is None:
            return "outside of the table's folder: copy it there"
        found = self.known.get(plain, [])
        exact = [path for path in found if path == self.root / plain]
        if len(exact or found) > 1:
            return f"{len(found)} files have this name: give its path"
        return (exact or found)[0] if found else "there is no such file"

    def count_others(self, found: Iterable[ImageItem]) -> int:
        """How many of the image files are not among those found."""
        every = {path for paths in self.known.values() for path in paths}
        return len(every - {path for path in found if isinstance(path, Path)})


def _names(path: str) -> Iterator[str]:
    """What a table may call the file at a path, each once."""
    whole, name = posixpath.splitext(path)[0], posixpath.basename(path)
    yield from {path: 0, whole: 0, name: 0, posixpath.splitext(name)[0]: 0}
