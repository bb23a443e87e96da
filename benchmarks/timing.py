"""Medians of repeated runs, with the contenders taking turns so that a busy moment hits them all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def medians(contenders: Mapping[str, Callable[[], object]], repeats: int = 15) -> dict[str, float]:
    """Seconds per call of each contender: the median of ``repeats`` rounds after one to warm up."""
    rounds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(repeats + 1):
        for name, call in contenders.items():
            started = time.perf_counter()
            call()
            if number:
                rounds[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in rounds.items()}


def table(title: str, seconds: Mapping[str, float], baseline: str) -> None:
    """Print milliseconds and the ratio to ``baseline``."""
    print(f"\n{title}\n{'':<44}{'ms':>10}{'ratio':>10}")
    for name, value in seconds.items():
        print(f"{name:<44}{1e3 * value:>10.3f}{value / seconds[baseline]:>10.2f}")
