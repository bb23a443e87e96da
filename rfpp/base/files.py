"""Files that are whole or absent: written beside their place, and renamed once complete."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    """SHA-256 of a JSON value, the same for equal values whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place beside ``path``, which no other process writes to; what is there at the end is put at ``path``."""
    partial = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Put ``text`` at ``path``, in a folder that exists."""
    with replacing(path) as partial:
        partial.write_text(text)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Put ``tensors`` at ``path`` as safetensors; raises ``OSError`` when the place cannot be written."""
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


def _sort_metadata(path: Path) -> None:
    """Put the entries of a safetensors header in order: the library shuffles them, and equal content is to be equal
    bytes."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        if len(ordered) == size:
            file.seek(8)
            file.write(ordered)


def write_torch(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Put ``tensors`` at ``path`` as a plain dictionary, the way ``torch.save`` does."""
    with replacing(path) as partial:
        torch.save(dict(tensors), partial)
