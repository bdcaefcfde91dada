"""Mend the built pages: what the theme and the extensions leave inaccessible, heavy or untidy.

Each mend is one small function over a parsed page. All of them may run twice on the same page: a
bare ``jupyter-book build`` keeps pages that did not change.
"""

import re
from collections.abc import Callable
from pathlib import Path

from bs4 import BeautifulSoup, NavigableString, Tag
from sphinx.application import Sphinx

from book_extension.speed import merge_styles

DESCRIPTION = 160  # characters
MENDS: list[Callable[[BeautifulSoup], None]] = []
# Before the first line is drawn, so that no page is light first and drawn anew when the theme's own
# script has found out what the reader prefers.
THEME = """
    const mode = localStorage.getItem("mode") || "auto";
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    document.documentElement.dataset.mode = mode;
    document.documentElement.dataset.theme = mode === "auto" ? (dark ? "dark" : "light") : mode;
"""
# Tokens of code that the light and the dark style both draw like plain text.
PLAIN_TOKENS = {"n", "nn", "nx", "p", "pm", "w"}
CHINESE = re.compile(r"[\u3400-\u9fff]+(?:[\u3000-\u303f\uff00-\uffef]*[\u3400-\u9fff]+)*")

START_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<meta http-equiv="refresh" content="0; url={url}">
<link rel="icon" href="_static/favicon.svg">
</head>
<body><main><h1>{title}</h1><p><a href="{url}">Open the book</a></p></main></body>
</html>
"""


def mend_site(app: Sphinx, error: Exception | None) -> None:
    """Mend every page of the finished site and write the page at its root."""
    if error or app.builder.name != "html":
        return
    site = Path(app.outdir)
    start = START_PAGE.format(
        title=app.config.html_title, url=app.builder.get_target_uri(app.config.root_doc)
    )
    (site / "index.html").write_text(start, encoding="utf-8")
    pages: dict[Path, BeautifulSoup] = {}
    for path in sorted(site.rglob("*.html")):
        if "_static" not in path.relative_to(site).parts:
            pages[path] = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
            for mend in MENDS:
                mend(pages[path])
    merge_styles(pages, site)
    for path, page in pages.items():
        path.write_text(str(page), encoding="utf-8")


def _mend(function: Callable[[BeautifulSoup], None]) -> Callable[[BeautifulSoup], None]:
    MENDS.append(function)
    return function


@_mend
def lighten(page: BeautifulSoup) -> None:
    """Leave out scripts that do nothing here: 1.5 MB of icons that the style sheet has as well."""
    heavy = ["scripts/fontawesome.js"]
    if not page.select_one("#search-results"):
        # The search page has them; elsewhere they would only serve search-as-you-type.
        heavy += ["searchtools.js", "language_data.js", "searchindex.js"]
    for script in page.select("script[src]"):
        if any(name in script["src"] for name in heavy):
            script.decompose()
    for icon in page.select("i.fab.fa-github"):  # one sign would load the font of all brands
        icon["class"] = ["fas", "fa-code-branch"]
    for image in page.select("article img"):
        image["loading"] = "lazy"
    for script in page.select('script[src$="mathjax/startup.js"]'):
        # book.js loads it when the first formula comes into view.
        script["id"], script["type"], script["data-src"] = "mathjax", "text/plain", script["src"]
        del script["src"]
    for early in page.select('link[rel="preload"][as="script"]'):
        early.decompose()  # the text comes first
    for script in page.select("head script, body > script"):
        if script.get("src"):
            script["defer"] = ""
        elif (script.string or "").startswith("DOCUMENTATION_OPTIONS."):
            script["type"] = "module"  # waits for the script that makes the object
        elif "dataset.theme" in (script.string or ""):
            script.string = f"{{{THEME}}}"
    for twin in page.select(".bd-header .primary-toggle, .bd-header .secondary-toggle"):
        twin.decompose()  # hidden, and the theme's script would listen to it alone
    for copy in page.select("#jb-print-docs-body"):  # a second title, for print alone
        copy.decompose()


@_mend
def unwrap_plain_tokens(page: BeautifulSoup) -> None:
    """Names and brackets in code need no element of their own: they are half of a long page's."""
    for token in page.select(".highlight pre span[class]"):
        if PLAIN_TOKENS.issuperset(token["class"]):
            token.unwrap()
    page.smooth()


@_mend
def describe(page: BeautifulSoup) -> None:
    """The first paragraph as the description that search engines show."""
    first = page.select_one("article p")
    if page.select_one('meta[name="description"]') or first is None:
        return
    text = " ".join(first.get_text().split())
    if len(text) > DESCRIPTION:
        text = text[:DESCRIPTION].rsplit(" ", 1)[0] + " …"
    page.head.append(page.new_tag("meta", attrs={"name": "description", "content": text}))


