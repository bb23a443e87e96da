"""What values of a few seeds say about a rule: intervals, verdicts, corrections for many claims, and power.

The values, one for each seed, are treated as independent draws from one normal distribution. A handful of values cannot
test a sharper model; the records keep every value.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

from scipy import stats

from rfpp.claims.entries import Rule

Verdict = Literal["reproduced", "not reproduced", "inconclusive", "vacuous", "not run"]
CONFIDENCE = 0.95
UPPER = (1 + CONFIDENCE) / 2
"""The quantile at the upper end of an interval of that confidence."""
POWER = 0.8
MOST_SEEDS = 1000


def standard_error(measured: Sequence[float]) -> float:
    """The standard error of the mean over seeds; 0 for a single value."""
    return statistics.stdev(measured) / math.sqrt(len(measured)) if len(measured) > 1 else 0.0


def interval(measured: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval for the mean over seeds; a single value is its own interval."""
    mean = statistics.fmean(measured)
    if len(measured) == 1:
        return mean, mean
    half = float(stats.t.ppf(UPPER, len(measured) - 1)) * standard_error(measured)
    return mean - half, mean + half


def judge(rule: Rule, span: tuple[float, float]) -> Verdict:
    """``reproduced`` if all of the interval obeys the rule, ``not reproduced`` if none does, else ``inconclusive``."""
    low, high = rule.bounds
    if low < span[0] and span[1] < high:
        return "reproduced"
    return "not reproduced" if span[1] <= low or span[0] >= high else "inconclusive"


def verdict(rule: Rule, measured: Sequence[float], control: Sequence[float] | None, is_random: bool) -> Verdict:
    """The verdict on ``measured``: ``vacuous`` instead of ``reproduced`` where the ``control`` obeys the rule as well.

    One run of a random quantity is ``inconclusive``, whatever it gave.
    """
    if is_random and len(measured) < 2:
        return "inconclusive"
    found = judge(rule, interval(measured))
    if found == "reproduced" and control is not None and judge(rule, interval(control)) == "reproduced":
        return "vacuous"
    return found


def distance(rule: Rule, value: float) -> float:
    """How far a value is from the rule's nearest bound."""
    return min(abs(value - bound) for bound in rule.bounds)


def p_value(rule: Rule, measured: Sequence[float]) -> float:
    """The smallest ``p`` for which the interval of confidence ``1 - p`` decides: two-sided, by Student's distribution.

    1 for a single value or a mean on a bound; 0 for equal values off the bounds.
    """
    error, gap = standard_error(measured), distance(rule, statistics.fmean(measured))
    if len(measured) < 2 or gap == 0:
        return 1.0
    return float(2 * stats.t.sf(gap / error, len(measured) - 1)) if error else 0.0


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Correct p-values for their number by Holm's step-down (1979), which holds under any dependence.

    The chance that one or more claims with a corrected value below 5 % are decided wrongly is at most 5 %.
    """
    order = sorted(p_values, key=lambda name: p_values[name])
    found, most = {}, 0.0
    for place, name in enumerate(order):
        most = max(most, min(1.0, (len(order) - place) * p_values[name]))
        found[name] = most
    return {name: found[name] for name in p_values}


def survives(p: float) -> bool:
    """Whether a verdict with this corrected p-value still stands."""
    return p < 1 - CONFIDENCE


def _power(effect: float, n: int) -> float:
    """How often a two-sided test of ``n`` seeds detects a true distance of ``effect`` standard deviations."""
    critical = stats.t.ppf(UPPER, n - 1)
    return float(stats.nct.sf(critical, n - 1, effect * math.sqrt(n)))


def visible_effect(measured: Sequence[float]) -> float:
    """The distance from a bound that as many seeds would detect 8 times in 10, given their spread."""
    n, low, high = len(measured), 0.0, 100.0
    for _ in range(60):  # bisection: power rises with the effect
        middle = (low + high) / 2
        low, high = (middle, high) if _power(middle, n) < POWER else (low, middle)
    return high * statistics.stdev(measured)


def seeds_needed(rule: Rule, measured: Sequence[float]) -> int | None:
    """How many seeds would decide 8 times in 10 with the mean and spread of ``measured``; ``None`` beyond 1,000."""
    spread, gap = statistics.stdev(measured), distance(rule, statistics.fmean(measured))
    if not spread:
        return len(measured)
    return next((n for n in range(2, MOST_SEEDS + 1) if _power(gap / spread, n) >= POWER), None)
