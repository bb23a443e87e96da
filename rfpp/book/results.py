"""The results page: verdicts from the records of all scales, and what they rest on, as MyST Markdown."""

from __future__ import annotations

import json
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml
from matplotlib.figure import Figure

from rfpp.base import paths
from rfpp.book import pages, plots
from rfpp.book.tables import device, number, span
from rfpp.claims import statistics
from rfpp.claims.entries import Amendment, Claim, Terms, check_lock, ledger
from rfpp.claims.records import DECIDED, Record, corrected, lost, scales
from rfpp.pipeline import digests
from rfpp.presets import PresetError, load

PROTOCOL = Path("book") / "protocol.yml"
GROUPS = {
    "why": "Why one round of reflow should be enough",
    "ladder": "What each change is worth",
    "sampling": "Samplers",
    "inversion": "Inversion",
    "cost": "Cost",
    "arena": "Other ways to few steps, on equal terms",
    "exact": "What the exact flow knows",
    "likelihood": "Likelihood",
}
_VERDICTS = ("reproduced", "not reproduced", "inconclusive", "vacuous")


def _escape(text: str) -> str:
    return re.sub(r"([|<>*_])", r"\\\1", " ".join(text.split()))


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return ["", *("| " + " | ".join(line) + " |" for line in lines), ""]


def _linked(claim: Claim) -> str:
    """The claim's id, which links to the place of its verdict, and is the target of links to this row."""
    found = sorted((paths.repository() / "notebooks").glob(f"[0-9][0-9]_{claim.notebook}.ipynb"))
    id = f'<span id="{claim.id}">{claim.id}</span>'
    return f'<a href="../notebooks/{found[0].stem}.html#{claim.id}">{id}</a>' if found else id


def _in_scope(claim: Claim, preset: str) -> bool:
    return claim.only_at is None or preset.partition("+")[0] in claim.only_at


def _cell(record: Record | None, claim: Claim, preset: str) -> str:
    if not _in_scope(claim, preset):
        return "does not apply"
    if record is None:
        return "not run"
    stale = " (stale: the claim or the code has changed since)" if record.stale(claim) else ""
    return f"{pages.badge(record.verdict)}{stale} {pages.value(claim, record.measured)}"


def tally(run: Path) -> str:
    """How many verdicts of each kind there are at each scale, as a table for other pages."""
    claims = ledger()
    return "\n".join(_tally(scales(run), claims))


def _tally(by_scale: Mapping[str, Mapping[str, Record]], claims: Mapping[str, Claim]) -> list[str]:
    rows = []
    for preset, found in by_scale.items():
        after, gone = corrected(found, claims), lost(found, claims)
        for own, whose in ((False, "the paper's"), (True, "this book's")):
            counted = {
                id: claim for id, claim in claims.items()
                if claim.own == own and claim.repeats is None and _in_scope(claim, preset)
            }  # fmt: skip
            counts = Counter[str](found[id].verdict for id in counted if id in found)
            decided = [id for id in counted if id in after and found[id].verdict in DECIDED]
            kept = sum(id not in gone for id in decided)
            rows.append(
                [f"`{preset}`", whose, *(str(counts[verdict]) for verdict in _VERDICTS),
                 str(len(counted) - sum(counts.values())), f"{kept} of {len(decided)}"]
            )  # fmt: skip
    columns = ["scale", "claims", *(pages.badge(verdict) for verdict in _VERDICTS), "not run", "after correction"]
    repeating = [f"{claim.id}, which repeats {claim.repeats}" for claim in claims.values() if claim.repeats]
    return _table(columns, rows) + ([f"Not counted: {'; '.join(repeating)}.", ""] if repeating else [])


def _folded(title: str, lines: Iterable[str]) -> list[str]:
    return [f"::::{{dropdown}} {title}", *lines, "::::", ""]


