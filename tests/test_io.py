"""Atomic writes, locks between real processes, values as TOML."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from leanres import io
from leanres.errors import UserError, printable
from leanres.io import (
    CheckpointError,
    Lock,
    csv_text,
    file_digest,
    locked,
    read_file,
    read_toml,
    toml_value,
    write_bytes,
)


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Another process that runs `code`, the arguments in `sys.argv[1:]`."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


# --- atomic writes --------------------------------------------------------------------------


def test_a_write_replaces_the_file_and_leaves_nothing_else(tmp_path):
    file = tmp_path / "run.json"
    file.write_bytes(b"old and longer")
    write_bytes(file, b"new")
    assert file.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_write_that_fails_keeps_the_old_file_and_says_why(tmp_path, monkeypatch, call):
    file = tmp_path / "run.json"
    file.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((Path, call) if call == "replace" else (os, call)), fail)
    with pytest.raises(CheckpointError) as caught:
        write_bytes(file, b"new")
    assert str(caught.value) == f"cannot write {file}: No space left on device"
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"^cannot write .*absent.*: No such file"):
        write_bytes(tmp_path / "absent" / "run.json", b"new")


# --- locks ----------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from leanres.io import Lock
lock = Lock(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds a lock on `tmp_path` until it ends."""
    with run_python(HOLD, tmp_path) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_folder_that_another_process_holds_is_refused_in_one_line(tmp_path, holder):
    with pytest.raises(UserError) as caught:
        Lock(tmp_path, wait_s=0.01)
    assert str(caught.value) == (
        f"{tmp_path} is in use: another process is training there; wait for it or stop it"
    )


def test_a_killed_process_releases_its_lock(tmp_path, holder):
    holder.kill()
    holder.wait()
    Lock(tmp_path).release()


def test_a_second_lock_of_the_same_process_is_refused_until_the_first_is_released(tmp_path):
    first = Lock(tmp_path)
    with pytest.raises(UserError, match="is in use"):
        Lock(tmp_path)
    first.release()
    Lock(tmp_path).release()


@pytest.mark.parametrize("error", [OSError(30, "Read-only file system"), NotImplementedError()])
def test_where_files_cannot_be_locked_there_is_no_lock_and_no_error(tmp_path, monkeypatch, error):
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(io.FileLock, "acquire", fail)
    Lock(tmp_path).release()


INCREMENT = """
import json, sys, time
from pathlib import Path
from leanres.io import locked, write_bytes
file = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for i in range(20):
    with locked(file):
        counts = json.loads(file.read_text()) if file.exists() else {}
        time.sleep(0.002)
        counts[sys.argv[2]] = counts.get(sys.argv[2], 0) + 1
        counts["total"] = counts.get("total", 0) + 1
        write_bytes(file, json.dumps(counts).encode())
"""


def test_two_processes_that_change_one_file_lose_nothing(tmp_path):
    file = tmp_path / "new folder" / "ledger.json"
    processes = [run_python(INCREMENT, file, name) for name in ("a", "b")]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:  # both start together, so that they do compete
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert json.loads(file.read_text()) == {"a": 20, "b": 20, "total": 40}


def test_a_file_that_stays_locked_is_given_up_in_one_line(tmp_path):
    file = tmp_path / "ledger.json"
    start = time.monotonic()
    with locked(file), pytest.raises(UserError) as caught, locked(file, wait_s=0.05):
        pass
    assert time.monotonic() - start < 5
    assert str(caught.value) == f"{file} is in use by another process: wait for it or stop it"
    with locked(file):  # free again
        pass


# --- TOML -----------------------------------------------------------------------------------


def test_a_toml_file_is_read_or_refused_in_one_line(tmp_path):
    file = tmp_path / "a.toml"
    for content in (b"x = [", b"x = '\xff'"):
        file.write_bytes(content)
        with pytest.raises(UserError, match=rf"^{file} is not TOML: "):
            read_toml(file)
    file.write_text("x = [1, {y = 'z'}]")
    assert read_toml(file) == {"x": [1, {"y": "z"}]}
    with pytest.raises(UserError, match=r"gone\.toml cannot be read: No such file"):
        read_toml(tmp_path / "gone.toml")


