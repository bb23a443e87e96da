"""What each preset computes and costs, as tables generated from the presets."""

from __future__ import annotations

from collections.abc import Sequence

from rfpp import presets
from rfpp.base import paths
from rfpp.book.pages import NARROW_SPACE
from rfpp.book.tables import Table, number
from rfpp.pipeline import costs
from rfpp.pipeline.plan import Plan
from rfpp.pipeline.store import Store

ORDER = ("laptop", "desk", "cifar10", "paper-cifar10", "paper-afhq", "paper-ffhq", "paper-imagenet64")
RATE = 1e14
"""Operations per second that a column of :func:`taken` assumes: a large part of the rate of one current GPU."""


def plan(name: str) -> Plan:
    """The plan of a preset, even if its images are not available yet."""
    preset = presets.load(name)
    return Plan(preset, costs.expected(preset))


def large(value: float) -> str:
    """A large number, e.g. ``"12.3 million"``."""
    for limit, unit in (
        (1e21, "10²¹"),
        (1e18, "10¹⁸"),
        (1e15, "10¹⁵"),
        (1e12, "10¹²"),
        (1e9, "billion"),
        (1e6, "million"),
    ):
        if value >= limit:
            return f"{number(value / limit)}{'×' if unit[0] == '1' else NARROW_SPACE}{unit}"
    return f"{value:,.0f}"


def asked(names: Sequence[str] = ORDER) -> Table:
    """Pairs, trainings and samples of each preset, as its file says."""
    rows = []
    for name in names:
        preset = presets.load(name)
        size = costs.Training.of(plan(name))
        rows.append(
            (f"`{name}`", f"{size.pairs:,} × {size.nfe_per_pair}", f"{size.steps:,} × {size.batch:,}",
             f"{preset.real_data.steps:,}", f"{preset.evaluation.samples:,}", len(preset.seeds))
        )  # fmt: skip
    columns = ("preset", "pairs × evaluations", "steps × batch, B to F", "steps of G", "samples graded", "seeds")
    return Table(columns, rows)


def time(plan: Plan, bill: costs.Bill) -> str:
    """How long A to G took here, or how long they take at :data:`RATE`; digits are for a CPU, which is far from it."""
    spent = costs.spent(plan, plan.run(Store(paths.runs() / plan.preset.origin)))
    if spent is not None:
        return f"{costs.duration(spent)}, measured"
    return "not measured" if plan.preset.data.name == "digits" else costs.duration(bill.operations / RATE)


def taken(names: Sequence[str] = ORDER) -> Table:
    """Forward passes, operations, memory, disk and time of A to G at each preset."""
    rows = []
    for name in names:
        of = plan(name)
        bill = costs.bill(of)
        rows.append(
            (f"`{name}`", large(bill.passes), large(bill.operations), costs.size(bill.memory),
             costs.size(bill.stored), time(of, bill))
        )  # fmt: skip
    columns = ("preset", "forward passes", "operations", "memory", "disk", "time")
    return Table(columns, rows)
