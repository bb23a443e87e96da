"""Chapters and the first page as the book shows them.

An executed notebook prints verdicts without numbers, because their last digits depend on the machine. In the book the
records of the run take their place: what was found follows the question of each chapter, each verdict is shown with its
value beside its figure, and code is folded.
"""

from __future__ import annotations

import base64
import copy
import html
import itertools
import re
from collections import Counter
from collections.abc import Container, Iterator, Mapping

from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from rfpp import presets
from rfpp.book.tables import number, percent
from rfpp.claims import statistics
from rfpp.claims.entries import Claim
from rfpp.claims.records import Record, lost

SIGNS = {"reproduced": "✓", "not reproduced": "✗", "inconclusive": "?", "vacuous": "∅", "not judged": "–"}
NARROW_SPACE = "\u202f"
"""A space at which no line breaks."""
PHOTOGRAPHS = "photographs"
"""The tag of cells that show colour images, whose lightness stays as it is on dark pages."""
IMAGES = ("image_rows", "sheets")
"""Functions of :mod:`rfpp.book.plots` that show images of the dataset."""
SET_UP = {"code_prompt_show": "Show the set-up", "code_prompt_hide": "Hide the set-up"}
"""What opens and closes the code before a chapter's first section."""
_PRINTED = re.compile(r"^(?P<id>c\d\d) (?P<verdict>[a-z ]+?)(?: \((?:\d+ seeds|one run)\))?: (?P<rest>.*)$")


def value(claim: Claim, values: list[float]) -> str:
    """The mean over seeds with its 95 % interval, in per cent where the quantity is a share."""
    show, unit = (percent, NARROW_SPACE + "%") if claim.percent else (number, "")
    low, high = statistics.interval(values)
    mean = show(sum(values) / len(values)) + unit
    return f"{mean} [{show(low)}, {show(high)}]" if len(values) > 1 else mean


def rule(claim: Claim) -> str:
    """What the interval must obey, in the unit of :func:`value`."""
    show, unit = (percent, NARROW_SPACE + "%") if claim.percent else (number, "")
    if claim.rule.between is not None:
        return "between {} and {}".format(*map(show, claim.rule.between)) + unit
    side, bound = ("above", claim.rule.above) if claim.rule.above is not None else ("below", claim.rule.below)
    return f"{side} {show(bound or 0)}{unit}"


def badge(verdict: str, text: str | None = None) -> str:
    """A verdict as a coloured sign with its word, or with another text."""
    kind = verdict.replace(" ", "-")
    return f'<span class="verdict-sign {kind}">{SIGNS[verdict]} {html.escape(verdict if text is None else text)}</span>'


def changes(claim: Claim) -> int:
    """How many times the claim's terms were changed, other than by adding a control."""
    return sum(set(amendment.before) != {"control"} for amendment in claim.amendments)


def _card(claim: Claim, record: Record | None, verdict: str, reason: str, is_lost: bool) -> str:
    """A verdict with its value, shown where the notebook printed it."""
    lines = [f"{badge(verdict)} {html.escape(claim.statement)} <span class='where'>({html.escape(claim.where)})</span>"]
    if record is None:
        lines.append(html.escape(reason))
    else:
        control = "" if record.control is None else f"; control {value(claim, record.control)}"
        lines.append(
            f"<b>{value(claim, record.measured)}</b>: {html.escape(claim.quantity)}. Rule: {rule(claim)}{control}. "
            f"The paper: {html.escape(claim.paper)}."
        )
        if is_lost:
            lines[-1] += " Corrected for the number of claims, this is no longer decided."
    lines[-1] += f' <a href="../book/results.html#{claim.id}">All scales</a>'
    if changes(claim):
        lines[-1] += '; <a href="../book/results.html#results-amendments">the terms were changed</a>'
    body = "".join(f"<p>{line}</p>" for line in lines)
    return f'<div class="verdict {verdict.replace(" ", "-")}" id="{claim.id}">{body}</div>'


def _printed_verdict(line: str) -> re.Match[str] | None:
    match = _PRINTED.match(line)
    return match if match and match["verdict"] in SIGNS else None


