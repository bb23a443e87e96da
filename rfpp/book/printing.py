"""The whole book as one PDF: all pages in one document, which Chromium prints once every equation is typeset."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from rfpp.base import files
from rfpp.book import BuildFailed

VARIABLE = "CHROMIUM"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FOOTER = '<div style="font-size:8px; width:100%; text-align:center"><span class="pageNumber"></span></div>'
_TYPESET = """async () => {
    await window.MathJax.startup.promise;
    for (const each of document.querySelectorAll("details:not(.hide)")) each.open = true;
    const count = (what) => document.querySelectorAll(what).length;
    return [count(".math"), count(".math mjx-container"), count("mjx-merror")];
}"""


def chromium() -> str:
    """The path of Chromium or a related browser; raises :class:`rfpp.book.BuildFailed` when there is none."""
    given = os.environ.get(VARIABLE)
    found = next(filter(None, map(shutil.which, [given] if given else _NAMES)), None)
    if found is None:
        what = f"{VARIABLE}={given} is not a program" if given else f"none of {', '.join(_NAMES)} is on the path"
        raise BuildFailed(
            f"a PDF is printed by Chromium, and {what}; install it (Debian and Ubuntu: apt install chromium), "
            f"or set the variable {VARIABLE} to its path"
        )
    return found


def write(document: Path, target: Path) -> Path:
    """Print the book's single HTML document, as Sphinx makes it, into ``target``.

    Answers, tables and verdicts that are folded on a screen are open; code stays folded. Raises
    :class:`rfpp.book.BuildFailed` without Chromium, and when an equation is not typeset.
    """
    from playwright.sync_api import sync_playwright

    program = chromium()
    # In a single document, Sphinx writes internal links relative to the root, wherever it puts the document itself.
    page_file = document.parents[1] / "book.html"
    shutil.copy2(document, page_file)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            page = browser.new_page(color_scheme="light")
            page.goto(page_file.as_uri())
            page.wait_for_function("() => window.MathJax?.startup?.promise", timeout=120_000)
            formulas, typeset, broken = page.evaluate(_TYPESET)
            if broken or typeset < formulas:
                raise BuildFailed(f"{typeset} of {formulas} formulas were typeset, {broken} of them with an error")
            page.emulate_media(media="print")
            printed = page.pdf(
                format="A4", margin={"top": "18mm", "bottom": "18mm", "left": "16mm", "right": "16mm"},
                print_background=True, outline=True, tagged=True,
                display_header_footer=True, header_template="<span></span>", footer_template=_FOOTER,
            )  # fmt: skip
        finally:
            browser.close()
    with files.replacing(target) as partial:
        partial.write_bytes(printed)
    return target
