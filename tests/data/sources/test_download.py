"""Downloads from a server on this machine: complete, broken, stalled, unreachable."""

from __future__ import annotations

import hashlib
import http.server
import socket
import threading
import time

import numpy as np
import pytest

from leanres.data.sources.download import download
from leanres.errors import UserError

BODY = np.random.default_rng(0).bytes(700_000)


class Handler(http.server.BaseHTTPRequestHandler):
    """/whole, /short (breaks off), /stall (half, then silence), /gone."""

    def do_GET(self) -> None:
        self.send_response(404 if self.path == "/gone" else 200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY if self.path == "/whole" else BODY[: len(BODY) // 2])
        if self.path == "/stall":
            time.sleep(1.5)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_a_download_arrives_complete_and_reports_its_progress(server, tmp_path):
    target, reports = tmp_path / "deep" / "file.tar.gz", []
    digest = hashlib.sha256(BODY).hexdigest()
    found = download(target, f"{server}/whole", digest, progress=lambda *step: reports.append(step))
    assert found == target
    assert target.read_bytes() == BODY
    assert list(target.parent.iterdir()) == [target]
    assert reports[-1] == ("downloading whole", len(BODY), len(BODY))
    assert [done for _, done, _ in reports] == sorted(done for _, done, _ in reports)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("whole", "gave a file with sha256"),
        ("short", "broke off"),
        ("stall", "no answer within 0.5 s|timed out"),
        ("gone", "404"),
    ],
)
def test_a_failed_download_says_why_and_leaves_nothing(server, tmp_path, path, words):
    limit_s = 0.5 if path == "stall" else 10
    with pytest.raises(UserError, match=words) as caught:
        download(tmp_path / "file", f"{server}/{path}", "0" * 64, limit_s=limit_s)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_accepts_but_never_answers_ends_in_an_error_in_time(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        start = time.monotonic()
        with pytest.raises(UserError, match="cannot download"):
            download(tmp_path / "file", url, "", limit_s=0.3)
        assert time.monotonic() - start < 2
    assert list(tmp_path.iterdir()) == []


def test_a_name_lookup_that_hangs_ends_in_an_error_in_time(tmp_path, monkeypatch):
    released = threading.Event()

    def hang(*_: object, **__: object) -> None:
        released.wait(5)
        raise OSError("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"no answer within 0.3 s"):
        download(tmp_path / "file", "http://cifar.invalid/x", "", limit_s=0.3)
    assert time.monotonic() - start < 2
    released.set()


def test_a_refused_connection_is_reported_at_once(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/x"
    with pytest.raises(UserError, match="cannot download"):
        download(tmp_path / "file", url, "")


def test_a_folder_that_cannot_be_written_is_reported_before_the_download(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot store"):
        download(tmp_path / "file" / "archive", f"{server}/whole", "")
