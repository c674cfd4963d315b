"""manifest.json: what was edited is said to be, and nothing else."""

from __future__ import annotations

import contextlib
import json

import pytest

from leanres.runs.manifest import MANIFEST, edited, write_files


@pytest.fixture
def folder(tmp_path):
    write_files(tmp_path, {"a": b"1", "b": b"2"})
    return tmp_path


def test_files_as_they_were_written_have_no_note(folder):
    assert edited(folder) == []
    write_files(folder, {"a": b"3", "c": b""})
    assert edited(folder) == []
    assert (folder / "a").read_bytes() == b"3"


@pytest.mark.parametrize("content", [b"", b"2", b"1 ", b"0"])
def test_an_edited_file_is_named(folder, content):
    (folder / "a").write_bytes(content)
    (note,) = edited(folder)
    assert note.startswith(f"{folder / 'a'} is missing or was edited")


def test_a_deleted_file_is_named(folder):
    (folder / "b").unlink()
    (note,) = edited(folder)
    assert note.startswith(f"{folder / 'b'} is missing")


def test_the_content_before_the_last_write_is_an_edit(folder):
    write_files(folder, {"a": b"new"})
    (folder / "a").write_bytes(b"1")
    assert len(edited(folder)) == 1


def test_a_kill_between_manifest_and_file_is_no_edit(folder, monkeypatch):
    """Whichever write is the last."""
    from leanres.runs import manifest

    write, files = manifest.write_bytes, {"a": b"new", "b": b"newer"}
    for writes in range(5):
        left = [writes]

        def killed(path, content, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            write(path, content)

        with monkeypatch.context() as patch:
            patch.setattr(manifest, "write_bytes", killed)
            with contextlib.suppress(KeyboardInterrupt):
                write_files(folder, files)
        assert edited(folder) == []
        files = {name: content + b"!" for name, content in files.items()}


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"files": 3}', '{"files": {"a": []}, "sha256": "0"}', '{"files": {"a": 1}}'],
)
def test_an_edited_manifest_is_said_to_be(folder, content):
    (folder / MANIFEST).write_text(content)
    (note,) = edited(folder)
    assert note.startswith(f"{folder / MANIFEST} is missing or was edited")


def test_a_digest_exchanged_in_the_manifest_is_found(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["a"] = manifest["files"]["b"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    (folder / "a").write_bytes(b"2")
    assert len(edited(folder)) == 1
