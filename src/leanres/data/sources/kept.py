"""Arrays that were in memory when a run began, kept in the cache so that the run can go on."""

from __future__ import annotations

import hashlib
from pathlib import Path

from leanres.data.sources.cache import READ_ERRORS, read_cache_file, write_cache_file
from leanres.data.sources.source import LoadOptions
from leanres.data.split import Dataset
from leanres.errors import UserError, first_line
from leanres.io import cache_folder


def keep_arrays(dataset: Dataset) -> Path:
    """Write a data set to the cache, unless it is there; its file, which `load_kept` reads."""
    prints = "".join(name + split.fingerprint for name, split in dataset.splits.items())
    name = f"arrays-{hashlib.sha256(prints.encode()).hexdigest()[:24]}.safetensors"
    file = cache_folder() / name
    if not file.exists():
        write_cache_file(file, dataset)
    return file


def load_kept(options: LoadOptions) -> Dataset:
    """The data set in the file `options.path`. UserError where it is gone or damaged."""
    if options.path is None:
        raise UserError(
            "arrays from Python are kept in the cache for their run, and are not there: give them"
            " again, as leanres.resume(RUN, dataset=...)"
        )
    try:
        return read_cache_file(options.path)
    except READ_ERRORS as error:
        raise UserError(
            f"the arrays kept in {options.path} cannot be read ({first_line(error)}): give the"
            " same ones, as leanres.resume(RUN, dataset=...)"
        ) from None