@_mend
def label(page: BeautifulSoup) -> None:
    """Names and landmarks for the parts of the theme that lack them."""
    for button in page.select("button.search-button-field, button.theme-switch-button"):
        # A label that lacks the visible text hides that text from voice control.
        if button.get("aria-label") and button.get_text(strip=True):
            del button["aria-label"]
    for summary in page.select("summary[aria-label]"):
        del summary["aria-label"]  # its text says what it does
    for logo in page.select("a.navbar-brand"):
        item = logo.find_parent(class_="sidebar-primary-item")
        if item:
            item["role"], item["aria-label"] = "navigation", "Home"
    for image in page.select(".dropdown-item img"):
        image["alt"] = ""  # the name stands beside it


@_mend
def use_valid_elements(page: BeautifulSoup) -> None:
    """Lists, table heads and parameters as the standard wants them."""
    for bibliography in page.select("div.citation-list"):
        del bibliography["role"]
    for entry in page.select('[role="doc-biblioentry"]'):
        del entry["role"]
    for head in page.find_all("th"):
        if not head.get_text(strip=True) and not head.find("img"):
            head.name = "td"
    for parameters in page.select("dt.sig > dl"):  # a list of descriptions without terms
        for parameter in parameters.find_all("dd", recursive=False):
            parameter.name, parameter["class"] = "span", ["sig-line"]
        parameters.name, parameters["class"] = "span", ["sig-lines"]
    for body in page.select("#exercise-content, #solution-content"):  # once on a page only
        body.name = "div"
        body["class"] = [body.attrs.pop("id")]


@_mend
def let_tables_scroll(page: BeautifulSoup) -> None:
    """Put each table into a box of its own that scrolls where the screen is narrow."""
    for table in page.select("article table"):
        if "table-scroll" not in (table.parent.get("class") or []):
            table.wrap(page.new_tag("div", attrs={"class": "table-scroll"}))


@_mend
def fold(page: BeautifulSoup) -> None:
    """Folded boxes as ``<details>``, which need no script and open when a search hits them."""
    for box in page.select("div.admonition.dropdown"):
        title = box.select_one("p.admonition-title")
        if title is None:
            continue
        box.name, title.name = "details", "summary"
        for link in title.find_all("a"):  # a link inside a button could not be reached
            link.unwrap()
        box["class"].remove("dropdown")


@_mend
def name_exercises(page: BeautifulSoup) -> None:
    """``Exercise 1.2 (In code)`` becomes ``Exercise 1.2 · In code``; a solution has no subtitle."""
    for title in page.select(".exercise > .admonition-title, .solution > .admonition-title"):
        match = re.fullmatch(r"\s*((?:Solution to\s+)?Exercise\s+[\w.]+)\s*\((.*)\)\s*", title.text)
        if not match:
            continue
        number, subtitle = match.groups()
        title.clear()
        title.append(page.new_tag("span", attrs={"class": "exercise-number"}))
        title.span.string = number
        if "exercise" in title.parent["class"]:
            title.append(f" {subtitle}")


@_mend
def wrap_sentences(page: BeautifulSoup) -> None:
    """Output without columns may be broken on a narrow screen; tables of numbers may not."""
    for text in page.select(".cell_output pre"):
        if not re.search(r"\S {2,}\S|^ ", text.get_text(), re.MULTILINE):
            text["class"] = sorted({*text.get("class", []), "sentences"})


@_mend
def mark_claims(page: BeautifulSoup) -> None:
    """A line of output that ends in ``: True`` is a claim that a test has tried to break."""
    for text in page.select(".cell_output pre"):
        for string in list(text.find_all(string=re.compile(r": True$", re.MULTILINE))):
            if "claim" in (string.parent.get("class") or []):
                continue
            pieces = re.split(r"(?<=: )(True)$", str(string), flags=re.MULTILINE)
            _replace(page, string, pieces, {"class": "claim"})


@_mend
def keep_marks_with_formulas(page: BeautifulSoup) -> None:
    """No line may begin with the comma or the stop that follows a formula."""
    for formula in page.select("article span.math"):
        after = formula.next_sibling
        mark = re.match(r"[,.;:!?)\]]+", after) if isinstance(after, NavigableString) else None
        if mark and "with-mark" not in (formula.parent.get("class") or []):
            after.replace_with(NavigableString(after[mark.end() :]))
            formula.wrap(page.new_tag("span", attrs={"class": "with-mark"})).append(mark[0])


@_mend
def name_languages(page: BeautifulSoup) -> None:
    """Say that Chinese is Chinese, so that it is read and drawn as such."""
    for string in list(page.body.find_all(string=CHINESE)):
        if string.find_parent(["script", "style", "pre"]) or string.parent.get("lang"):
            continue
        _replace(page, string, re.split(f"({CHINESE.pattern})", str(string)), {"lang": "zh-Hans"})


def _replace(
    page: BeautifulSoup, string: NavigableString, pieces: list[str], attributes: dict[str, str]
) -> None:
    """Replace a text by pieces, every second of which is wrapped in a span."""
    parts: list[NavigableString | Tag] = []
    for number, piece in enumerate(pieces):
        if number % 2:
            span = page.new_tag("span", attrs=attributes)
            span.string = piece
            parts.append(span)
        elif piece:
            parts.append(NavigableString(piece))
    string.replace_with(*parts)
