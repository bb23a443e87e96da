"""Downloads, from a server on this machine: checked, resumed, and explained when they cannot be had."""

import functools
import hashlib
import http.server
import re
import threading

import pytest

from rfpp.base import downloads, paths
from rfpp.base.downloads import fetch

CONTENT = bytes(range(256)) * 10_000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT, with or without ranges, and may break off after some bytes."""

    def __init__(self, log, options, *arguments):
        self.log, self.options = log, options
        super().__init__(*arguments)

    def do_GET(self):
        asked = self.headers.get("Range")
        self.log.append((self.path, asked))
        if self.path.startswith("/missing"):
            return self.send_error(404)
        content = self.options.get("content", CONTENT)
        start = int(re.match(r"bytes=(\d+)-", asked)[1]) if asked and self.options.get("ranges", True) else 0
        if start and start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.options.get("length", True):
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        breaks = self.options.get("breaks", [])
        self.wfile.write(content[start : start + breaks.pop(0)] if breaks else content[start:])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    """An address, what was asked for there, and how the server is to behave."""
    log, options = [], {}
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, log, options))
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}/models/weights.pkl?download=1", log, options
    running.shutdown()
    running.server_close()


def kept(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_file_is_downloaded_once(tmp_path, server):
    url, log, _ = server
    path = fetch(url, DIGEST.upper(), tmp_path)
    assert path.read_bytes() == CONTENT and path.name == f"{DIGEST[:16]}-weights.pkl"
    assert fetch(url, DIGEST, tmp_path) == path and len(log) == 1 and kept(tmp_path) == [path.name]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("length", [True, False])
def test_a_broken_download_goes_on_by_itself(tmp_path, server, ranges, length):
    """Two breaks: the third attempt has all of it. Without ranges every attempt begins anew. A server that does not
    say how much there is can break off unnoticed; the checksum sees it."""
    url, log, options = server
    options.update(breaks=[1_000_000, 500_000], ranges=ranges, length=length)
    if not length:
        with pytest.raises(ValueError, match=f"expected {DIGEST}; what was downloaded is deleted"):
            fetch(url, DIGEST, tmp_path)
        return
    assert fetch(url, DIGEST, tmp_path).read_bytes() == CONTENT
    assert [asked for _, asked in log] == [None, "bytes=1000000-", f"bytes={1_500_000 if ranges else 500_000}-"]


def test_a_download_that_stops_goes_on_at_the_next_call(tmp_path, server):
    """What came in is kept, and the error says so."""
    url, log, options = server
    options["breaks"] = [100_000]
    with pytest.raises(
        OSError, match=r"cannot download .*\(100000 bytes are kept\). Run again to go on, or put the file"
    ):
        fetch(url, DIGEST, tmp_path, attempts=1)
    assert kept(tmp_path) == [f".{DIGEST[:16]}-weights.pkl.partial"]
    assert fetch(url, DIGEST, tmp_path).read_bytes() == CONTENT and log[-1][1] == "bytes=100000-"


def test_a_download_that_was_complete_but_for_its_name(tmp_path, server):
    """The machine stopped between the last byte and the renaming: there is nothing left to ask for."""
    url, log, _ = server
    (tmp_path / f".{DIGEST[:16]}-weights.pkl.partial").write_bytes(CONTENT)
    assert fetch(url, DIGEST, tmp_path).read_bytes() == CONTENT and log[-1][1] == f"bytes={len(CONTENT)}-"


@pytest.mark.parametrize("start", [b"something else", CONTENT + b"and more"])
def test_another_file_is_deleted_and_named(tmp_path, server, start):
    """What came in before does not belong to this file: the next call begins anew and succeeds."""
    url, _, _ = server
    (tmp_path / f".{DIGEST[:16]}-weights.pkl.partial").write_bytes(start)
    with pytest.raises(ValueError, match=f"has the SHA-256 [0-9a-f]{{64}}, expected {DIGEST}; what was downloaded is"):
        fetch(url, DIGEST, tmp_path)
    assert kept(tmp_path) == []
    assert fetch(url, DIGEST, tmp_path).read_bytes() == CONTENT


def test_a_file_that_was_put_there_by_hand_is_checked(tmp_path, server):
    url, log, _ = server
    path = tmp_path / f"{DIGEST[:16]}-weights.pkl"
    path.write_bytes(CONTENT)
    assert fetch(url, DIGEST, tmp_path) == path and not log
    path.write_bytes(b"no")
    with pytest.raises(ValueError, match=f"{path} has the SHA-256 .*, expected {DIGEST}; delete it"):
        fetch(url, DIGEST, tmp_path)


def test_what_cannot_be_had_says_where_to_put_it(tmp_path, server):
    url, log, _ = server
    missing = url.replace("models", "missing")
    with pytest.raises(OSError, match=f"cannot download {re.escape(missing)}: Not Found. Run again .* at {tmp_path}/"):
        fetch(missing, DIGEST, tmp_path)
    assert len(log) == 1  # a server that says no is not asked again
    with pytest.raises(OSError, match="cannot download http://127.0.0.1:9/weights.pkl: .*refused"):
        fetch("http://127.0.0.1:9/weights.pkl", DIGEST, tmp_path)


@pytest.mark.parametrize(
    ("url", "digest", "complaint"),
    [
        ("http://127.0.0.1/a.pkl", "abc", "sha256='abc' is not a SHA-256; 64 hexadecimal digits"),
        ("http://127.0.0.1/a.pkl", DIGEST[:-1] + "g", "is not a SHA-256"),
        ("ftp://127.0.0.1/a.pkl", DIGEST, "must begin with https:// or http://"),
        ("/home/a.pkl", DIGEST, "must begin with https:// or http://"),
        ("http://127.0.0.1/", DIGEST, "is not the address of a file"),
    ],
)
def test_a_malformed_request_is_refused_before_anything(tmp_path, url, digest, complaint):
    with pytest.raises(ValueError, match=complaint):
        fetch(url, digest, tmp_path)
    assert not list(tmp_path.iterdir())


def test_weights_come_from_a_file_or_a_mirror(tmp_path, server, monkeypatch):
    """Published ones must have their checksum wherever they are fetched from; a file of one's own may have any."""
    monkeypatch.setenv("RFPP_CACHE", str(tmp_path / "cache"))
    url, _, options = server
    assert downloads.weights(url, "https://original/w.pth", DIGEST).read_bytes() == CONTENT
    options["content"] = CONTENT[1:]
    with pytest.raises(ValueError, match=f"expected {DIGEST[::-1]}; what was downloaded is deleted"):
        downloads.weights(url, "https://original/w.pth", DIGEST[::-1])
    own = tmp_path / "own.pth"
    with pytest.raises(FileNotFoundError, match=f"weights='{own}' does not exist; put https://original/w.pth there"):
        downloads.weights(own, "https://original/w.pth", DIGEST)
    own.write_bytes(b"1")
    assert downloads.weights(str(own), "https://original/w.pth", DIGEST) == own


def test_where_downloads_are_kept(tmp_path, monkeypatch):
    """RFPP_CACHE, else the user's cache folder as the desktop says, else ``~/.cache``."""
    monkeypatch.setenv("RFPP_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "desktop"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert paths.downloads() == tmp_path / "own"
    monkeypatch.delenv("RFPP_CACHE")
    assert paths.downloads() == tmp_path / "desktop" / "rfpp"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert paths.downloads() == tmp_path / "home" / ".cache" / "rfpp"


def test_a_silent_server_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    """It accepts the connection and says nothing; the time allowed is a setting of the module."""
    import socket

    monkeypatch.setattr(downloads, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(OSError, match="timed out"):
        fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/weights.pkl", DIGEST, tmp_path, attempts=1)