# --- TOML -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        7,
        -(2**62),
        1e-12,
        0.1,
        float("inf"),
        True,
        "",
        'quotes ", backslash \\, a\nline, é',
        [],
        {},
        [1, 2.5, "x"],
        [[0, 0.75], [0.4, 1]],
        [["crop", {"padding": 2, "mode": "reflect"}], ["flip", {}]],
        [{"a": 1}, {"b": [{"c": 2}]}],
        {"family": "resnet", "widths": [16, 32], "deep": {"x": [{"y": 1}]}},
    ],
)
def test_a_value_survives_toml_on_one_line(value):
    text = toml_value(value)
    assert "\n" not in text
    found = tomllib.loads(f"key = {text}")["key"]
    assert found == value
    assert type(found) is type(value)


def test_tuples_become_lists():
    assert toml_value((("crop", {"padding": 2}), ("flip", {}))) == (
        '[["crop", {padding = 2}], ["flip", {}]]'
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_only_a_regular_file_of_the_stated_size_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"abcd")
    assert read_file(tmp_path / "file", 4) == b"abcd"
    with pytest.raises(UserError, match=r"more than the 0\.0 MiB allowed"):
        read_file(tmp_path / "file", 3)
    with pytest.raises(UserError, match="pipe is not a regular file"):
        read_file(tmp_path / "pipe")


@pytest.mark.parametrize("text", ["=cmd|x", "+a", "-a", "@a"])
def test_no_name_is_a_formula_of_a_spreadsheet(text):
    assert csv_text(text) == f"'{text}"


@pytest.mark.parametrize("text", ["\ta", "\ra", "a\nb", "a\x1b[2Jb", "a\u202eb", "a\u2028b"])
def test_a_name_in_a_csv_file_is_one_line_that_controls_no_terminal(text):
    assert csv_text(text) == re.sub(r"[\t\r\n\x1b\u202e\u2028]", "?", text)


@pytest.mark.parametrize("text", ["", "cat", "-1.5", "+3", "a=b", "caf\udce9", "猫"])
def test_other_names_and_numbers_stay_as_they_are_in_a_csv_file(text):
    assert csv_text(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cat é 猫", "cat é 猫"),
        ("\x1b[2Jgone", "?[2Jgone"),
        ("two\nlines\r\t", "two?lines??"),
        ("\u202eback\u2028\x9b\ud800", "?back???"),
        (Path("a/b"), "a/b"),
    ],
)
def test_a_text_is_printed_on_one_line_that_controls_nothing(text, shown):
    assert printable(text) == shown


def test_a_files_sum_is_that_of_its_content_up_to_a_size(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert file_digest(tmp_path / "file", 3) == known
    with pytest.raises(UserError, match=r"more than the .* allowed"):
        file_digest(tmp_path / "file", 2)


def test_a_bounded_read_takes_the_memory_of_the_file_and_not_of_the_bound(tmp_path):
    """Python allocates what `read` is asked for: small machines refused a bound of 16 GiB."""
    (tmp_path / "some").write_bytes(bytes(range(256)) * 10)
    code = """
import resource, sys
from pathlib import Path
from leanres.data.sources.archive import read_files
from leanres.io import read_file
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
file = Path(sys.argv[1])
assert read_file(file, 16 << 30) == read_files([file], 16 << 30)["some"] == file.read_bytes()
assert read_file(file, 2560) == file.read_bytes()
assert len(read_file(Path("/proc/self/status"), 16 << 30)) > 100  # it says that it has 0 bytes
assert len(read_file(Path("/proc/self/status"), 50)) == 50
"""
    ended = run_python(code, tmp_path / "some")
    out, err = ended.communicate(timeout=60)
    assert (ended.returncode, err) == (0, ""), out