def _verdicts(
    cell: NotebookNode, found: Mapping[str, Record], claims: Mapping[str, Claim], undecided: Container[str]
) -> Iterator[str]:
    """Remove the verdicts from what a cell printed, and yield a card for each.

    ``undecided``: the claims that are not decided any more once corrected for the number of claims.
    """
    for output in cell.get("outputs", []):
        if output.output_type == "stream" and output.name == "stdout":
            kept = []
            for line in output.text.splitlines(keepends=True):
                match = _printed_verdict(line.rstrip("\n"))
                if match and match["id"] in claims:
                    record = found.get(match["id"]) if match["verdict"] != "not judged" else None
                    yield _card(claims[match["id"]], record, match["verdict"], match["rest"], match["id"] in undecided)
                else:
                    kept.append(line)
            output.text = "".join(kept)


def _in_short(
    judged: list[Claim], preset: str, by_scale: Mapping[str, Mapping[str, Record]],
    undecided: Mapping[str, Container[str]],
) -> Iterator[NotebookNode]:  # fmt: skip
    """What the chapter found, at each scale: the answer to its question, and the other verdicts folded."""
    lines, verdicts = [], []
    for claim in judged:
        records = {name: found[claim.id] for name, found in by_scale.items() if claim.id in found}
        if preset in records:
            parts = [
                f'<a href="#{claim.id}">{badge(record.verdict)}</a> {value(claim, record.measured)} at `{name}`'
                for name, record in records.items()
            ]
            measured = f"Measured: {html.escape(claim.quantity, quote=False)}."
            if where := [name for name in records if claim.id in undecided[name]]:
                measured += f" Corrected for the number of claims, no longer decided at {' and '.join(where)}."
            lines.append(f"- {claim.statement} {'; '.join(parts)}. <span class='measured'>{measured}</span>")
            verdicts.append(records[preset].verdict)
    if lines:
        lines[0] = lines[0].removeprefix("- ")
    if len(lines) > 1:
        counts = Counter[str](verdicts[1:])
        tally = " ".join(badge(verdict, f"{counts[verdict]} {verdict}") for verdict in SIGNS if counts[verdict])
        more = f"{len(lines) - 1} more at <code class='literal'>{html.escape(preset)}</code>: {tally}"
        lines = [lines[0], "", f"<details><summary>{more}</summary>", "", *lines[1:], "", "</details>"]
    if lines:
        yield new_markdown_cell("\n".join([":::{admonition} What was found", ":class: found", "", *lines, ":::"]))


def _prepares(cell: NotebookNode) -> bool:
    """Whether a cell neither shows a picture nor prints a verdict."""
    outputs = cell.get("outputs", [])
    lines = "".join(output.get("text", "") for output in outputs).splitlines()
    shows = any("image/png" in output.get("data", {}) for output in outputs)
    return cell.cell_type == "code" and not shows and not any(map(_printed_verdict, lines))


def chapter(
    executed: NotebookNode, slug: str, preset: str, by_scale: Mapping[str, Mapping[str, Record]],
    claims: Mapping[str, Claim], in_colour: bool = False,
) -> NotebookNode:  # fmt: skip
    """A notebook executed at ``preset``, as the book shows it.

    What was found follows the question, which is the opening's first paragraph. The code before the first section is
    folded together with what it prints, other code alone.
    ``by_scale``: the records of this preset and of others, by preset and claim; ``in_colour``: whether the preset's
    images are.
    """
    page, cells, found = copy.deepcopy(executed), [], by_scale.get(preset, {})
    undecided = {name: lost(records, claims) for name, records in by_scale.items()}
    opening, *rest = page.cells
    set_up = len(list(itertools.takewhile(_prepares, rest)))
    for place, cell in enumerate(rest):
        cells.append(cell)
        if cell.cell_type == "code":
            cards = list(_verdicts(cell, found, claims, undecided.get(preset, ())))
            cell.outputs = [output for output in cell.outputs if output.get("text", " ")]
            shows_images = in_colour and any(f"plots.{name}(" in cell.source for name in IMAGES)
            more = ["hide-cell" if place < set_up else "hide-input", *([PHOTOGRAPHS] if shows_images else [])]
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), *more]
            if place < set_up:
                cell.metadata["mystnb"] = dict(SET_UP)
            if cards:
                cells.append(new_markdown_cell("\n".join(cards)))
    judged = [claim for claim in claims.values() if claim.notebook == slug]
    title, question, announced = (*opening.source.split("\n\n", 2), "", "")[:3]
    opening.source = f"{title}\n\n{question}"
    later = [new_markdown_cell(announced)] if announced else []
    page.cells = [opening, *_in_short(judged, preset, by_scale, undecided), *later, *cells]
    return page


