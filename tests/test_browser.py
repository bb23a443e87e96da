"""The built book in a browser, from the disk and without a network: nothing fails, and everybody can read it.

Run ``make book`` first. Without a built book, Chromium or Playwright these tests are skipped.
"""

from __future__ import annotations

import functools
import html.parser
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import browsers
import pytest

ROOT = Path(__file__).resolve().parents[1] / "_build" / "html"
CHROMIUM = browsers.chromium()
FILES = [path for path in sorted(ROOT.rglob("*.html")) if "_static" not in path.relative_to(ROOT).parts]
if not FILES:
    pytest.skip("the book is not built: run `make book` first", allow_module_level=True)
if CHROMIUM is None:
    pytest.skip("Chromium is not installed: the pages are not checked in a browser", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.base", reason="axe-playwright-python is not installed")

SOURCES = [path for path in FILES if "_modules" in path.parts]
"""Pages with the library's code, all made by one template: one of middling length and the one with the longest name
stand for all in the browser."""
LIBRARY = sorted((path for path in FILES if path.parent == ROOT / "book" / "api"), key=lambda path: path.stat().st_size)
"""Pages made of docstrings, long and coloured alike: the shortest of them stands for all where it is about colours."""
PAGES = [path for path in FILES if path not in SOURCES and path != ROOT / "index.html"]
PAGES += sorted(SOURCES, key=lambda path: path.stat().st_size)[len(SOURCES) // 2 :][:1]
PAGES += sorted((path for path in SOURCES if path not in PAGES), key=lambda path: len(str(path)))[-1:]
LOOKS = {"light": ("light", 1280), "dark": ("dark", 1280), "phone": ("light", 390)}
VIEWS = [
    pytest.param((path, look), id=f"{path.relative_to(ROOT).with_suffix('').as_posix()}-{look}")
    for path in PAGES
    for look in LOOKS
    if look != "dark" or path not in LIBRARY[1:]
]
SEVERE = ("serious", "critical")

STILL = "*, ::before, ::after { transition: none !important; animation: none !important; }"
TYPESET = """async () => {
    await window.MathJax?.startup?.promise;
    const count = (what) => document.querySelectorAll(what).length;
    return [count(".math"), count(".math mjx-container"), count("mjx-merror")];
}"""
CUT_OFF = """() => {
    const wide = document.documentElement.clientWidth;
    const hides = (node) => ["hidden", "clip"].includes(getComputedStyle(node).overflowX);
    const narrow = (node) => node.scrollWidth > node.clientWidth + 1;
    const scrolls = (node) => ["auto", "scroll"].includes(getComputedStyle(node).overflowX);
    const inside = (node, what) => node && (what(node) || inside(node.parentElement, what));
    const hidden = (node) => node.closest(".visually-hidden, .math, .onlyprint");
    return [...document.querySelectorAll("article *")]
        .filter((node) => node.checkVisibility() && !hidden(node) && !inside(node, scrolls))
        .filter((node) => node.getBoundingClientRect().right > wide + 1 || (hides(node) && narrow(node)))
        .map((node) => node.outerHTML.slice(0, 120));
}"""
SQUEEZED = """() => [...document.querySelectorAll("article figure img")]
    .filter((image) => image.checkVisibility() && image.naturalWidth)
    .filter((image) => Math.abs(image.width / image.height / (image.naturalWidth / image.naturalHeight) - 1) > 0.05)
    .map((image) => image.src.slice(-60))"""
OUT_OF_REACH = """() => {
    const scrolls = (node) => ["auto", "scroll"].includes(getComputedStyle(node).overflowX);
    const reached = (node) => node.tabIndex >= 0 || node.querySelector("a[href], button, [tabindex='0']");
    return [...document.querySelectorAll("main *")]
        .filter((node) => node.scrollWidth > node.clientWidth + 1 && node.checkVisibility())
        .filter((node) => scrolls(node) && !reached(node))
        .map((node) => node.outerHTML.slice(0, 120));
}"""
UNSEEN_FOCUS = """() => {
    const look = (node) => {
        const style = getComputedStyle(node);
        const ring = style.outlineStyle === "none" ? "none" : `${style.outlineStyle} ${style.outlineWidth}`;
        return [ring, style.boxShadow, style.borderColor, style.backgroundColor, style.textDecoration].join();
    };
    const unseen = [];
    const can = (node) => node.tabIndex >= 0 && !node.disabled && node.checkVisibility({ visibilityProperty: true });
    const all = document.querySelectorAll("a[href], button, input, select, summary, [tabindex]");
    for (const node of [...all].filter(can)) {
        const around = [node, ...node.children, node.parentElement];
        document.activeElement.blur();
        const before = around.map(look).join();
        node.focus({ preventScroll: true });
        const same = around.map(look).join() === before;
        if (document.activeElement === node && same) unseen.push(node.outerHTML.slice(0, 120));
    }
    return unseen;
}"""
AXE = """([only, colours]) => axe.run({ exclude: [["mjx-container"]] }, {
    preload: false,
    resultTypes: ["violations"],
    ...(only.length ? { runOnly: only } : {
        rules: { "label-content-name-mismatch": { enabled: true }, "color-contrast": { enabled: colours } },
    }),
})"""


class Visit:
    """A page that was opened on a light desktop, with what it complained about and asked for."""

    def __init__(self, browser: Any, path: Path) -> None:
        self.path, self.seen_in = path, "light"
        self.context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="light", offline=True)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self._hear(message))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self._ask(request.url))
        self.page.goto(path.as_uri())
        self.page.add_style_tag(content=STILL)
        self.formulas, self.typeset, self.broken = self.page.evaluate(TYPESET)
        self.page.evaluate(axe.AXE_FILE_PATH.read_text())

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _ask(self, url: str) -> None:
        if urlsplit(url).scheme not in ("file", "data", "blob"):
            self.requests.append(url)

    def look(self, name: str) -> None:
        """See the page in light or dark, on a desktop or a phone."""
        self.seen_in = name
        theme, width = LOOKS[name]
        self.page.emulate_media(color_scheme=theme)
        if width != self.page.viewport_size["width"]:
            self.page.set_viewport_size({"width": width, "height": 800})
            self.page.wait_for_timeout(400)  # the theme looks 300 ms later for what has to scroll now
        self.page.wait_for_function("theme => document.documentElement.dataset.theme === theme", arg=theme)

    def found_by_axe(self, *only: str) -> list[str]:
        """Severe findings, of some rules or of all."""
        found = self.page.evaluate(AXE, [list(only), self.path not in LIBRARY[1:]])["violations"]
        return [
            f"{rule['id']} ({rule['impact']}): {node['html'][:200]}"
            for rule in found
            if rule["impact"] in SEVERE
            for node in rule["nodes"]
        ]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def visits(browser: Any) -> Iterator[list[Visit]]:
    """The page that is open; only one at a time is."""
    opened: list[Visit] = []
    yield opened
    for visit in opened:
        visit.context.close()


