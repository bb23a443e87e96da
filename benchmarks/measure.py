"""Ratios of two ways of doing the same, and how a cost grows: what is measured, as values for the JSON."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import psutil
from scipy.stats import linregress

TOLERANCE = 0.1
"""How far a slope may lie from the one expected: 0.1 is 7 % for twice the size."""


QUIET, LOOK, PERIOD = 0.3, 0.1, 2.0
"""Processors that other work may keep busy when something is timed; for how many seconds that is looked at; and how
many seconds pass before it is looked at again. A pause before each short turn would time how a processor wakes up."""


class Watch:
    """Looks at what else the machine does: waits for other work to pause, up to some ``patience`` in seconds, and
    says what share of the machine it had while something was timed.

    That is all that decides when a round begins, and no round is left out.
    """

    def __init__(self, patience: float) -> None:
        self.patience, self.lasted, self.taken = patience, 0.0, 0.0
        self.process = psutil.Process()
        self.began: tuple[float, float] | None = None

    def _spent(self) -> tuple[float, float]:
        """Seconds on the clock, and of processors with what neither this process does nor those that it started."""
        times = psutil.cpu_times()
        busy = sum(times) - times.idle - sum(getattr(times, name, 0.0) for name in ("iowait", "guest", "guest_nice"))
        own = sum(self.process.cpu_times()[:4])
        for child in self.process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                own += sum(child.cpu_times()[:2])
        return time.monotonic(), busy - own

    def _since(self, then: tuple[float, float]) -> tuple[float, float]:
        clock, others = (now - before for now, before in zip(self._spent(), then, strict=True))
        return clock, others

    def look(self) -> None:
        """Before something is timed: wait for a pause of other work, as long as there is patience left."""
        if self.began is not None:
            if time.monotonic() - self.began[0] < PERIOD:
                return
            self.end()
        while self.patience > 0:
            then = self._spent()
            time.sleep(LOOK)
            clock, others = self._since(then)
            if others <= QUIET * clock:
                break
            time.sleep(4 * LOOK)
            self.patience -= 5 * LOOK
        self.began = self._spent()

    def end(self) -> float | None:
        """After all of it: the share of the machine's time that other work had.

        The system counts hundredths of a second, so that of less than a tenth nothing can be said.
        """
        if self.began is not None:
            clock, others = self._since(self.began)
            self.lasted, self.taken, self.began = self.lasted + clock, self.taken + others, None
        return max(0.0, self.taken / self.lasted / (psutil.cpu_count() or 1)) if self.lasted >= 0.1 else None


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