def stored(notebook: NotebookNode, slug: str, preset: str, claims: Mapping[str, Claim]) -> NotebookNode:
    """A chapter that was not run at ``preset``, a name or a file, with its stored outputs and a note that says so.

    Each verdict is the stored one, on a card without a value.
    """
    page = chapter(notebook, slug, preset, {}, claims)
    lines = (
        ":::{admonition} Not run for this book", ":class: warning not-run",
        f"This chapter shows outputs that are stored in the repository, from another run, at `{presets.DEFAULT}`. "
        f"To run it for this book: `make book PRESET={preset} NB={slug}`.", ":::",
    )  # fmt: skip
    page.cells.insert(1, new_markdown_cell("\n".join(lines)))
    return page


def with_colours(page: str, figure: str) -> str:
    """A page's text whose figure keeps its colours on dark pages, as photographs should."""
    mark = f":name: {figure}\n"
    return page.replace(mark, f"{mark}:figclass: tag_{PHOTOGRAPHS}\n")


def picture(executed: NotebookNode, name: str) -> bytes:
    """The PNG of the figure that is called ``name`` in a notebook; raises ``ValueError`` when there is none."""
    for cell in executed.cells:
        if cell.metadata.get("mystnb", {}).get("figure", {}).get("name") == name:
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    return base64.b64decode(output.data["image/png"])
    raise ValueError(f"no figure {name!r} in the notebook")


def carried(by_scale: Mapping[str, Mapping[str, Record]], claims: Mapping[str, Claim]) -> list[str]:
    """Lines that say how much of the improvement from A to F comes otherwise: from configuration B alone (c06), and
    from as many images (c13's control), and what F removes beyond these (c46); none for what was not judged."""
    sources = (
        (
            "c06",
            "measured",
            "Configuration B, which only starts from the teacher's weights with a larger batch, removes",
        ),
        ("c13", "control", "The vanilla flow, trained on as many images, removes"),
        ("c46", "measured", "Of that flow's distance, the improved training removes"),
    )
    lines = []
    for id, kind, said in sources:
        shares = [
            f"{value(claims[id], values)} at `{preset}`"
            for preset, found in by_scale.items()
            if id in found and not found[id].stale(claims[id]) and (values := getattr(found[id], kind))
        ]
        lines += [f"{said} {', '.join(shares)}."] if shares else []
    return lines


def summary(by_scale: Mapping[str, Mapping[str, Record]], claims: Mapping[str, Claim]) -> str:
    """The main result at each scale, as Markdown."""
    claim, lines = claims["c13"], []
    for preset, found in by_scale.items():
        if claim.id in found:
            of_seeds = f"{len(found[claim.id].measured)} seeds"
            lines.append(f"- `{preset}`: **{value(claim, found[claim.id].measured)}** ({of_seeds})")
    if not lines:
        return ""
    said = "The improved training removes this share of the vanilla flow's {term}`Fréchet distance`, in one step:"
    return "\n".join([said, "", *lines, f"- the paper: FID {claim.paper}", "", *carried(by_scale, claims), ""])


def judged(executed: NotebookNode) -> set[str]:
    """The claims whose verdict a notebook printed."""
    outputs = (output for cell in executed.cells for output in cell.get("outputs", []))
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    found = filter(None, map(_printed_verdict, printed.splitlines()))
    return {match["id"] for match in found if match["verdict"] != "not judged"}
