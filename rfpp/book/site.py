"""A Sphinx extension for the pages: it links names to their explanations, and repairs what the theme leaves out."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from pydantic import BaseModel
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.nodes import make_refnode

import rfpp

ELSEWHERE = Path("book") / "data" / "elsewhere.yml"
HIDDEN_HEADINGS = ("name", "in words")
"""What a screen reader reads out for the first and for any other column without a heading."""
WRONG = (
    ' role="list"',
    ' role="doc-biblioentry"',
    ' aria-label="Toggle hidden content"',
    '<li><a href="builtins.html">builtins</a></li>\n',
)
"""Wrong output: docutils marks a bibliography as a list, whose entries are no list items; MyST-NB labels the line that
folds code, and the label would be read instead of the line; Sphinx lists a source that has no page."""
EXPLAINED = {
    "Algorithm 1": "method-reflow",
    "Appendix D": "method-sampling",
    "Eq. 1": "method-flow",
    "Eq. 4": "method-decomposition",
    "Proposition 1": "method-initialisation",
    "Section 3": "method-intersections",
    "Section 4.1": "method-timesteps",
    "Section 4.2": "method-premetrics",
    "Section 5.4": "method-inversion",
    "Table 1": "method-configurations",
    "Table 6": "method-cost",
}
"""Places of the paper that docstrings name, and the sections of this book that explain them, by their labels."""
LONG = 120
"""The most characters of a constant that are shown."""
_PLACE = re.compile(rf"\b({'|'.join(map(re.escape, EXPLAINED))})(?![\w.]*\d)")
_NAME = re.compile(r"\.?([A-Za-z_][\w.]*)(\(.*\))?")


def inventory(project: str, names: Mapping[str, str], aliases: Mapping[str, str]) -> bytes:
    """A list of names in the format that Sphinx reads: ``names`` with their pages, ``aliases`` with their names."""
    head = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n# The rest is compressed using zlib.\n"
    places = {name: f"{page}#{name}" for name, page in names.items()}
    places |= {alias: places[name] for alias, name in aliases.items()}
    lines = (f"{name} py:class 1 {place} {aliases.get(name, '-')}\n" for name, place in places.items())
    return head.encode() + zlib.compress("".join(lines).encode())


def names_elsewhere(app: Sphinx, config: Config) -> None:
    """Make the inventories of ``book/data/elsewhere.yml`` known to Sphinx."""
    listed = yaml.safe_load((Path(app.srcdir) / ELSEWHERE).read_text())
    for project, entry in listed.items():
        file = Path(app.doctreedir) / f"{project}.inv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(inventory(project, entry["names"], entry.get("as", {})))
        config.intersphinx_mapping[project] = (entry["address"], str(file))


def draw_one_document_as_pages(app: Sphinx) -> None:
    """Let the single document that is printed draw whatever the pages can.

    Sphinx looks for this builder's own functions first, and then at no others. sphinx-exercise registers some.
    """
    known = app.registry.translation_handlers
    known["singlehtml"] = known.get("html", {}) | known.get("singlehtml", {})


def constants_of_packages(app: Sphinx) -> None:
    """Give autodoc the descriptions of a package's constants from the modules that define them."""
    for found in pkgutil.iter_modules(rfpp.__path__, "rfpp."):
        package = importlib.import_module(found.name) if found.ispkg else None
        names = getattr(package, "__all__", ())
        if not names:
            continue
        own = ModuleAnalyzer.for_module(found.name)
        own.analyze()
        for inner in pkgutil.iter_modules(package.__path__, f"{found.name}."):  # type: ignore[union-attr]
            other = ModuleAnalyzer.for_module(inner.name)
            other.analyze()
            own.attr_docs.update({key: said for key, said in other.attr_docs.items() if not key[0] and key[1] in names})


def plain_signature(
    app: Sphinx, what: str, name: str, item: Any, options: Any, signature: str, returned: str
) -> tuple[str, str] | None:
    """Show only names and defaults in the signatures of settings, whose types are full of bounds."""
    if not (inspect.isclass(item) and issubclass(item, BaseModel)):
        return None
    parameters = inspect.signature(item).parameters.values()
    shown = (str(each.replace(annotation=each.empty)).replace("=PydanticUndefined", "") for each in parameters)
    return f"(*, {', '.join(text for text in shown if text)})", returned


