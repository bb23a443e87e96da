"""The tables that chapters show: rows of values from a run, laid out as Markdown when a notebook displays them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rfpp import claims


@dataclass(frozen=True, repr=False)
class Table:
    """A table with a heading for each column; cells are shown as ``str`` gives them."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} cells in a table of {len(self.columns)} columns: {list(row)}")

    def _repr_markdown_(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)

    def __repr__(self) -> str:
        return f"Table of {len(self.rows)} rows"


def by_nfe(curves: Mapping[str, Mapping[int, Sequence[float]]]) -> Table:
    """A row for each NFE and a column for each sampler: means over seeds, nothing where an NFE was not tried."""
    tried = sorted({nfe for points in curves.values() for nfe in points})
    means = [{nfe: f"{statistics.fmean(runs):.3g}" for nfe, runs in points.items()} for points in curves.values()]
    return Table(("NFE", *curves), [(nfe, *(of.get(nfe, "") for of in means)) for nfe in tried])


def device(recorded: str) -> str:
    """A device as it was recorded; earlier versions wrote ``"1 threads"``."""
    return recorded.replace(" 1 threads", " 1 thread")


def share(values: Sequence[float]) -> str:
    """The mean of shares over seeds with its 95 % interval, e.g. ``"21% [16%, 26%]"``."""
    low, high = claims.interval(values)
    return f"{sum(values) / len(values):.0%} [{low:.0%}, {high:.0%}]"


def number(value: float) -> str:
    """A number with three significant digits."""
    return f"{value:z.3g}" if abs(value) < 1000 else f"{value:.0f}"


def percent(value: float) -> str:
    """A share in per cent, without the sign, with one decimal below ten."""
    return f"{100 * value:z.{0 if abs(value) >= 0.0995 else 1}f}".removesuffix(".0")


def span(values: Sequence[float]) -> str:
    """The mean over seeds with its 95 % interval, e.g. ``"0.21 [0.16, 0.26]"``; one value as it is."""
    low, high = claims.interval(values)
    mean = number(sum(values) / len(values))
    return f"{mean} [{number(low)}, {number(high)}]" if len(values) > 1 else mean


def _judged(claim: claims.Claim, measured: Sequence[float], control: Sequence[float] | None) -> str:
    """The verdict, with the mean and the 95 % interval of what was measured, and of the control."""
    shown = [span(values) for values in (measured, control) if values]
    return f"{claims.verdict(claim.rule, measured, control, claim.is_random)}: " + "; control ".join(shown)


def verdicts(of_data: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float] | None]]]) -> Table:
    """A row per claim, a column per data set, by the ledger's rules; nothing is recorded.

    ``of_data[name][id]``: values over seeds, and those of the claim's control.
    """
    ledger, ids = claims.ledger(), next(iter(of_data.values()))
    rows = [
        (
            f"{id}: {ledger[id].quantity}; rule: {ledger[id].rule}",
            *(_judged(ledger[id], *of[id]) for of in of_data.values()),
        )
        for id in ids
    ]
    return Table(("claim", *of_data), rows)
