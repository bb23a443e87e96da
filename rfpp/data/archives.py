"""The files of folders, zips and tars, one after the other; no archive is extracted."""

from __future__ import annotations

import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

_LARGEST_FILE = 1 << 26


@dataclass(frozen=True, slots=True)
class Member:
    """A file of a folder or an archive. In an archive, read each file before asking for the next one."""

    name: str
    size: int
    modified: int
    read: Callable[[], bytes]


BROKEN = (
    OSError, EOFError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError
)  # fmt: skip
"""Errors from reading a damaged archive; ``RuntimeError`` also comes from encrypted or unknown compression."""


def existing(path: str | Path) -> Path:
    """Return ``data.path`` with ``~`` expanded; raises ``FileNotFoundError`` when nothing exists there."""
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"data.path={str(path)!r} does not exist")
    return path


def _visible(name: str) -> bool:
    return not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def members(source: Path, wanted: Callable[[str], bool]) -> Iterator[Member]:
    """Yield the visible files of a folder or an archive whose names, relative to it, are ``wanted``."""
    if source.is_dir():
        yield from _in_folder(source, wanted)
        return
    try:
        yield from (_in_zip if source.suffix.lower() == ".zip" else _in_tar)(source, wanted)
    except BROKEN as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{source} is damaged or of another kind ({reason}); a folder, a .zip, .tar, .tar.gz or .tar.xz is needed"
        ) from error


def _in_folder(source: Path, wanted: Callable[[str], bool]) -> Iterator[Member]:
    waiting: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(source),))]
    while waiting:
        prefix, above = waiting.pop()
        with os.scandir(source / prefix) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = prefix + entry.name
                if not _visible(entry.name):
                    continue
                if entry.is_dir():
                    # Links are followed, but not in circles.
                    if (real := os.path.realpath(entry.path)) not in above:
                        waiting.append((f"{name}/", (*above, real)))
                elif wanted(name) and entry.is_file():
                    status = entry.stat()
                    yield Member(name, status.st_size, status.st_mtime_ns, Path(entry.path).read_bytes)


def _in_zip(source: Path, wanted: Callable[[str], bool]) -> Iterator[Member]:
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            name = info.filename.removeprefix("./")
            if not info.is_dir() and _visible(name) and wanted(name):
                yield Member(name, info.file_size, 0, partial(archive.read, info))


def _in_tar(source: Path, wanted: Callable[[str], bool]) -> Iterator[Member]:
    with tarfile.open(source) as archive:
        file = archive.fileobj
        assert file is not None

        def content(info: tarfile.TarInfo) -> bytes:
            opened = archive.extractfile(info)
            assert opened is not None  # a regular file
            return opened.read()

        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # a million of them would take a gigabyte
            name = info.name.removeprefix("./")
            if info.isreg() and _visible(name) and wanted(name):
                yield Member(name, info.size, 0, partial(content, info))
        # At a truncated or damaged header, tarfile stops without an error; a complete archive continues with zeros.
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"it breaks off after {archive.offset} bytes")
        while file.read(1 << 20):
            pass  # gzip compares its checksum at the very end


def read(member: Member) -> bytes:
    """Return a member's content; raises ``OSError`` if it is too large, and one of :data:`BROKEN` if it is damaged."""
    if member.size > _LARGEST_FILE:
        raise OSError(f"it would unfold to {member.size} bytes; at most {_LARGEST_FILE} are allowed")
    return member.read()


def first_few(names: Sequence[str], count: int = 3) -> str:
    """List the first few of many names, for an error message."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
