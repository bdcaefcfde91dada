"""The built pages in a real browser: quiet, local, accessible, legible at any width.

They need the built book and a Chromium; without one of them they are skipped, with the command
that helps. Set CHROMIUM to a binary with another name.
"""

import functools
import gzip
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urldefrag, urljoin, urlsplit

import pytest
from accessibility import violations
from browser import CHROMIUM, MISSING, chromium
from bs4 import BeautifulSoup
from playwright.sync_api import Browser, BrowserContext, Page, Response

SITE = Path(__file__).resolve().parent.parent / "_build" / "html"
WIDTHS = {"wide": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
LIMIT = 1_500_000  # bytes of a first view, texts compressed as a web server sends them
TEXTS = ("text/", "application/javascript", "image/svg")

PAGES = sorted(
    path.relative_to(SITE).as_posix()
    for path in SITE.rglob("*.html")
    if "_static" not in path.relative_to(SITE).parts
)
START = "index.html"  # sends the reader on to the first page
CHAPTERS = [name for name in PAGES if name.startswith("chapters/")]
# No fade in which a colour could be measured half way, and nothing that is laid out only when seen.
ALL_AT_ONCE = "* { transition: none !important; content-visibility: visible !important; }"
SETTLED = """async () => {
    await window.setAllFormulas?.();
    await document.fonts.ready;
}"""

pytestmark = [
    pytest.mark.pages,
    pytest.mark.skipif(not PAGES, reason="the book is not built: run `make book`"),
]
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serve files without a line on the terminal for each."""

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    handler = functools.partial(Quiet, directory=SITE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def contexts(browser: Browser) -> Iterator[dict[str, BrowserContext]]:
    """One context for each width; the cache is shared by all pages opened in it."""
    contexts = {name: browser.new_context(viewport=size) for name, size in WIDTHS.items()}
    yield contexts
    for context in contexts.values():
        context.close()


class Visit:
    """One opened page and everything that happened while it loaded."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.complaints: list[str] = []
        self.addresses: list[str] = []
        self.responses: list[Response] = []
        self.page: Page = context.new_page()
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(f"script error: {error}"))
        self.page.on("request", lambda request: self.addresses.append(request.url))
        self.page.on("requestfailed", lambda request: self.complaints.append(f"no {request.url}"))
        self.page.on("response", self._response)
        self.page.goto(url, wait_until="load")
        self.page.evaluate(SETTLED)
        self.page.add_style_tag(content=ALL_AT_ONCE)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"console {message.type}: {message.text}")

    def _response(self, response: Response) -> None:
        self.responses.append(response)
        if response.status >= 400:
            self.complaints.append(f"status {response.status}: {response.url}")

    def set_theme(self, theme: str) -> None:
        self.page.emulate_media(color_scheme=theme)
        self.page.wait_for_function("t => document.documentElement.dataset.theme === t", arg=theme)


@functools.cache
def parsed(name: str) -> BeautifulSoup:
    return BeautifulSoup((SITE / name).read_text(encoding="utf-8"), "html.parser")


@functools.cache
def anchors(name: str) -> frozenset[str]:
    return frozenset(tag["id"] for tag in parsed(name).find_all(id=True))


@pytest.mark.parametrize("name", PAGES)
def test_links_inside_the_book_resolve(name: str) -> None:
    broken = []
    for tag in parsed(name).select("[href], [src]"):
        target, fragment = urldefrag(urljoin(name, tag.get("href") or tag.get("src")))
        if urlsplit(target).scheme:
            continue
        path = unquote(urlsplit(target).path) or name
        path = path + "index.html" if path.endswith("/") else path
        if not (SITE / path).is_file():
            broken.append(path)
        elif fragment and path.endswith(".html") and unquote(fragment) not in anchors(path):
            broken.append(f"{path}#{fragment}")
    assert broken == []


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_loaded_from_another_site(name: str) -> None:
    loading = parsed(name).select("script[src], img[src], iframe[src], link[href]")
    found = [tag.get("src") or tag["href"] for tag in loading]
    assert [url for url in found if urlsplit(url).netloc] == []


@pytest.mark.parametrize("name", PAGES)
def test_every_image_is_described_and_every_id_is_unique(name: str) -> None:
    page = parsed(name)
    for image in page.select("article img"):
        # Without a description Sphinx writes the name of the file.
        assert image.get("alt", "").strip(), image["src"]
        assert not image["alt"].endswith(Path(image["src"]).name), image["src"]
    ids = [tag["id"] for tag in page.find_all(id=True)]
    assert sorted(ids) == sorted(set(ids))