def name_columns(app: Sphinx, doctree: nodes.document) -> None:
    """Give each empty heading of a table a hidden text."""
    for head in doctree.findall(nodes.thead):
        for row in head.findall(nodes.row):
            for place, entry in enumerate(row.findall(nodes.entry)):
                if not entry.astext().strip():
                    text = HIDDEN_HEADINGS[min(place, len(HIDDEN_HEADINGS) - 1)]
                    entry.clear()
                    entry += nodes.paragraph("", "", nodes.inline("", text, classes=["visually-hidden"]))


def fold_together(app: Sphinx, doctree: nodes.document) -> None:
    """Give consecutive cells of folded code a single line that unfolds them, up to the first that shows something."""
    for cell in list(doctree.findall(lambda node: _folds(node) is not None)):
        after = cell.next_node(descend=False, siblings=True)
        if _folds(cell) == _folds(after) == "all":
            after[:0] = cell.children
        elif _folds(cell) == _folds(after) == "input" and len(cell) == 1:  # nothing but code
            after[0][:0] = cell[0].children
        else:
            continue
        cell.parent.remove(cell)


def _folds(node: Any) -> str | None:
    """What is folded of a notebook's cell: its code (``"input"``) or all of it; ``None`` for anything else."""
    return node.get("hide_mode") if isinstance(node, nodes.container) and node.children else None


def drop_long_values(app: Sphinx, doctree: nodes.document) -> None:
    """Leave out the value of a constant if it is long; its source shows it."""
    for note in list(doctree.findall(addnodes.desc_annotation)):
        if len(note.astext()) > LONG:
            note.parent.remove(note)


def _meant(name: str, short: bool, known: Mapping[str, Any]) -> str | None:
    """The full name of a part of the library, given as ``rfpp.flow.interpolate`` or ``flow.interpolate``.

    A method may be given with its class only, as ``RectifiedFlow.velocity``; if ``short``, any part may be given by
    the end of its name. ``None`` for a name that is unknown or ambiguous.
    """
    if name in known:
        return name
    if "." in name and f"rfpp.{name}" in known:
        return f"rfpp.{name}"
    if short or ("." in name and name[0].isupper()):
        ends = [full for full, entry in known.items() if full.endswith(f".{name}") and not entry.aliased]
        return ends[0] if len(ends) == 1 else None
    return None


def link_names(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Link the library's names to the pages that are made from its docstrings.

    The names may be short in a paragraph that begins with "In code".
    """
    known = app.env.domains["py"].data["objects"]
    for node in list(doctree.findall(nodes.literal)):
        match = _NAME.fullmatch(node.astext())
        if match and not isinstance(node.parent, nodes.reference):
            full = _meant(match[1], node.parent.astext().startswith("In code"), known)
            if full is not None and (place := known[full]).docname != page:
                link = make_refnode(app.builder, page, place.docname, place.node_id, node.deepcopy(), full)
                node.parent.replace(node, link)


def link_places(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Link each place of the paper on the library's pages to the section of this book that explains it."""
    if not page.startswith("book/api/"):
        return
    labels = app.env.domains["std"].labels
    for text in list(doctree.findall(nodes.Text)):
        parts = _PLACE.split(text.astext())  # every other one is a place
        if len(parts) > 1 and isinstance(text.parent, nodes.paragraph):
            made: list[nodes.Node] = []
            for between, place in zip(parts[::2], [*parts[1::2], ""], strict=True):
                made += [nodes.Text(between)] if between else []
                if place:
                    document, target, title = labels[EXPLAINED[place]]
                    made.append(make_refnode(app.builder, page, document, target, nodes.Text(place), title))
            text.parent.replace(text, made)


def drop_wrong(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Remove attributes that contradict the page, and a link that leads nowhere."""
    for attribute in WRONG:
        context["body"] = context.get("body", "").replace(attribute, "")


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("config-inited", names_elsewhere)
    app.connect("builder-inited", draw_one_document_as_pages)
    app.connect("builder-inited", constants_of_packages)
    app.connect("autodoc-process-signature", plain_signature)
    app.connect("doctree-read", name_columns)
    app.connect("doctree-read", fold_together)
    app.connect("doctree-read", drop_long_values)
    app.connect("doctree-resolved", link_names)
    app.connect("doctree-resolved", link_places)
    app.connect("html-page-context", drop_wrong)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
