"""Files of ``torch.save``: zip archives, and the older format."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from rfpp.base.pickles.machine import interpret
from rfpp.base.pickles.standins import STAND_INS
from rfpp.base.pickles.values import Refused, as_set, brief

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def _plain(file: IO[bytes]) -> Any:
    """Read the pickle at the file's position, which has no storages."""
    return interpret(file, None, STAND_INS)


def _read_legacy(file: IO[bytes], size: int) -> Any:
    """Read a file of ``torch.save`` from before zip archives: five pickles, then the numbers of each storage."""
    if _plain(file) != _MAGIC or _plain(file) != _PROTOCOL:
        raise Refused("it is not a file of torch.save")
    system = _plain(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("numbers that are not little-endian")
    storages: dict[str, Tensor] = {}
    left = size

    def persistent(dtype: torch.dtype, key: str, numel: int) -> Tensor:
        nonlocal left
        if key not in storages:
            left -= numel * dtype.itemsize
            if left < 0:
                raise Refused(f"storage {brief(key)} should have {numel} numbers, more than the file; is it complete?")
            storages[key] = torch.zeros(numel, dtype=dtype)
        return storages[key]

    result = interpret(file, persistent, STAND_INS)
    keys = _plain(file)
    if not isinstance(keys, list) or set(as_set(keys)) != set(storages):
        raise Refused("its list of storages differs from those that it uses")
    for key in keys:
        storage = storages[key]
        if int.from_bytes(file.read(8), "little") != len(storage):
            raise Refused(f"storage {brief(key)} does not have its {len(storage)} numbers; is the file complete?")
        content = file.read(len(storage) * storage.itemsize)
        if len(content) != len(storage) * storage.itemsize:
            raise Refused(f"the file ends within storage {brief(key)}")
        if content:
            storage.copy_(torch.frombuffer(bytearray(content), dtype=storage.dtype))
    return result


def load_from_bytes(content: bytes) -> Any:
    """Read a storage inside a pickle: a complete file that holds nothing else."""
    if not isinstance(content, bytes):
        raise Refused(f"it makes a storage from a {type(content).__name__}; bytes are needed")
    storage = _read_legacy(io.BytesIO(content), len(content))
    if not isinstance(storage, Tensor):
        raise Refused("it has bytes of a storage that hold something else")
    return storage


def _read_zip(archive: zipfile.ZipFile, size: int) -> Any:
    """Read a file of ``torch.save`` in the format since torch 1.6: ``data.pkl``, and one entry for each storage."""
    entries = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise Refused("it is a zip archive, but not one of torch.save: it has no data.pkl, or several")
    root = pickles[0].removesuffix("data.pkl")
    storages: dict[str, Tensor] = {}
    left = size

    def content(name: str) -> bytes:
        nonlocal left
        info = entries.get(root + name)
        if info is None:
            raise Refused(f"{root}{name} is missing; is the file complete?")
        if info.compress_type != zipfile.ZIP_STORED:
            raise Refused(f"{root}{name} is compressed, which torch.save never does")
        left -= info.file_size
        if left < 0:
            raise Refused("its entries hold more bytes than the file itself")
        return archive.read(info)

    def persistent(dtype: torch.dtype, key: str, numel: int) -> Tensor:
        if key not in storages:
            numbers = content(f"data/{key}")
            if len(numbers) != numel * dtype.itemsize:
                raise Refused(f"storage {key} has {len(numbers)} bytes instead of {numel * dtype.itemsize}")
            storages[key] = torch.frombuffer(bytearray(numbers), dtype=dtype) if numel else torch.zeros(0, dtype=dtype)
        return storages[key]

    if root + "byteorder" in entries and content("byteorder") != b"little":
        raise Refused("numbers that are not little-endian")
    return interpret(io.BytesIO(content("data.pkl")), persistent, STAND_INS)


def read_torch(path: str | Path) -> Any:
    """Return what ``torch.save`` wrote to ``path``, with tensors on the CPU; nothing is executed.

    Raises :class:`Refused`, naming the file, if it is damaged or names anything outside
    ``rfpp.base.pickles.standins.STAND_INS``.
    """
    path = Path(path)
    size = path.stat().st_size
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return _read_zip(archive, size)
        with path.open("rb") as file:
            return _read_legacy(file, size)
    except (ValueError, OSError, EOFError, LookupError, RuntimeError, struct.error, zipfile.BadZipFile) as error:
        raise Refused(f"{path} is refused: {error}") from error