@pytest.mark.parametrize("name", PAGES)
def test_page_has_title_language_and_heading(name: str) -> None:
    page = parsed(name)
    assert page.title.string.strip()
    assert page.html["lang"] == "en"
    assert page.h1.get_text(strip=True)


@pytest.mark.parametrize("name", [name for name in CHAPTERS if parsed(name).select("div.cell")])
def test_chapter_can_be_launched_downloaded_and_edited(name: str) -> None:
    targets = " ".join(link["href"] for link in parsed(name).select(".article-header-buttons a"))
    notebook = Path(name).with_suffix(".ipynb").as_posix()
    for start in ("https://colab.research.google.com/github/", "https://mybinder.org/v2/gh/"):
        assert start in targets
    assert f"/edit/main/{notebook}" in targets
    assert f"_sources/{notebook}" in targets


@needs_chromium
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", [name for name in PAGES if name != START])
def test_page_is_quiet_local_accessible_and_fits(
    name: str, width: str, address: str, contexts: dict[str, BrowserContext]
) -> None:
    visit = Visit(contexts[width], address + name)
    page = visit.page
    try:
        assert visit.complaints == []
        assert [url for url in visit.addresses if not url.startswith((address, "data:"))] == []
        assert page.locator("h1").count() >= 1
        for theme in ("light", "dark"):
            visit.set_theme(theme)
            too_wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert too_wide <= 0, f"{theme}: {too_wide} pixels wider than the window"
            assert violations(visit.page) == [], theme
        assert visit.complaints == []
    finally:
        page.close()


@needs_chromium
@pytest.mark.parametrize("name", CHAPTERS)
def test_first_view_is_light(name: str, address: str, browser: Browser) -> None:
    context = browser.new_context(viewport=WIDTHS["phone"])  # a new context has an empty cache
    total = 0
    for response in Visit(context, address + name).responses:
        is_text = response.headers.get("content-type", "").startswith(TEXTS)
        total += len(gzip.compress(response.body()) if is_text else response.body())
    context.close()
    assert total < LIMIT


@needs_chromium
def test_root_leads_to_the_first_page(address: str, contexts: dict[str, BrowserContext]) -> None:
    page = contexts["wide"].new_page()
    page.goto(address)
    page.wait_for_url("**/chapters/index.html")
    page.close()


@needs_chromium
def test_search_finds_a_term(address: str, contexts: dict[str, BrowserContext]) -> None:
    visit = Visit(contexts["wide"], address + "search.html?q=softmax")
    visit.page.wait_for_selector("#search-results li a")
    targets = visit.page.locator("#search-results li a").evaluate_all("l => l.map(a => a.href)")
    visit.page.close()
    assert any("chapters/reference.html" in target for target in targets), targets


@needs_chromium
@pytest.mark.parametrize(
    ("query", "section"),
    [
        ("mask polarity", "faq.html#mask-polarity-does-true-mean-attend-or-ignore"),
        ("why sqrt(d)", "faq.html#why-sqrt-d-why-are-scores-divided-by-the-root-of-the-width"),
        ("NaN", "faq.html#why-nan-attention-returns-nan"),
    ],
)
def test_search_leads_into_the_section_that_answers(
    query: str, section: str, address: str, contexts: dict[str, BrowserContext]
) -> None:
    page = Visit(contexts["wide"], f"{address}search.html?q={quote(query)}").page
    page.wait_for_selector("#search-results li a")
    page.locator("#search-results li a").first.click()
    page.wait_for_load_state()
    landed = urlsplit(page.url)
    there = page.evaluate(
        "id => document.getElementById(id).closest('section').id", unquote(landed.fragment)
    )
    page.close()
    assert f"{Path(landed.path).name}#{there}" == section


