"""The book as a PDF: what is missing is said, and an equation that is not typeset stops the printing."""

import browsers
import pytest

from rfpp.book import BuildFailed, printing

needs_browser = pytest.mark.skipif(browsers.chromium() is None, reason="Chromium is not installed")
TYPESET = '<span class="math"><mjx-container>x</mjx-container></span>'


@pytest.fixture
def document(tmp_path):
    """Writes a document as Sphinx does, with an engine that claims to be done."""

    def write(body):
        path = tmp_path / "singlehtml" / "book" / "intro.html"
        path.parent.mkdir(parents=True)
        engine = "<script>window.MathJax = {startup: {promise: Promise.resolve()}}</script>"
        path.write_text(f"<!doctype html><html><head>{engine}</head><body>{body}</body></html>")
        return path

    return write


def test_without_chromium_it_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CHROMIUM", raising=False)
    with pytest.raises(BuildFailed, match="none of chromium, .* is on the path; install it .*apt install chromium"):
        printing.chromium()
    monkeypatch.setenv("CHROMIUM", "/nowhere/chrome")
    with pytest.raises(BuildFailed, match="CHROMIUM=/nowhere/chrome is not a program"):
        printing.chromium()


@needs_browser
def test_the_pages_are_printed(document, tmp_path):
    target = printing.write(document(f"<h1>Title</h1>{TYPESET}"), tmp_path / "book.pdf")
    assert target.read_bytes().startswith(b"%PDF") and [path.name for path in tmp_path.glob("*.pdf")] == ["book.pdf"]


@needs_browser
@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (f'{TYPESET}<span class="math">y</span>', "1 of 2 formulas were typeset, 0 of them with an error"),
        (f"{TYPESET}<mjx-merror>z</mjx-merror>", "1 of 1 formulas were typeset, 1 of them with an error"),
    ],
)
def test_an_equation_that_is_not_typeset_stops_it(document, tmp_path, body, complaint):
    with pytest.raises(BuildFailed, match=complaint):
        printing.write(document(body), tmp_path / "book.pdf")
    assert not list(tmp_path.glob("*.pdf"))
