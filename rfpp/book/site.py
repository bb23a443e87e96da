"""A Sphinx extension for what the theme leaves out: names for columns without a heading, and roles that fit."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

HIDDEN_HEADINGS = ("name", "in words")
"""What a screen reader says of the first and of any other column that has no heading."""


def name_columns(app: Sphinx, doctree: nodes.document) -> None:
    """Give each empty heading of a table a text that is not drawn."""
    for head in doctree.findall(nodes.thead):
        for row in head.findall(nodes.row):
            for place, entry in enumerate(row.findall(nodes.entry)):
                if not entry.astext().strip():
                    text = HIDDEN_HEADINGS[min(place, len(HIDDEN_HEADINGS) - 1)]
                    entry.clear()
                    entry += nodes.paragraph("", "", nodes.inline("", text, classes=["visually-hidden"]))


WRONG = (' role="list"', ' role="doc-biblioentry"', ' aria-label="Toggle hidden content"')
"""What docutils writes into a bibliography, whose entries are no items of a list, and MyST-NB into the line that folds
code, which would be read in place of what stands there."""


def drop_wrong_labels(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Take off attributes that tell a screen reader something else than the page shows."""
    for attribute in WRONG:
        context["body"] = context.get("body", "").replace(attribute, "")


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("doctree-read", name_columns)
    app.connect("html-page-context", drop_wrong_labels)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
