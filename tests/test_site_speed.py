"""The one style sheet of the pages: what can match is kept, and addresses still lead somewhere."""

from pathlib import Path

import pytest
import yaml
from book_extension.mend import PLAIN_TOKENS, unwrap_plain_tokens
from book_extension.speed import merge_styles, needed, used_names
from bs4 import BeautifulSoup
from pygments.styles import get_style_by_name
from pygments.token import STANDARD_TYPES, Token

ROOT = Path(__file__).resolve().parent.parent
NAMES = {"used", "also"}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "_static" / "styles").mkdir(parents=True)
    (tmp_path / "chapters").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (".used{color:red}", ".used{color:red}\n"),
        (".unused{color:red}", ""),
        ("p{color:red}", "p{color:red}\n"),
        (".unused,.used .also{color:red}", ".used .also{color:red}\n"),
        (".used .unused{color:red}", ""),
        (".used:not(.unused){color:red}", ".used:not(.unused){color:red}\n"),
        ("@media print{.used{color:red}.unused{a:b}}", "@media print{.used{color:red}\n}\n"),
        ("@media print{.unused{color:red}}", ""),
        ("@font-face{font-family:x}", "@font-face{font-family:x}\n"),
        ("/* nothing */", ""),
    ],
)
def test_only_rules_that_can_match_are_kept(site: Path, rule: str, kept: str):
    sheet = site / "_static" / "a.css"
    sheet.write_text(rule)
    assert needed(sheet, site, NAMES) == kept


def test_imports_come_first_and_addresses_are_seen_from_the_new_place(site: Path):
    (site / "_static" / "base.css").write_text("b{background:url(base.png)}")
    sheet = site / "_static" / "styles" / "a.css"
    sheet.write_text('@import "../base.css";i{background:url("../a.png")}u{c:url(data:x)}')
    assert needed(sheet, site, NAMES) == (
        'b{background:url("base.png")}\ni{background:url("a.png")}\nu{c:url(data:x)}\n'
    )


def test_names_come_from_the_mended_pages_and_from_scripts(site: Path):
    page = BeautifulSoup('<p class="one two">', "html.parser")
    page.p["class"].append("mended")  # as a mend does, before the page is written
    (site / "_static" / "a.js").write_text('box.classList.add("three-four")')
    assert {"one", "two", "mended", "three-four"} <= used_names([page], site)


def test_pages_get_one_sheet_and_a_second_run_changes_nothing(site: Path):
    for name in ("a.css", "b.css"):
        (site / "_static" / name).write_text(f"p{{content:'{name}'}}")
    links = "".join(f'<link href="../_static/{n}.css?v=1" rel="stylesheet"/>' for n in "ab")
    path = site / "chapters" / "x.html"
    path.write_text(f"<head>{links}</head>")
    pages = {path: BeautifulSoup(path.read_text(), "html.parser")}
    merge_styles(pages, site)
    (link,) = pages[path].select("link")
    merged = (path.parent / link["href"]).resolve()
    assert merged.read_text().index("a.css") < merged.read_text().index("b.css")
    before = str(pages[path])
    merge_styles(pages, site)
    assert str(pages[path]) == before


def test_code_keeps_its_text_and_the_elements_that_have_a_colour():
    code = '<span></span><span class="k">if</span><span class="w"> </span><span class="n">a</span>'
    page = BeautifulSoup(f'<div class="highlight"><pre>{code}</pre></div>', "html.parser")
    unwrap_plain_tokens(page)
    assert str(page.pre) == '<pre><span></span><span class="k">if</span> a</pre>'


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_tokens_without_an_element_look_like_plain_text(theme: str):
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    style = config["sphinx"]["config"]["html_theme_options"][f"pygments_{theme}_style"]
    drawn = get_style_by_name(style).style_for_token
    tokens = [token for token, short in STANDARD_TYPES.items() if short in PLAIN_TOKENS]
    assert len(tokens) == len(PLAIN_TOKENS)
    assert all(drawn(token) == drawn(Token.Text) for token in tokens)