def _verdicts(by_scale: Mapping[str, Mapping[str, Record]], claims: Mapping[str, Claim]) -> list[str]:
    """A table for each group of claims, and a folded one with their rules and controls."""
    lines: list[str] = []
    scale_names = [f"`{preset}`" for preset in by_scale]
    for group, title in GROUPS.items():
        members = [claim for claim in claims.values() if claim.group == group]
        if members:
            rows = (
                [
                    _linked(claim),
                    f"{_escape(claim.statement)} ({'this book; ' if claim.own else ''}{_escape(claim.where)})",
                    *(_cell(found.get(claim.id), claim, preset) for preset, found in by_scale.items()),
                    _escape(claim.paper),
                ]
                for claim in members
            )
            lines += [f"## {title}", *_table(["no.", "claim", *scale_names, "paper"], rows)]
            if group == "ladder":
                lines += [*pages.carried(by_scale, claims), ""]
            lines += _folded("Rules and controls", _rules(by_scale, members))
    return lines


def _rules(by_scale: Mapping[str, Mapping[str, Record]], members: Iterable[Claim]) -> list[str]:
    def shown(record: Record | None, claim: Claim) -> str:
        return "" if record is None or record.control is None else pages.value(claim, record.control)

    def changed(claim: Claim) -> str:
        times = pages.changes(claim)
        return "" if not times else ". Amended" + ("" if times == 1 else f" {times} times") + ", see below"

    rows = (
        [
            claim.id,
            f"{_escape(claim.quantity)}: {pages.rule(claim)}{changed(claim)}",
            _escape(claim.control or "none: nothing here is random"),
            *(shown(found.get(claim.id), claim) for found in by_scale.values()),
        ]
        for claim in members
    )
    of_scales = [f"control, `{name}`" for name in by_scale]
    return _table(["no.", "what is measured, and its rule", "control", *of_scales], rows)


def _margin(claim: Claim, value: float) -> float:
    """By how much a value obeys the rule; negative where it does not."""
    low, high = claim.rule.bounds
    return min(value - low, high - value)


def _margins(claim: Claim, record: Record) -> tuple[float, float, float]:
    low, high = sorted(_margin(claim, end) for end in record.interval)
    return _margin(claim, record.value), low, high


def forest(by_scale: Mapping[str, Mapping[str, Record]], claims: Mapping[str, Claim]) -> Figure:
    """All claims that were judged, with each scale's interval and the mean of the first control that there is."""
    rows: dict[str, dict[str, tuple[float, float, float]]] = {}
    controls: dict[str, float] = {}
    for claim in claims.values():
        records = {preset: found[claim.id] for preset, found in by_scale.items() if claim.id in found}
        if records:
            title = textwrap.shorten(f"{claim.id}: {claim.statement}", 100, placeholder=" …")
            rows[title] = {preset: _margins(claim, record) for preset, record in records.items()}
            control = next(iter(records.values())).control
            if control is not None:
                controls[title] = _margin(claim, sum(control) / len(control))
    plots.style()
    return plots.forest([preset for preset, found in by_scale.items() if found], rows, controls)


def _undecided(by_scale: Mapping[str, Mapping[str, Record]], claims: Mapping[str, Claim]) -> list[str]:
    rows = []
    for preset, found in by_scale.items():
        for id, record in found.items():
            if id in claims and record.verdict == "inconclusive" and len(record.measured) > 1:
                rule = claims[id].rule
                gap = statistics.distance(rule, record.value)
                needed = statistics.seeds_needed(rule, record.measured)
                rows.append(
                    [id, f"`{preset}`", str(len(record.measured)), number(gap),
                     number(statistics.visible_effect(record.measured)),
                     str(needed) if needed is not None else f"more than {statistics.MOST_SEEDS}"]
                )  # fmt: skip
    if not rows:
        return ["No claim is inconclusive."]
    columns = ["no.", "scale", "seeds", "distance from the bound", "visible with these seeds", "seeds needed"]
    return _table(columns, rows)


def _significance(by_scale: Mapping[str, Mapping[str, Record]], claims: Mapping[str, Claim]) -> list[str]:
    rows = []
    for preset, found in by_scale.items():
        after, gone = corrected(found, claims), lost(found, claims)
        for id, p in sorted(after.items(), key=lambda item: item[1]):
            before = statistics.p_value(claims[id].rule, found[id].measured)
            decided = found[id].verdict in DECIDED
            stands = "" if not decided else "no longer decided" if id in gone else "stands"
            rows.append([id, f"`{preset}`", found[id].verdict, f"{before:.2g}", f"{p:.2g}", stands])
    return _table(["no.", "scale", "verdict", "p", "p, corrected", "after the correction"], rows)


