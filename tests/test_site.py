"""What the book has beside its chapters: names that lead somewhere, tables of scales, the state of things."""

import re
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from docutils import nodes
from docutils.utils import new_document
from sphinx import addnodes
from sphinx.util.inventory import InventoryFile

import rfpp
from rfpp import presets
from rfpp.book import site, sizes, status
from rfpp.experiment import Experiment
from rfpp.pipeline import shipped

ROOT = Path(__file__).resolve().parents[1]
INSIDE = {
    "rfpp.__main__", "rfpp.commands", "rfpp.base.progress", "rfpp.base.torchvision_shim", "rfpp.book.live",
    "rfpp.book.printing", "rfpp.book.site", "rfpp.book.together", "rfpp.pipeline.digests", "rfpp.pipeline.identities",
    "rfpp.pipeline.syntax",
}  # fmt: skip
"""Modules that nobody outside of the library calls."""


def table(*headings):
    row = nodes.row("", *(nodes.entry("", nodes.paragraph("", text)) for text in headings))
    return nodes.table("", nodes.tgroup("", nodes.thead("", row)))


def test_every_module_has_its_place_among_the_library_pages():
    """A package's modules are on its page where it names what they offer."""
    pages = "".join(path.read_text() for path in (ROOT / "book" / "api").glob("*.md"))
    listed = set(re.findall(r"automodule:: (\S+)", pages))
    folder = Path(rfpp.__file__).parent
    modules = {".".join(path.relative_to(folder.parent).with_suffix("").parts) for path in folder.rglob("*.py")}
    modules = {module.removesuffix(".__init__") for module in modules} - {"rfpp", "rfpp.base", "rfpp.pipeline"}
    of_package = {module for module in modules if module.rpartition(".")[0] in listed}
    assert modules - listed - of_package - INSIDE == {"rfpp.studies"}
    assert listed <= modules


def test_sphinx_reads_the_inventories(tmp_path):
    listed = yaml.safe_load((ROOT / site.ELSEWHERE).read_text())
    for project, entry in listed.items():
        file = tmp_path / f"{project}.inv"
        file.write_bytes(site.inventory(project, entry["names"], entry.get("as", {})))
        with file.open("rb") as stream:
            found = InventoryFile.load(stream, entry["address"], lambda base, page: base + page)["py:class"]
        assert found.keys() == entry["names"].keys() | entry.get("as", {}).keys()
    torch = site.inventory("torch", listed["torch"]["names"], listed["torch"]["as"])
    lines = zlib.decompress(torch.split(b"zlib.\n", 1)[1]).decode().splitlines()
    assert "torch.Tensor py:class 1 tensors.html#torch.Tensor -" in lines
    assert (
        "torch.nn.modules.module.Module py:class 1 generated/torch.nn.Module.html#torch.nn.Module torch.nn.Module"
        in lines
    )


def test_columns_without_a_heading_get_one_that_is_read_and_not_drawn():
    made = nodes.document(None, None, "", table("", "", "NFE", ""))
    site.name_columns(None, made)
    hidden = [node.astext() for node in made.findall(nodes.inline) if node["classes"] == ["visually-hidden"]]
    assert hidden == ["name", "in words", "in words"]
    assert [entry.astext() for entry in made.findall(nodes.entry)] == ["name", "in words", "NFE", "in words"]


def test_consecutive_cells_of_code_fold_together():
    """A cell that shows something ends the line that it shares with those before it; prose does, too."""

    def cell(name, shows=False, mode="input"):
        parts = [nodes.container("", nodes.literal_block("", name)), *([nodes.figure("", ids=[name])] if shows else [])]
        return nodes.container("", *parts, hide_mode=mode)

    document = new_document("a chapter")
    document += [cell("a", mode="all"), cell("b", shows=True, mode="all"), nodes.paragraph("", "prose")]
    document += [cell("c"), cell("d"), cell("e", shows=True), cell("f"), nodes.paragraph("", "prose"), cell("g")]
    site.fold_together(None, document)
    lines = [[code.astext() for code in each.findall(nodes.literal_block)] for each in document]
    assert lines == [["a", "b"], [], ["c", "d", "e"], ["f"], [], ["g"]]
    together = document[2]
    assert len(together) == 2 and isinstance(together[1], nodes.figure)


def test_the_printed_document_draws_what_pages_draw():
    """Its own functions come first; those of LaTeX are not asked."""
    known = {"html": {"fold": "a", "exercise": "b"}, "singlehtml": {"exercise": "c"}, "latex": {"fold": "d"}}
    site.draw_one_document_as_pages(SimpleNamespace(registry=SimpleNamespace(translation_handlers=known)))
    assert known["singlehtml"] == {"fold": "a", "exercise": "c"}


def test_long_constants_are_left_out():
    short, long = (addnodes.desc_annotation("", "", nodes.Text(text)) for text in ("= 1", "= " + "1" * 200))
    made = nodes.document(None, None, "", nodes.paragraph("", "", short, long))
    site.drop_long_values(None, made)
    assert list(made.findall(addnodes.desc_annotation)) == [short]


