"""Files from the internet: fetched once, checked against a pinned SHA-256, resumed where they stopped."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException
from pathlib import Path

from filelock import FileLock

from rfpp.base import files, paths, progress
from rfpp.base.checks import at_least

CHUNK = 1 << 20
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as lost."""


def _receive(url: str, partial: Path, name: str) -> None:
    """Append the missing bytes of ``url`` to ``partial``; start again where the server cannot resume."""
    have = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # The server has no bytes beyond ours: the file is complete, or it is another file. The checksum decides.
        return
    with response:
        goes_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if goes_on else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with (
            partial.open("ab" if goes_on else "wb") as file,
            progress.bar(total=total, initial=have, desc=name, unit="B", unit_scale=True) as bar,
        ):
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        if total is not None and partial.stat().st_size < total:
            raise HTTPException(f"the connection ended after {partial.stat().st_size} of {total} bytes")


def is_address(source: str | Path) -> bool:
    """Whether ``source`` is a URL rather than a path."""
    return str(source).startswith(("http://", "https://"))


def weights(source: str | Path, published: str, sha256: str) -> Path:
    """Return the file of published weights at ``source``, a path or a URL; a download must have the ``sha256``.

    Raises ``FileNotFoundError`` naming the ``published`` address when the path does not exist, and what :func:`fetch`
    raises.
    """
    if is_address(source):
        return fetch(str(source), sha256)
    path = Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"weights={str(source)!r} does not exist; put {published} there, or leave weights out")
    return path


def kept(url: str, sha256: str | None) -> Path:
    """The path where :func:`fetch` keeps the file at ``url``, downloaded or not."""
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    return paths.downloads() / f"{(sha256 or hashlib.sha256(url.encode()).hexdigest())[:16]}-{name}"


def fetch(url: str, sha256: str | None, folder: str | Path | None = None, attempts: int = 3) -> Path:
    """Return the local copy of ``url``, downloading it unless it exists already.

    ``sha256``: the file's checksum, 64 hexadecimal digits; ``None`` where the publisher states none, for files that are
    harmless whatever their content. The checksum of the first download is then noted beside the file and required from
    then on. ``folder``: the destination, by default :func:`rfpp.base.paths.downloads`. An interrupted download resumes
    where it stopped, up to ``attempts`` times in this call and, where there is a checksum, in later calls.

    Raises ``ValueError`` for a malformed checksum or URL, or a download that has another checksum (it is deleted), and
    ``OSError`` when the download fails, naming the path where the file can be put by hand.
    """
    at_least("attempts", attempts, 1)
    digest = None if sha256 is None else sha256.strip().lower()
    if digest is not None and not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError(f"sha256={sha256!r} is not a SHA-256; 64 hexadecimal digits are needed")
    parts = urllib.parse.urlsplit(url)
    name = Path(urllib.parse.unquote(parts.path)).name
    if parts.scheme not in ("http", "https") or not name:
        raise ValueError(f"url={url!r} is not the address of a file; it must begin with https:// or http://")
    # The checksum in the name distinguishes files of the same name.
    mark = digest or hashlib.sha256(url.encode()).hexdigest()
    path = Path(folder or paths.downloads()) / f"{mark[:16]}-{name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        note = path.with_name(f"{path.name}.sha256")
        if digest is None and path.is_file():
            if not note.is_file():  # put there by hand
                files.write_text(note, files.sha256(path))
            digest = note.read_text().strip()
        if path.is_file():
            if (found := files.sha256(path)) != digest:
                raise ValueError(f"{path} has the SHA-256 {found}, expected {digest}; delete it")
            return path
        partial = path.with_name(f".{path.name}.partial")
        if digest is None:
            partial.unlink(missing_ok=True)  # the file may have changed since, which nothing would detect
        for attempt in range(attempts):
            try:
                _receive(url, partial, name)
                break
            except (OSError, HTTPException) as error:
                if attempt + 1 < attempts and not isinstance(error, urllib.error.HTTPError):
                    continue
                kept = f" ({partial.stat().st_size} bytes are kept)" if digest and partial.is_file() else ""
                raise OSError(
                    f"cannot download {url}: {getattr(error, 'reason', None) or error}{kept}. "
                    f"Run again to {'go on' if digest else 'try again'}, or put the file at {path} yourself"
                ) from error
        found = files.sha256(partial)
        if digest is None:
            files.write_text(note, found)
        elif found != digest:
            partial.unlink()
            raise ValueError(f"{url} has the SHA-256 {found}, expected {digest}; what was downloaded is deleted")
        os.replace(partial, path)
    return path
