"""Files that are complete or absent: written under another name, and renamed once complete."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """The SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@cache
def _hashed(path: Path, size: int, changed: int) -> str:
    """Hash a file of this size that was last changed then."""
    return sha256(path)


def content(place: Path) -> str:
    """Hash a file, or the names and contents of all files of a folder; unchanged files are read once per process.

    Files and folders whose names begin with a dot do not count: tools keep notes of their own there.
    """
    found = [place]
    if place.is_dir():
        seen = (path for path in place.rglob("*") if path.is_file())
        found = sorted(path for path in seen if not any(name[0] == "." for name in path.relative_to(place).parts))
    states = [path.stat() for path in found]
    hashes = [
        _hashed(path.resolve(), state.st_size, state.st_mtime_ns) for path, state in zip(found, states, strict=True)
    ]
    names = [str(path.relative_to(place)) for path in found]
    return digest(dict(zip(names, hashes, strict=True))) if place.is_dir() else hashes[0]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` that no other process writes to, then rename the file there to ``path``."""
    partial = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, in a folder that exists."""
    with replacing(path) as partial:
        partial.write_text(text)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write ``tensors`` to ``path`` as safetensors; raises ``OSError`` when the path cannot be written."""
    with replacing(path) as partial:
        try:
            save_file(dict(tensors), partial, dict(metadata) if metadata else None)
        except SafetensorError as error:
            code = re.search(r"os error (\d+)", str(error))
            if code is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
        if metadata:
            _sort_metadata(partial)


def follow_umask(path: Path) -> None:
    """Let a file be read by whom the umask allows to: safetensors writes its files for their owner alone."""
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def _sort_metadata(path: Path) -> None:
    """Sort the entries of a safetensors header: the library shuffles them, but equal content must give equal bytes."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        if len(ordered) == size:
            file.seek(8)
            file.write(ordered)


def write_torch(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write ``tensors`` to ``path`` as a plain dictionary with ``torch.save``."""
    with replacing(path) as partial:
        torch.save(dict(tensors), partial)
