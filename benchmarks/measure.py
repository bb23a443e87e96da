"""Ratios of two ways of doing the same, and how a cost grows: what is measured, as values for the JSON."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import linregress

TOLERANCE = 0.1
"""How far a slope may lie from the one expected: 0.1 is 7 % for twice the size."""


def seconds(call: Callable[[], object], calls: int = 1) -> float:
    """Seconds per call of one turn of several ``calls``."""
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - started) / calls


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """The median of the rounds' ratios, with the quartiles between which half of them lie.

    A round's two times were taken one after the other, so that whatever slowed the machine down slowed both.
    """
    found = [above / below for above, below in zip(numerators, denominators, strict=True)]
    low, median, high = np.quantile(found, [0.25, 0.5, 0.75]).tolist()
    return {"median": median, "low": low, "high": high}


def compared(usual: Sequence[float], ours: Sequence[float]) -> dict[str, Any]:
    """How many times faster ours is."""
    medians = {"usual": statistics.median(usual), "ours": statistics.median(ours)}
    return {"ratio": ratio(usual, ours), "seconds": medians, "rounds": len(ours)}


def growth(values: Mapping[int, Sequence[float]]) -> dict[str, Any]:
    """The slope of a straight line through the medians, both axes logarithmic, with its standard error.

    The error comes from how far the medians lie from that line: it grows with noise, and where the growth is no power.
    """
    medians = {size: statistics.median(found) for size, found in values.items()}
    line = linregress(np.log(list(medians)), np.log(list(medians.values())))
    return {
        "sizes": list(medians), "values": list(medians.values()), "slope": float(line.slope),
        "error": float(line.stderr), "rounds": len(next(iter(values.values()))),
    }  # fmt: skip
