"""Downloads from a real HTTP server on this machine."""

from __future__ import annotations

import hashlib
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from emfast.data.fetch import RECORD, TESTING, TRAINING, RemoteFile, fetch, read_record
from engines.errors import UserError

pytest.importorskip("pooch")

CONTENT = bytes(range(256)) * 9000  # some chunks
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FILE = RemoteFile("training.tif", len(CONTENT))


class Handler(BaseHTTPRequestHandler):
    requested: list[str]

    def do_GET(self) -> None:
        self.requested.append(self.path)
        folder, _, name = self.path[1:].partition("/")
        if folder == "missing" or not name:
            self.send_error(404)
            return
        self.send_response(200)
        if folder != "no-length":
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        body = CONTENT[: len(CONTENT) // 2] if folder in ("cut", "no-length") else CONTENT
        self.wfile.write(body[:-1] + b"\0" if folder == "altered" else body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[str]:
    Handler.requested = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_is_downloaded_and_its_checksum_recorded(server: str, tmp_path: Path) -> None:
    out = tmp_path / "new" / "epfl"
    [fetched] = fetch([FILE], out, f"{server}/good/")
    assert fetched.path.read_bytes() == CONTENT
    assert (fetched.sha256, fetched.downloaded, fetched.check) == (DIGEST, True, "nothing")
    assert names(out) == [RECORD, "training.tif"]
    assert Handler.requested == ["/good/training.tif"]
    assert (out / RECORD).read_text() == f"{DIGEST}  training.tif\n"


def test_a_second_fetch_only_checks(server: str, tmp_path: Path) -> None:
    fetch([FILE], tmp_path, f"{server}/good")
    [fetched] = fetch([FILE], tmp_path, f"{server}/good")
    assert (fetched.downloaded, fetched.check) == (False, "recorded")
    assert len(Handler.requested) == 1


def test_a_file_placed_by_hand_is_checked_and_recorded(tmp_path: Path) -> None:
    (tmp_path / "training.tif").write_bytes(CONTENT)
    [fetched] = fetch([FILE], tmp_path, "http://127.0.0.1:1")
    assert (fetched.downloaded, fetched.check) == (False, "nothing")
    assert read_record(tmp_path / RECORD) == {"training.tif": DIGEST}


def test_a_published_checksum_is_compared(server: str, tmp_path: Path) -> None:
    known = RemoteFile(FILE.name, FILE.size, DIGEST)
    [fetched] = fetch([known], tmp_path, f"{server}/good")
    assert fetched.check == "published"

    other = RemoteFile("other.tif", FILE.size, "0" * 64)
    with pytest.raises(UserError, match=f"{DIGEST}, but 0000.* was published"):
        fetch([other], tmp_path, f"{server}/good")
    assert names(tmp_path) == [RECORD, "training.tif"]


def test_a_file_that_changed_since_it_was_recorded_is_refused(server: str, tmp_path: Path) -> None:
    fetch([FILE], tmp_path, f"{server}/good")
    path = tmp_path / "training.tif"
    path.write_bytes(CONTENT[:-1] + b"\0")
    with pytest.raises(UserError, match=rf"{DIGEST} was recorded in {RECORD}.*has changed"):
        fetch([FILE], tmp_path, f"{server}/good")
    path.unlink()
    with pytest.raises(UserError, match=rf"altered/training.tif: .*{DIGEST} was recorded"):
        fetch([FILE], tmp_path, f"{server}/altered")
    assert names(tmp_path) == [RECORD]
    [fetched] = fetch([FILE], tmp_path, f"{server}/good")
    assert (fetched.downloaded, fetched.check) == (True, "recorded")


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("missing", "the server answers 404 Not Found"),
        ("cut", "the transfer broke off"),
        ("no-length", f"is {len(CONTENT) // 2} bytes, but training.tif was published with"),
    ],
)
def test_what_fails_leaves_no_file(server: str, tmp_path: Path, folder: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        fetch([FILE], tmp_path, f"{server}/{folder}")
    assert "by hand from https://www.epfl.ch/labs/cvlab/data/data-em/" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_without_a_connection_the_way_by_hand_is_told(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(UserError) as caught:
        fetch([FILE], tmp_path, f"http://127.0.0.1:{port}")
    message = str(caught.value)
    assert "no connection" in message
    assert f"put it into {tmp_path} and run this command again" in message
    assert names(tmp_path) == []


def test_an_address_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Invalid URL"):
        fetch([FILE], tmp_path, "somewhere")


def test_what_arrived_before_an_error_stays(server: str, tmp_path: Path) -> None:
    wrong = RemoteFile("second.tif", FILE.size + 1)
    with pytest.raises(UserError, match=r"second\.tif: is .* bytes"):
        fetch([FILE, wrong], tmp_path, f"{server}/good")
    assert names(tmp_path) == [RECORD, "training.tif"]


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text("abc training.tif\n")
    with pytest.raises(UserError, match=r"cannot read the line 'abc training\.tif'"):
        fetch([FILE], tmp_path, "http://127.0.0.1:1")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be made"):
        fetch([FILE], tmp_path / "file", "http://127.0.0.1:1")


def test_the_testing_stack_is_apart() -> None:
    assert {f.name for f in TRAINING} == {"training.tif", "training_groundtruth.tif"}
    assert {f.name for f in TESTING} == {"testing.tif", "testing_groundtruth.tif"}


def test_without_pooch_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(UserError, match=r"pip install 'emfast\[data\]'"):
        fetch([FILE], tmp_path, "http://127.0.0.1:1")
    assert names(tmp_path) == []
