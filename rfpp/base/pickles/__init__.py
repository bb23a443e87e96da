"""Reading other people's pickles without running them.

A pickle is a program: it names functions and calls them, and Python's own loader executes it. :func:`read` is an
interpreter that does not. It keeps a stack of plain values and looks up each name in a table of stand-ins, which can
only make numbers, containers, tensors, and :class:`Object` records. A name outside the table raises :class:`Refused`
before anything is called or imported.

:func:`read_torch` builds on it to read the files of ``torch.save``, both zip archives and the older format.
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

# A storage within a pickle is itself a file of torch.save. Such a file may hold no others, or nesting had no bound.
_STORAGE = StandIn("torch.storage._load_from_bytes", load_from_bytes)
ALLOWED: Mapping[str, StandIn] = {**STAND_INS, _STORAGE.name: _STORAGE}
"""The names that a pickle may use, with their stand-ins."""


def read(file: IO[bytes]) -> Any:
    """Return the value of the pickle at the file's position, and move past it; nothing in it is executed.

    Raises :class:`Refused` for a pickle that is damaged or names anything outside :data:`ALLOWED`.
    """
    return interpret(file, None, ALLOWED)


def read_file(path: str | Path) -> Any:
    """Apply :func:`read` to a file that holds one pickle; errors name the file."""
    path = Path(path)
    with path.open("rb") as file:
        try:
            return read(file)
        except Refused as error:
            raise Refused(f"{path} is refused: {error}") from error