@needs_chromium
def test_what_a_reader_has_done_is_kept_and_summed_up(address: str, browser: Browser) -> None:
    context = browser.new_context(viewport=WIDTHS["phone"])
    page = Visit(context, address + "chapters/07_heads.html").page
    summary = page.get_by_role("status").filter(has_text="Kept in this browser")
    assert "0 of 5 exercises, 0 of 5 questions" in summary.inner_text()
    page.locator(".exercise label.done input").nth(1).check()
    page.locator("#questions details").first.evaluate("fold => { fold.open = true; }")
    page.locator("#questions label.done input").first.check()
    assert "1 of 5 exercises, 1 of 5 questions" in summary.inner_text()
    page.reload()
    assert page.locator(".exercise label.done input").nth(1).is_checked()
    page.goto(address + "chapters/index.html")
    assert page.locator("small.book-progress").all_inner_texts() == [" 2 of 10 done"]
    page.goto(address + "chapters/07_heads.html")
    page.get_by_role("button", name="Clear this page").click()
    assert "0 of 5 exercises, 0 of 5 questions" in summary.inner_text()
    page.goto(address + "chapters/index.html")
    assert page.locator("small.book-progress").count() == 0
    context.close()


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("chosen", [None, "light", "dark"])
def test_page_has_its_theme_before_any_other_script_runs(
    scheme: str, chosen: str | None, address: str, browser: Browser
) -> None:
    context = browser.new_context(color_scheme=scheme)
    context.route("**/*.js*", lambda route: route.abort())
    page = context.new_page()
    page.goto(address + "chapters/02_scores.html")
    if chosen:
        page.evaluate("mode => localStorage.setItem('mode', mode)", chosen)
        page.reload()
    assert page.locator("html").get_attribute("data-theme") == (chosen or scheme)
    context.close()


EXPLORED = [f"chapters/{name}.html" for name in (
    "04_attention", "06_seq2seq", "07_heads", "10_transformer",
    "11_gpt", "12_bert", "13_vit", "14_detr",
)]  # fmt: skip
LIVE = [f"chapters/{name}.html" for name in ("02_scores", "03_softmax", "08_positions")]
LIVE.append("chapters/18_approximate.html")


@needs_chromium
@pytest.mark.parametrize("name", EXPLORED)
def test_explorer_runs_in_the_page_and_has_a_picture_without_scripts(
    name: str, address: str, browser: Browser, contexts: dict[str, BrowserContext]
) -> None:
    page = Visit(contexts["wide"], address + name).page
    explorer = page.locator(".attention-explorer")
    before = explorer.get_by_role("status").inner_text()
    explorer.get_by_role("radiogroup", name="query").get_by_role("radio").first.focus()
    # A head in most chapters, a score function in chapter 6.
    explorer.locator(".ae-choices").get_by_role("radio").last.focus()
    assert explorer.get_by_role("status").inner_text() != before
    page.close()
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address + name)
    assert page.locator(".attention-explorer .still img").is_visible()
    context.close()


@needs_chromium
@pytest.mark.parametrize("name", LIVE)
def test_live_computation_runs_in_the_page(
    name: str, address: str, contexts: dict[str, BrowserContext]
) -> None:
    page = Visit(contexts["phone"], address + name).page
    live = page.locator(".attention-live")
    before = live.locator("output").inner_text()
    live.get_by_role("slider").first.press("End")
    assert live.locator("output").inner_text() != before
    page.close()


@needs_chromium
@pytest.mark.parametrize("button", ["primary", "secondary"])
def test_menus_open_on_a_phone(
    button: str, address: str, contexts: dict[str, BrowserContext]
) -> None:
    page = Visit(contexts["phone"], address + "chapters/07_heads.html").page
    page.locator(f"button.{button}-toggle:visible").click()
    page.wait_for_selector(f"dialog#pst-{button}-sidebar-modal[open]")
    assert page.locator("dialog[open] a:visible").count() > 5
    page.close()


@needs_chromium
def test_theme_button_goes_through_all_modes_and_is_remembered(
    address: str, browser: Browser
) -> None:
    context = browser.new_context(viewport=WIDTHS["wide"])
    page = Visit(context, address + PAGES[-1]).page
    modes = [page.evaluate("document.documentElement.dataset.mode")]
    for _ in range(3):
        page.locator("button.theme-switch-button:visible").click()
        modes.append(page.evaluate("document.documentElement.dataset.mode"))
    assert modes[0] == modes[3] == "auto"
    assert set(modes) == {"auto", "light", "dark"}
    while page.evaluate("document.documentElement.dataset.mode") != "dark":
        page.locator("button.theme-switch-button:visible").click()
    page.goto(address + CHAPTERS[0])
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    context.close()


@needs_chromium
@pytest.mark.parametrize("name", [name for name in CHAPTERS if parsed(name).select("div.cell")])
def test_every_code_cell_has_a_copy_button(
    name: str, address: str, contexts: dict[str, BrowserContext]
) -> None:
    page = Visit(contexts["wide"], address + name).page
    cells = page.locator("div.cell_input div.highlight pre").count()
    buttons = page.locator("div.cell_input button.copybtn").count()
    page.close()
    assert cells == buttons > 0
