"""The plain values that a pickle is read into, and the checks that refuse all others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any


class Refused(ValueError):
    """The file is damaged, or asks for more than plain data and tensors."""


@dataclass(eq=False)
class Object:
    """An instance whose class is not rebuilt: the class name and the content of its ``__dict__``."""

    class_name: str
    state: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class StandIn:
    """The stand-in for a global name. ``call(*arguments)`` replaces a call of it, ``new()`` makes an instance."""

    name: str
    call: Callable[..., Any] | None = None
    new: Callable[[], Any] | None = None


def brief(value: Any) -> str:
    """Describe a value in a message. Containers are only named: spelling out nested lists could take for ever."""
    text = repr(value) if isinstance(value, str | bytes | int | float | None) else f"a {type(value).__name__}"
    return text if len(text) <= 100 else text[:100] + "..."


def plain_keys(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return a dictionary whose keys are cheap to hash. Hashing nested tuples could keep a machine busy for years, and
    large numbers can be chosen so that all have the same hash."""
    found = {}
    for key, value in pairs:
        if not isinstance(key, str | bytes | int | None) or (isinstance(key, int) and abs(key) >= 1 << 31):
            raise Refused(f"a dictionary or set has a key of type {type(key).__name__}, or a very large number")
        found[key] = value
    return found


def ordered_dict(items: Iterable[Any] = ()) -> dict[Any, Any]:
    """Return the dictionary of these pairs."""
    return plain_keys((key, value) for key, value in items)


def as_set(items: Iterable[Any] = ()) -> set[Any]:
    """Return the set of these items, which must be allowed as keys."""
    return set(plain_keys((item, None) for item in items))


def new_instance(kind: Any) -> Any:
    """Make an instance of a stand-in without arguments; raises ``Refused`` for anything that makes no instances."""
    if not isinstance(kind, StandIn) or kind.new is None:
        raise Refused(
            f"it makes an instance of {kind.name if isinstance(kind, StandIn) else type(kind).__name__}, which weights "
            "do not need"
        )
    return kind.new()