def _terms(terms: Terms, fields: Iterable[str]) -> str:
    values = ((name, getattr(terms, name)) for name in fields)
    return "; ".join(
        f"*{name.replace('_', ' ')}*: {_escape(str(value)) if value else 'none'}" for name, value in values
    )


def _under(amendment: int, claim: Claim, record: Record | None) -> str:
    """The verdict of the terms before an amendment on the same run, where their quantity was measured."""
    old, since = claim.versions()[amendment], list(enumerate(claim.amendments))[amendment:]
    if record is None:
        return "not run"
    this = claim.amendments[amendment]
    if this.old_verdict:
        return _escape(this.old_verdict)
    if this.wording or not {"rule", "quantity"} & this.before.keys():
        return "the same"
    replaced = next((place for place, later in since if "quantity" in later.before and not later.wording), None)
    values = record.measured if replaced is None else record.former.get(str(replaced))
    if values is None:
        return "the old quantity is no longer measured"
    found = statistics.verdict(old.rule, values, None, claim.is_random)
    return f"{found}: {span(values)}"


def _amended(by_scale: Mapping[str, Mapping[str, Record]], claims: Mapping[str, Claim]) -> list[str]:
    entries: list[tuple[Amendment, int, Claim]] = [
        (amendment, place, claim) for claim in claims.values() for place, amendment in enumerate(claim.amendments)
    ]
    rows: dict[tuple[str, ...], list[str]] = {}
    for amendment, place, claim in sorted(entries, key=lambda entry: (entry[0].date, entry[2].id)):
        before, after = claim.versions()[place], claim.versions()[place + 1]
        if set(amendment.before) == {"control"} and before.control is None:
            then, now = "no control", "the control listed above"
        else:
            then, now = _terms(before, amendment.before), _terms(after, amendment.before)
        row = (
            str(amendment.date), then, now, _escape(amendment.reason), "yes" if amendment.seen else "no",
            *(_under(place, claim, found.get(claim.id)) for found in by_scale.values()),
        )  # fmt: skip
        rows.setdefault(row, []).append(claim.id)
    columns = ["claims", "date", "before", "after", "why", "values seen"]
    columns += [f"old terms, `{preset}`" for preset in by_scale]
    listed = [[", ".join(ids), *row] for row, ids in rows.items()]
    return _table(columns, listed) if rows else ["No entry has been changed."]


def _protocol() -> list[str]:
    """Changes in how claims are measured, from ``book/protocol.yml``."""
    path = paths.repository() / PROTOCOL
    entries = yaml.safe_load(path.read_text()) if path.is_file() else []
    fields = ("claims", "date", "before", "after", "reason", "seen", "effect")
    shown = {True: "yes", False: "no"}
    rows = ([_escape(str(shown.get(entry[name], entry[name]))) for name in fields] for entry in entries)
    return _table(["claims", "date", "before", "after", "why", "values seen", "effect"], rows)


def _covers(presets: Iterable[str]) -> list[str]:
    rows, drawn = [], "drawn for each seed"
    for name in presets:
        try:
            settings = load(name.partition("+")[0])
        except PresetError:
            continue
        pairs = drawn if settings.pairs.per_seed else "the same for all"
        rows.append([f"`{name}`", ", ".join(map(str, settings.seeds)), drawn, pairs, drawn, "the same for all"])
    columns = ["scale", "seeds", "training (start, order of pairs, times)", "pairs", "noise of graded samples",
               "teacher, held-out pairs, networks that grade"]  # fmt: skip
    return _table(columns, rows)


def _origins(by_scale: Mapping[str, Mapping[str, Record]]) -> list[str]:
    rows = []
    for preset, records in by_scale.items():
        for circumstances in sorted({record.circumstances for record in records.values()}):
            place, torch_version, version, commit = circumstances
            same = [record for record in records.values() if record.circumstances == circumstances]
            rows.append(
                [f"`{preset}`", device(place), f"rfpp {version}, torch {torch_version}", f"`{commit}`",
                 ", ".join(record.id for record in same), f"{max(record.seconds for record in same):.0f} s"]
            )  # fmt: skip
    return _table(["scale", "device", "software", "commit", "claims", "computing"], rows)