@pytest.fixture(scope="module", params=VIEWS)
def view(request: pytest.FixtureRequest, browser: Any, visits: list[Visit]) -> Visit:
    """A page in one of its looks."""
    path, look = request.param
    if not visits or visits[0].path != path:
        for visit in visits:
            visit.context.close()
        visits[:] = [Visit(browser, path)]
    visits[0].look(look)
    return visits[0]


def test_nothing_is_cut_off(view: Visit) -> None:
    wide, seen = view.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide <= seen
    assert view.page.evaluate(CUT_OFF) == []


def test_everybody_can_read_it(view: Visit) -> None:
    """By axe-core: all rules in light, those about colours again in dark. On a phone, what scrolls can be reached."""
    if view.seen_in == "phone":
        assert view.page.evaluate(OUT_OF_REACH) == []
    else:
        assert view.found_by_axe(*(["color-contrast", "link-in-text-block"] if view.seen_in == "dark" else [])) == []


def test_keyboard_focus_is_seen(view: Visit) -> None:
    view.page.keyboard.press("Tab")  # from now on focus is that of a keyboard
    assert view.page.evaluate(UNSEEN_FOCUS) == []


def test_every_equation_and_every_image_is_there(view: Visit) -> None:
    assert (view.typeset, view.broken) == (view.formulas, 0)
    images = view.page.evaluate("[...document.images].map(image => [image.src, image.alt, image.naturalWidth])")
    assert [image for image in images if not (image[1].strip() and image[2])] == []
    assert view.page.evaluate(SQUEEZED) == []


