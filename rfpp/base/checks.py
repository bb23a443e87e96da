"""Errors for bad input. Each names the value, the allowed values, and the parameter to change."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from numbers import Integral


def nearest(value: object, allowed: Iterable[str]) -> str:
    """Return ``"; did you mean 'heun'?"`` for a near miss, else an empty string."""
    match = difflib.get_close_matches(str(value), list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def one_of(name: str, value: object, allowed: Iterable[str]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``allowed``."""
    allowed = list(allowed)
    if value not in allowed:
        options, shown = ", ".join(repr(option) for option in allowed), repr(value)[:100]
        raise ValueError(f"{name}={shown} is unknown; allowed: {options}{nearest(value, allowed)}")


def at_least(name: str, value: object, minimum: int) -> None:
    """Raise ``TypeError`` unless ``value`` is an integer, ``ValueError`` unless it is ``>= minimum``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; an integer of at least {minimum} is needed")
    if value < minimum:
        raise ValueError(f"{name}={value} is too small; an integer of at least {minimum} is needed")


def between(name: str, value: object, low: float, high: float, *, setting: str = "", inclusive: bool = False) -> None:
    """Raise ``TypeError`` unless ``value`` is a number, ``ValueError`` unless it lies between ``low`` and ``high``.

    ``setting``: the name of the setting whose value is ``high``. ``inclusive``: ``high`` itself is allowed.
    """
    limit = f"{setting}={high}" if setting else f"{high}"
    wanted = f"a number above {low} and {'at most' if inclusive else 'below'} {limit} is needed"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; {wanted}")
    if not (low < value < high or (inclusive and value == high)):
        raise ValueError(f"{name}={value} is out of range; {wanted}")


def distinct(name: str, values: Sequence[object]) -> None:
    """Raise ``ValueError`` if one of the ``values`` comes twice."""
    if len(set(values)) < len(values):
        raise ValueError(f"{name}={list(values)} has an entry twice; leave one of them out")


def counts(name: str, values: object, minimum: int = 1) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless ``values`` are one or more distinct integers ``>= minimum``."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise TypeError(f"{name}={values!r} is a {type(values).__name__}; a list of integers is needed")
    if not values:
        raise ValueError(f"{name}={values!r} is empty; a list of at least one integer of {minimum} or more is needed")
    for value in values:
        at_least(f"an entry of {name}", value, minimum)
    distinct(name, values)
