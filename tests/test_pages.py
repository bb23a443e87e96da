"""Chapters as the book shows them: records take the place of what notebooks print."""

import base64
import re
from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from rfpp.base import paths
from rfpp.book import pages, results, tables
from rfpp.claims import ledger, statistics

CLAIMS = ledger()
IMAGE = b"a picture"


def record(verdict, measured, control=None, stale=False):
    return SimpleNamespace(verdict=verdict, measured=measured, control=control, stale=lambda claim: stale)


BY_SCALE = {
    "small": {"c13": record("reproduced", [0.7, 0.8, 0.9], [0.0, 0.1, -0.1]), "c14": record("not reproduced", [2.0])},
    "big": {"c13": record("inconclusive", [0.4, 0.6])},
}


@pytest.fixture
def executed():
    """A chapter whose second cell prints two verdicts, a claim that is not judged, and a line of its own."""
    printed = (
        "c13 reproduced (3 seeds): share; rule: above 0.5\nmine: 3\nc14 not reproduced (one run): x; rule: below 1\n"
    )
    figure = {"mystnb": {"figure": {"name": "fig-x", "caption": "x"}}}
    shown = new_output("display_data", {"image/png": base64.b64encode(IMAGE).decode()})
    cells = [
        new_markdown_cell("# Training\n\n*Why?*"),
        new_code_cell("show()", metadata=figure, outputs=[shown]),
        new_code_cell("check()", outputs=[new_output("stream", name="stdout", text=printed)]),
        new_code_cell("skip()", outputs=[new_output("stream", name="stdout", text="c22 not judged: elsewhere only\n")]),
        new_code_cell("warn()", outputs=[new_output("stream", name="stderr", text="c13 reproduced: no verdict\n")]),
    ]
    notebook = new_notebook(cells=cells)
    nbformat.validate(notebook)
    return notebook


@pytest.fixture
def page(executed):
    made = pages.chapter(executed, "training", "small", BY_SCALE, CLAIMS)
    nbformat.validate(made)
    return made


def text(cell):
    """What a reader sees of a cell's Markdown."""
    return re.sub("<[^>]*>", "", cell.source).replace(pages.NARROW_SPACE, " ")


def test_what_was_found_stands_below_the_question_at_all_scales(page):
    assert page.cells[0].source.startswith("# Training")
    found = text(page.cells[1])
    # Student's t for two degrees of freedom: 4.303; the spread is 0.1, of three seeds
    assert "✓ reproduced 80 % [55, 105] at `small`; ? inconclusive 50 % [-77, 177] at `big`" in found
    assert "✗ not reproduced 2 at `small`" in found and CLAIMS["c14"].statement in found
    assert '<a href="#c13">' in page.cells[1].source and f"Measured: {CLAIMS['c13'].quantity}." in found


@pytest.mark.parametrize(("value", "shown"), [(-0.0004, "0"), (-0.004, "-0.4"), (0.0996, "10"), (-0.2, "-20")])
def test_nothing_is_less_than_nothing(value, shown):
    assert tables.percent(value) == shown and tables.number(-0.0) == "0"


def test_of_many_verdicts_the_first_stands_open_and_the_others_are_counted(executed):
    found = {"c06": ["reproduced"], "c07": ["not reproduced"], "c08": ["reproduced"], "c09": ["not reproduced"]}
    by_scale = {"small": {id: record(verdict, [0.5]) for id, (verdict,) in found.items()}, "big": {}}
    box = pages.chapter(executed, "ablation", "small", by_scale, CLAIMS).cells[1]
    above, summary, folded = re.split("<details><summary>|</summary>", box.source)
    assert CLAIMS["c06"].statement in above and "50" in above and CLAIMS["c07"].statement not in above
    said = re.sub("<[^>]*>", "", summary)
    assert said == "3 more at small: ✓ 1 reproduced ✗ 2 not reproduced"
    assert re.findall(r'href="#(c\d\d)"', folded) == ["c07", "c08", "c09"]


def test_a_single_verdict_is_no_list(executed):
    found = {"c13": BY_SCALE["small"]["c13"]}
    box = pages.chapter(executed, "training", "small", {"small": found}, CLAIMS).cells[1].source
    assert "<details>" not in box and not re.search("^- ", box, re.M)


def test_the_announcement_follows_what_was_found(executed):
    executed.cells[0].source += "\n\n**What you will see.** A figure.\n\n**What it costs.** Seconds."
    opening, found, announced = pages.chapter(executed, "training", "small", BY_SCALE, CLAIMS).cells[:3]
    assert opening.source == "# Training\n\n*Why?*" and ":class: found" in found.source
    assert announced.source == "**What you will see.** A figure.\n\n**What it costs.** Seconds."


