"""The one style sheet of the pages: what can match is kept, and addresses still lead somewhere."""

from pathlib import Path

import pytest
from book_extension.speed import merge_styles, needed, used_names
from bs4 import BeautifulSoup

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
