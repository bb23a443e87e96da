"""Reading other people's pickles without running them.

A pickle is a program: it names functions and calls them, and Python's own loader does as it is told. :func:`read` is an
interpreter of its own that does not. It keeps a stack of plain values, and where the program names something, it looks
the name up in a table of stand-ins that can only make numbers, containers, tensors, and :class:`Object` records. A name
that is not in the table ends the reading with :class:`Refused`, before anything is called or imported.

:func:`read_torch` reads the files of ``torch.save`` on top of it, those in a zip archive and those from before.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from rfpp.base.pickles.machine import interpret
from rfpp.base.pickles.standins import STAND_INS
from rfpp.base.pickles.torch_files import load_from_bytes, read_torch
from rfpp.base.pickles.values import Object, Refused, StandIn

__all__ = ["ALLOWED", "Object", "Refused", "read", "read_file", "read_torch"]

# Storages within a pickle are files of torch.save. These cannot hold such files in turn: that could go on.
_STORAGE = StandIn("torch.storage._load_from_bytes", load_from_bytes)
ALLOWED: Mapping[str, StandIn] = {**STAND_INS, _STORAGE.name: _STORAGE}
"""The names a pickle may use, and what each is read as."""


def read(file: IO[bytes]) -> Any:
    """The value of the pickle at the file's position, which ends behind it; nothing in it is executed.

    Raises :class:`Refused` for a pickle that is damaged or names anything outside :data:`ALLOWED`.
    """
    return interpret(file, None, ALLOWED)


def read_file(path: str | Path) -> Any:
    """:func:`read` for a file of one pickle; the error names the file."""
    path = Path(path)
    with path.open("rb") as file:
        try:
            return read(file)
        except Refused as error:
            raise Refused(f"{path} is refused: {error}") from error