def _rewritten() -> list[str]:
    """Changes of code that changed no result, from the list of rewritten definitions."""
    rows = [
        [entry["date"], _escape(entry["reason"]), entry["compared"], str(len(entry["definitions"]))]
        for entry in json.loads(digests.REWRITTEN.read_text())
    ]
    return _table(["date", "why", "compared", "definitions"], rows)


def page(run: Path) -> str:
    """The results page of the book, from the records of ``run`` and of other scales.

    Raises ``ValueError`` when the ledger and its lock disagree.
    """
    claims, by_scale = ledger(), scales(run)
    check_lock(claims)
    parts = [
        "# Results",
        _INTRODUCTION,
        *_tally(by_scale, claims),
        _FOREST,
        *_verdicts(by_scale, claims),
        "## What the intervals cover",
        _COVERS,
        *_covers(by_scale),
        "## Many claims at once",
        _MANY,
        *_folded("Corrected values of p", _significance(by_scale, claims)),
        "## What would have decided",
        _UNDECIDED,
        *_undecided(by_scale, claims),
        "(results-amendments)=",
        "## What was changed in the ledger",
        _AMENDED,
        *_folded("Changes to the ledger", _amended(by_scale, claims)),
        _MEASURED,
        *_folded("Changes around the ledger", _protocol()),
        "## Where the numbers come from",
        _ORIGINS,
        *_origins(by_scale),
        _REWRITTEN,
        *_folded("Rewritten code", _rewritten()),
    ]
    return "\n".join(parts) + "\n"


_INTRODUCTION = """
Each row is a claim, and each column after it a scale at which the claim was tested. Most claims are the paper's;
those of this book ask what the paper does not. A value is the mean over seeds, with its 95 % interval in brackets. A
claim is *reproduced* when all of the interval obeys its rule, *not reproduced* when none of it does, and
*inconclusive* otherwise. Every claim about the method has a control, the same measurement on something that lacks
what the claim is about. If the whole interval of the control obeys the rule as well, the verdict is *vacuous*. Where
a configuration is compared with itself, the mean of the control's gains is never above zero, so a rule that asks for a
gain cannot hold there: this control shows how much seeds differ, and does not test the rule. A random quantity that was
measured once is always inconclusive. {numref}`fig-rungs-over-training` shows how much each change of Table 1 is worth
after a longer training.
"""
_FOREST = """
```{figure} forest.svg
:name: fig-forest
:alt: A line for each claim, with the interval of each scale and its control beside the bound of the rule.

All claims that were judged. To the right of the line, the rule is obeyed. Each row is scaled so that its farthest
interval fits; bars are 95 % intervals over seeds. Hollow marks show the mean of the control at the first scale with a
record, whose interval should not obey the rule; controls beyond the edge are drawn at the edge.
```
"""
_COVERS = """
An interval covers only what differs between seeds. If a claim needs no training, its seeds are those of its random
draws.
"""
_MANY = """
Intervals of 95 % are wrong one time in twenty, so one or two among this many claims may well be wrong. `p` is the
smallest number for which an interval of confidence 1 - `p` would still decide. The next column corrects it for the
number of claims by Holm's step-down. Verdicts with a corrected value below 0.05 stand: the chance that any of these
is wrong is below 5 %. Where all seeds gave the same value, the interval has no width and `p` is 0. This says that no
spread was seen, not that the value is certain.
"""
_UNDECIDED = """
For each inconclusive claim, this section gives the distance of its mean from the rule's bound, the distance that
this many seeds would detect four times in five given their spread, and the number of seeds needed to decide if mean
and spread were those measured.
"""
_AMENDED = """
A rule that is changed after a measurement can be bent to fit it. Therefore every change that affects a verdict is
listed here, with the terms before and after it, the reason, and whether a measurement had been seen by then. The last
columns give the verdict of the old rule on the same run.
"""
_MEASURED = """
What is measured also depends on presets, on how samples are graded, and on random numbers. The following changes
left the ledger as it was but changed values.
"""
_ORIGINS = """
*Computing* is the time taken by the steps behind a claim, for the longest claim in its row. Steps that
several claims share are counted for each of them. A commit with `-dirty` had changes that were not committed.
"""

_REWRITTEN = """
Some of the code behind these numbers was rewritten after they had been measured. Records still hold where a change
alters no result by a bit. For the changes listed here, notebooks were run with the code before and after, each from
nothing, on a CPU, at the scale that *compared* names, and all files of all their steps agreed.
"""