def test_nothing_fails_and_nothing_is_fetched(view: Visit) -> None:
    assert not view.complaints
    assert not view.requests


FOLDED = """() => {
    const height = (node) => node.getBoundingClientRect().height;
    const code = [...document.querySelectorAll("article div.cell_input, article details.hide")];
    const outermost = code.filter((node) => !node.parentElement.closest("div.cell_input, details.hide"));
    return outermost.map(height).reduce((a, b) => a + b, 0) / height(document.querySelector("article"));
}"""


FIRST_FIGURE = """() => {
    const figure = document.querySelector("article figure img");
    const note = document.querySelector("article .not-run");  // of a chapter that this book shows as stored
    return figure.getBoundingClientRect().top + window.scrollY - (note ? note.getBoundingClientRect().height : 0);
}"""


@pytest.fixture(params=[path for path in PAGES if path.parent.name == "notebooks"], ids=lambda path: path.stem)
def chapter(request: pytest.FixtureRequest, browser: Any) -> Iterator[Any]:
    """A chapter on a desktop, with its equations typeset and its code folded."""
    page = browser.new_page(offline=True, viewport={"width": 1280, "height": 800})
    page.goto(request.param.as_uri())
    page.evaluate(TYPESET)
    yield page
    page.close()


def test_a_chapter_shows_more_than_code(chapter: Any) -> None:
    """Folded code takes a tenth of its height at most."""
    assert chapter.evaluate(FOLDED) < 0.1


def test_the_first_figure_is_near_the_top(chapter: Any) -> None:
    """It begins within the first screen and a half."""
    assert chapter.evaluate(FIRST_FIGURE) < 1.5 * 800


def test_a_keyboard_unfolds_what_was_found(browser: Any) -> None:
    """Paper shows it unfolded, and the screen folds it again."""
    page = browser.new_page(offline=True)
    page.goto((ROOT / "notebooks" / "04_ablation.html").as_uri())
    if page.locator(".not-run").count():
        pytest.skip("the chapter was not run for this book, so nothing was found: run `make book`")
    folded = page.locator(".found details")
    last = folded.locator("a").last
    assert not last.is_visible()
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert last.is_visible()
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert not last.is_visible()
    folded.locator("summary").press("Enter")
    last.press("Enter")
    place = last.get_attribute("href")
    assert page.url.endswith(place)
    assert page.locator(place).is_visible()
    page.close()


def test_the_pages_are_small() -> None:
    assert sum(path.stat().st_size for path in ROOT.rglob("*.html")) < 30e6


@pytest.mark.parametrize("words", ["premetric", "autocorrelated", "Lipschitz", "SIGTERM"])
def test_search_finds_words_of_the_body(browser: Any, words: str) -> None:
    page = browser.new_page(offline=True)
    page.goto((ROOT / "search.html").as_uri())
    field = page.locator("main input[type=search], main input[name=q]").first
    field.fill(words)
    field.press("Enter")
    page.locator("#search-results li a").first.wait_for()
    page.close()


class Links(html.parser.HTMLParser):
    """What a page links to, and where links to it may lead."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.to: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id" or (tag == "a" and name == "name"):
                self.places.add(value or "")
            elif name in ("href", "src") and value:
                self.to.append(value)


def test_no_link_is_broken() -> None:
    """On the disk: every file that a page names is there, and every place in it."""
    pages = {path: Links(path) for path in FILES}

    @functools.cache
    def leads_nowhere(folder: Path, link: str) -> bool:
        target = urlsplit(urljoin(f"{folder.as_uri()}/", link))
        file, place = Path(unquote(target.path)), unquote(target.fragment)
        return target.scheme == "file" and (
            not file.exists() or bool(place and file in pages and place not in pages[file].places)
        )

    broken = defaultdict(set)
    for path, links in pages.items():
        for link in set(links.to):
            place = unquote(link[1:])
            if place and place not in links.places if link.startswith("#") else leads_nowhere(path.parent, link):
                broken[link].add(path.relative_to(ROOT).as_posix())
    assert not broken
