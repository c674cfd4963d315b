"""Where the cache is kept, also where no home folder is known."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import platformdirs
import pytest
from PIL import Image

from leanres.data.sources import load_data
from leanres.errors import UserError
from leanres.io import _temporary_cache, cache_folder, expanded


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LEANRES_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("LEANRES_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"


@pytest.mark.parametrize("own", [None, ""])
def test_without_it_the_cache_is_where_the_platform_keeps_caches(monkeypatch, tmp_path, own):
    monkeypatch.delenv("LEANRES_CACHE")
    if own is not None:
        monkeypatch.setenv("LEANRES_CACHE", own)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == Path(platformdirs.user_cache_dir("leanres", appauthor=False))
    if sys.platform == "linux":
        assert cache_folder() == tmp_path / ".cache" / "leanres"
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert cache_folder() == tmp_path / "xdg" / "leanres"


@pytest.fixture
def homeless(monkeypatch, tmp_path):
    """No home folder is known, and the temporary folder is the test's."""
    monkeypatch.delenv("LEANRES_CACHE")
    for name in ("HOME", "USERPROFILE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MPLCONFIGDIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, "the user's")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    _temporary_cache.cache_clear()
    yield tmp_path
    _temporary_cache.cache_clear()


def test_without_a_home_folder_the_cache_is_a_private_temporary_one(homeless, caplog):
    found = cache_folder()
    assert found.parent == homeless
    assert found.is_dir()
    if os.name == "posix":
        assert stat.S_IMODE(found.stat().st_mode) == 0o700
    assert cache_folder() == found
    _temporary_cache.cache_clear()  # as in the next process
    assert cache_folder() == found
    assert [record.getMessage() for record in caplog.records] == [
        f"note: no home folder to keep a cache in: {found} is used, or what LEANRES_CACHE names"
    ] * 2


@pytest.mark.skipif(os.name != "posix", reason="permissions of Unix")
@pytest.mark.parametrize("taken", ["open to others", "a link", "a file"])
def test_a_temporary_cache_that_others_could_write_to_is_not_used(homeless, taken):
    place = homeless / f"leanres-{os.getuid()}"
    if taken == "open to others":
        place.mkdir()
        place.chmod(0o777)
    elif taken == "a link":
        (homeless / "theirs").mkdir(mode=0o700)
        place.symlink_to(homeless / "theirs")
    else:
        place.touch(mode=0o600)
    found = cache_folder()
    assert found != place
    assert stat.S_IMODE(found.stat().st_mode) == 0o700


def test_a_cache_folder_that_cannot_be_created_is_a_temporary_one(homeless, monkeypatch):
    (homeless / "file").touch()
    place = homeless / "file" / "leanres"
    monkeypatch.setattr("leanres.io.user_cache_path", lambda *_, **__: place)
    assert cache_folder().parent == homeless


def test_a_path_in_a_home_folder_that_is_not_known_is_one_line(homeless, monkeypatch):
    for name in ("~/x", Path("~/x")):
        with pytest.raises(UserError, match=r"~/x: no home folder is known here; give the path"):
            expanded(name)
    monkeypatch.setenv("LEANRES_CACHE", "~/x")
    with pytest.raises(UserError, match="no home folder is known"):
        cache_folder()


HOMELESS = """
import sys
try:
    import pwd
except ImportError:  # Windows
    pass
else:
    def gone(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")
    pwd.getpwuid = gone
from leanres.cli import main
main(sys.argv[1:])
"""


@pytest.mark.skipif(os.name != "posix", reason="Windows always knows a home folder")
def test_a_user_without_a_home_folder_trains_and_is_told_once(tmp_path):
    """As in a container: HOME is not set, and the user's number has no entry in passwd."""
    known = {key: os.environ[key] for key in ("PATH", "PYTHONPATH") if key in os.environ}
    env = known | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    network = "model={family='speednet', widths=[8]}"
    words = ["train", "digits", "--data", "digits", "--epochs", "1", "--out", "run"]
    command = [sys.executable, "-c", HOMELESS, *words, "--set", network, "--tta", "none"]
    made = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    place = tmp_path / f"leanres-{os.getuid()}"
    assert f"note: no home folder to keep a cache in: {place} is used" in made.stderr
    assert made.stderr.count("note: no home") == 1
    assert "Matplotlib" not in made.stderr
    assert (tmp_path / "run" / "report.html").exists()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(("kind", "words"), [("file", "is a file"), ("link", "a link to nothing")])
def test_a_cache_that_is_no_folder_is_said_to_be_that(tmp_path, monkeypatch, kind, words):
    place = tmp_path / "place"
    place.touch() if kind == "file" else place.symlink_to(tmp_path / "gone")
    for i in range(10):
        (tmp_path / "photos" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / str(i % 2) / f"{i}.png")
    monkeypatch.setenv("LEANRES_CACHE", str(place))
    notes = load_data(tmp_path / "photos").notes
    (note,) = (note for note in notes if note.startswith("the decoded images could not be cached"))
    assert words in note
    assert not any("Errno" in note or "damaged" in note for note in notes)
