"""The plain values that a pickle is read into, and what refuses all others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any


class Refused(ValueError):
    """The file is damaged, or asks for more than plain data and tensors."""


@dataclass(eq=False)
class Object:
    """An instance of a class that is not rebuilt: its name and what was in its ``__dict__``."""

    class_name: str
    state: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class StandIn:
    """What a global name is read as. ``call(*arguments)`` stands for calling it, ``new()`` for making an instance."""

    name: str
    call: Callable[..., Any] | None = None
    new: Callable[[], Any] | None = None


def brief(value: Any) -> str:
    """A value in a message: spelling out a nest of lists could take for ever."""
    text = repr(value) if isinstance(value, str | bytes | int | float | None) else f"a {type(value).__name__}"
    return text if len(text) <= 100 else text[:100] + "..."


def plain_keys(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """A dictionary whose keys cost nothing to hash: tuples within tuples could keep a machine busy for years, and
    large numbers can be chosen so that all have the same hash."""
    found = {}
    for key, value in pairs:
        if not isinstance(key, str | bytes | int | None) or (isinstance(key, int) and abs(key) >= 1 << 31):
            raise Refused(f"a dictionary or set has a key of type {type(key).__name__}, or a very large number")
        found[key] = value
    return found


def ordered_dict(items: Iterable[Any] = ()) -> dict[Any, Any]:
    """A dictionary of pairs."""
    return plain_keys((key, value) for key, value in items)


def as_set(items: Iterable[Any] = ()) -> set[Any]:
    """A set of what could be a key."""
    return set(plain_keys((item, None) for item in items))


def new_instance(kind: Any) -> Any:
    """What a stand-in makes without arguments; ``Refused`` for anything that makes no instances."""
    if not isinstance(kind, StandIn) or kind.new is None:
        raise Refused(f"an instance of {kind.name if isinstance(kind, StandIn) else type(kind).__name__}")
    return kind.new()