def test_what_prepares_a_chapter_is_folded_with_its_output(executed):
    """All other cells keep their outputs open."""
    said = new_output("execute_result", {"text/plain": "Experiment('small')"}, execution_count=1)
    executed.cells[1:1] = [new_code_cell("preset = 1"), new_code_cell("Experiment(preset)", outputs=[said])]
    made = pages.chapter(executed, "training", "small", BY_SCALE, CLAIMS).cells
    folded = [cell.source for cell in made if "hide-cell" in cell.metadata.get("tags", [])]
    assert folded == ["preset = 1", "Experiment(preset)"]


def test_a_verdict_has_its_value_where_it_was_reached(page):
    """The other lines of the cell stay; what goes to stderr is no verdict."""
    place = [cell.source for cell in page.cells].index("check()")
    (kept,), cards = page.cells[place].outputs, page.cells[place + 1]
    assert kept.text == "mine: 3\n"
    assert [match for match in re.findall(r'id="(c\d\d)"', cards.source)] == ["c13", "c14"]
    assert "80 % [55, 105]: share of A&#x27;s" in text(cards) and "Rule: above 50 %; control 0 % [-25, 25]." in text(
        cards
    )
    assert 'class="verdict not-reproduced" id="c14"' in cards.source and "\n\n" not in cards.source
    assert page.cells[-1].outputs[0].text == "c13 reproduced: no verdict\n"


def test_what_is_undecided_after_correction_is_told(executed):
    """Both have a p-value between 2.5 and 5 %; alone, the first is decided at the other scale."""
    doubtful = {"c06": record("reproduced", [0.05, 0.06, 0.03]), "c07": record("reproduced", [0.145, 0.21, 0.275])}
    for id in doubtful:
        rule, values = CLAIMS[id].rule, doubtful[id].measured
        assert rule.above == 0 and 0.02 < statistics.p_value(rule, values) < 0.05
    place = [cell.source for cell in executed.cells].index("check()")
    executed.cells[place].outputs[0].text = "c06 reproduced (3 seeds): share; rule: above 0\n"
    by_scale = {"small": doubtful, "big": {"c06": doubtful["c06"]}}
    made = pages.chapter(executed, "ablation", "small", by_scale, CLAIMS)
    assert "Corrected for the number of claims, no longer decided at small." in text(made.cells[1])
    (card,) = [cell.source for cell in made.cells if 'id="c06"' in cell.source]
    assert "Corrected for the number of claims, this is no longer decided." in card
    alone = pages.chapter(executed, "ablation", "big", by_scale, CLAIMS)
    assert not any("this is no longer decided" in cell.source for cell in alone.cells)


def test_a_claim_that_was_not_judged_says_why(page):
    place = [cell.source for cell in page.cells].index("skip()")
    assert not page.cells[place].outputs
    assert "– not judged" in text(page.cells[place + 1]) and "elsewhere only" in text(page.cells[place + 1])


def test_code_is_folded_and_the_notebook_itself_stays_as_it_is(executed, page):
    assert all("hide-input" in cell.metadata.tags for cell in page.cells if cell.cell_type == "code")
    assert "tags" not in executed.cells[1].metadata and executed.cells[2].outputs[0].text.startswith("c13")


def test_a_chapter_without_records_has_no_box(executed):
    page = pages.chapter(executed, "training", "other", BY_SCALE, CLAIMS)
    assert page.cells[1].source == "show()"


def test_a_stored_chapter_says_so_and_shows_verdicts_without_values(executed):
    page = pages.stored(executed, "training", "big", CLAIMS)
    nbformat.validate(page)
    note, shown = page.cells[1].source, "\n".join(map(text, page.cells))
    assert "Not run for this book" in note and "run, at `laptop`" in note and "make book PRESET=big NB=training" in note
    assert "What was found" not in shown and re.search("✓ reproduced .*share; rule: above 0.5", shown)


@pytest.mark.parametrize(
    ("source", "in_colour", "kept"),
    [
        ("plots.image_rows(rows)\nplots.plt.show()", True, True),
        ("plots.sheets(images, 8)", True, True),
        ("plots.image_rows(rows)", False, False),
        ("plots.by_seed(values)", True, False),
    ],
)
def test_colour_images_keep_their_lightness_on_dark_pages(source, in_colour, kept):
    made = new_notebook(cells=[new_markdown_cell("# Title"), new_code_cell(source)])
    page = pages.chapter(made, "training", "other", BY_SCALE, CLAIMS, in_colour)
    assert (pages.PHOTOGRAPHS in page.cells[-1].metadata["tags"]) == kept
    css = (paths.repository() / "book" / "_static" / "custom.css").read_text()
    assert f".tag_{pages.PHOTOGRAPHS} img" in css