def test_places_of_the_paper_lead_to_the_sections_that_explain_them():
    """Every label is on the method page; other equations, other pages and code stay as they are."""
    method = (ROOT / "book" / "method.md").read_text()
    assert all(f"({label})=" in method for label in site.EXPLAINED.values())
    labels = {label: ("book/method", label, "A section") for label in site.EXPLAINED.values()}
    builder = SimpleNamespace(get_relative_uri=lambda page, to: f"{to}.html")
    app = SimpleNamespace(builder=builder, env=SimpleNamespace(domains={"std": SimpleNamespace(labels=labels)}))
    text = "By Eq. 4 and Algorithm 1, not Eq. 41, Eq. 4.1 or Section 31; see Section 4.1."
    for page, linked in (("book/api/flows", ["Eq. 4", "Algorithm 1", "Section 4.1"]), ("book/method", [])):
        made = nodes.document(None, None, "", nodes.paragraph("", "", nodes.Text(text), nodes.literal("", "Eq. 4")))
        site.link_places(app, made, page)
        links = list(made.findall(nodes.reference))
        assert [link.astext() for link in links] == linked and made.astext() == text + "Eq. 4"
        assert all(link["refuri"].startswith("book/method.html#method-") for link in links)


def test_settings_show_names_and_defaults():
    shown, _ = site.plain_signature(None, "class", "x", presets.ThirdRound, None, "(**data)", "")
    assert shown == "(*, pairs, nfe, steps)"
    shown, _ = site.plain_signature(None, "class", "x", presets.Pairs, None, "(**data)", "")
    assert shown.endswith("seed, per_seed=False)")
    assert site.plain_signature(None, "class", "x", Experiment, None, "", "") is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (264_145, "264,145"),
        (1.64e6, "1.64 million"),
        (22.4e9, "22.4 billion"),
        (27e12, "27×10¹²"),
        (5.2e21, "5.2×10²¹"),
    ],
)
def test_large_numbers(value, shown):
    assert sizes.large(value).replace("\u202f", " ") == shown


def test_what_a_preset_asks_for_is_what_its_file_says():
    rows = {row[0]: row[1:] for row in sizes.asked().rows}
    assert rows["`paper-imagenet64`"] == ("5,000,000 × 79", "700,000 × 2,048", "5,000", "50,000", 1)
    assert set(rows) == {f"`{name}`" for name in presets.names() if name != "smoke"}


def test_time_is_measured_only_where_all_was_computed(runs):
    (row,) = sizes.taken(["smoke"]).rows
    assert row[-1] == "not measured"
    (row,) = sizes.taken(["cifar10"]).rows
    assert "measured" not in row[-1] and "h" in row[-1]  # what its operations take at the stated rate
    experiment = Experiment("smoke")
    experiment.compute(experiment.plan.steps())
    (row,) = sizes.taken(["smoke"]).rows
    assert row[-1].endswith(", measured")


def test_the_status_page_tells_what_was_computed(runs, tmp_path, monkeypatch):
    experiment = Experiment("smoke")
    experiment.pairs("held_out")
    run = experiment.run.store.root
    (run / "notebooks").mkdir()
    (run / "notebooks" / "01_x.ipynb").touch()
    page = status.page("smoke", run, {"01_x": True, "02_y": False})
    assert re.search(r"\| \{doc\}`../notebooks/01_x` \| \d{4}-\d\d-\d\d \d\d:\d\d UTC \|", page)
    assert "| {doc}`../notebooks/02_y` | not run, shown as stored |" in page
    assert re.search(r"\| pairs \| 1 \| .* \| CPU, \d+ threads?, torch ", page)
    assert page.count("as recorded") == 3 and rfpp.__version__ in page
    copied = tmp_path / "assets"
    copied.mkdir()
    for file in shipped.ASSETS.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    (copied / "digits-teacher.safetensors").write_bytes(b"other")
    monkeypatch.setattr(shipped, "ASSETS", copied)
    assert "differs from what was recorded" in str(status.networks().rows)


@pytest.mark.parametrize(
    ("name", "short", "meant"),
    [
        ("rfpp.flow.interpolate", False, "rfpp.flow.interpolate"),
        ("flow.interpolate", False, "rfpp.flow.interpolate"),
        ("interpolate", False, None),
        ("interpolate", True, "rfpp.flow.interpolate"),
        ("Flow.velocity", False, "rfpp.flow.Flow.velocity"),
        ("load", True, None),  # there are two
        ("flow", False, None),
        ("rfpp.nothing", True, None),
    ],
)
def test_names_of_the_library_in_text(name, short, meant):
    parts = ("rfpp.flow", "rfpp.flow.interpolate", "rfpp.flow.Flow.velocity", "rfpp.data.load", "rfpp.presets.load")
    known = {part: SimpleNamespace(aliased=False) for part in parts}
    assert site._meant(name, short, known) == meant
