"""The tables that chapters show: rows of values from a run, laid out as Markdown when a notebook displays them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rfpp.configurations import ALL
from rfpp.pipeline.plan import Plan


@dataclass(frozen=True, repr=False)
class Table:
    """A table with a heading for each column; what stands in a cell is shown as ``str`` gives it."""

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


def configurations(plan: Plan) -> Table:
    """Table 1 and its variants, with the batch sizes of a plan's preset."""
    rows = []
    for name, row in ALL.items():
        premetric = getattr(row.premetric, "__name__", str(row.premetric))
        cells = (plan.batch_size(row), f"`{row.timesteps}`", f"`{premetric}`", row.pairs)
        rows.append((name, row.summary, str(row.start), *cells))
    return Table(("", "", "starts from", "batch", "timesteps", "premetric", "pairs"), rows)