@pytest.mark.parametrize(("page", "figure"), [("intro.md", "fig-first"), ("live.md", "fig-live-digits")])
def test_so_do_the_two_pictures_of_samples_on_other_pages(page, figure):
    text = (paths.repository() / "book" / page).read_text()
    lines = pages.with_colours(text, figure).splitlines()
    at = lines.index(f":name: {figure}")
    assert lines.pop(at + 1) == f":figclass: tag_{pages.PHOTOGRAPHS}" and lines == text.splitlines()


def test_the_first_page_takes_its_picture_from_a_notebook(executed):
    assert pages.picture(executed, "fig-x") == IMAGE
    with pytest.raises(ValueError, match="no figure 'fig-y'"):
        pages.picture(executed, "fig-y")


def test_the_result_in_a_sentence_has_every_scale():
    said = pages.summary(BY_SCALE, CLAIMS).replace(pages.NARROW_SPACE, " ")
    assert "- `small`: **80 % [55, 105]** (3 seeds)" in said and "- `big`: **50 % [-77, 177]** (2 seeds)" in said
    assert CLAIMS["c13"].paper in said and pages.summary({"small": {}}, CLAIMS) == ""


def test_what_else_brings_the_improvement_is_said_beside_the_result():
    """The first rung, as many images, and what is beyond these; not where a record has no control, or older terms."""
    found = {"c06": record("reproduced", [0.6]), "c46": record("inconclusive", [0.4])}
    found["c13"] = record("vacuous", [0.8], control=[0.7, 0.7])
    said = pages.summary({"small": found, "big": BY_SCALE["big"]}, CLAIMS).replace(pages.NARROW_SPACE, " ").rstrip()
    assert [line.split(" removes ")[-1] for line in said.splitlines()[-3:]] == [
        "60 % at `small`.", "70 % [70, 70] at `small`.", "40 % at `small`."
    ]  # fmt: skip
    assert pages.carried(BY_SCALE, CLAIMS) != [] == pages.carried({"big": BY_SCALE["big"]}, CLAIMS)
    assert pages.carried({"small": {"c13": record("vacuous", [0.8], [0.7], stale=True)}}, CLAIMS) == []


def test_a_card_says_that_the_terms_were_changed(executed):
    """c04's rule was, c14's was not; a control that was added changes no verdict."""
    assert pages.changes(CLAIMS["c04"]) and not pages.changes(CLAIMS["c14"])
    executed.cells[2].outputs[0].text = "c04 reproduced (3 seeds): x; rule: below 0.2\nc14 reproduced (one run): x; r\n"
    page = pages.chapter(executed, "training", "other", BY_SCALE, CLAIMS)
    cards = text(page.cells[3]).split("\n")
    assert ["the terms were changed" in card for card in cards] == [True, False]


def test_the_tally_tells_claims_of_the_paper_from_the_books_own():
    """c31 is about MeanFlow, of which the paper does not speak; c36 repeats c08."""
    assert CLAIMS["c31"].own and not CLAIMS["c13"].own
    found = {"small": {**BY_SCALE["small"], **dict.fromkeys(("c31", "c36"), record("reproduced", [0.5, 0.6]))}}
    *lines, last, _ = results._tally(found, CLAIMS)
    rows = [re.sub("<[^>]*>", "", line).split(" | ") for line in lines if "`small`" in line]
    assert [row[1:6] for row in rows] == [["the paper's", "1", "1", "0", "0"], ["this book's", "1", "0", "0", "0"]]
    counted = [claim for claim in CLAIMS.values() if claim.only_at is None and claim.repeats is None]
    assert sum(int(row[6]) for row in rows) == len(counted) - 3
    assert last == "Not counted: c36, which repeats c08."


@pytest.mark.parametrize(
    ("id", "values", "shown"),
    [
        ("c13", [0.123], "12 %"),
        ("c13", [0.0996], "10 %"),
        ("c13", [0.0123], "1.2 %"),
        ("c13", [-1.68], "-168 %"),
        ("c18", [1.1375], "1.14"),
        ("c14", [1.81e-11], "1.81e-11"),
    ],
)
def test_shares_are_shown_in_per_cent(id, values, shown):
    assert pages.value(CLAIMS[id], values).replace(pages.NARROW_SPACE, " ") == shown


@pytest.mark.parametrize(
    ("id", "shown"),
    [
        ("c13", "above 50 %"),
        ("c18", "below 1"),
        ("c22", "between 5 and 25 %"),
        ("c08", "above -5 %"),
        ("c06", "above 0 %"),
    ],
)
def test_a_rule_is_in_the_unit_of_its_values(id, shown):
    assert pages.rule(CLAIMS[id]).replace(pages.NARROW_SPACE, " ") == shown
