"""Print the built book into one PDF, chapter after chapter, with an outline and working links.

    python tools/pdf.py    # needs `make book` and a Chromium; writes _build/attention.pdf

Every fold is opened: hints, answers and solutions stand where they belong.
"""

import io
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from browser import CHROMIUM, MISSING, chromium
from playwright.sync_api import Browser
from pypdf import PdfReader, PdfWriter
from pypdf.generic import ArrayObject, NameObject

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "_build" / "html"
RESULT = ROOT / "_build" / "attention.pdf"
TITLE = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["title"]
MARGIN = {"top": "18mm", "bottom": "18mm", "left": "16mm", "right": "16mm"}
# Wait for the formulas, open what is folded, load what is far below.
PREPARE = """async () => {
    await setAllFormulas();
    await document.fonts.ready;
    for (const fold of document.querySelectorAll("details")) fold.open = true;
    for (const image of document.images) image.loading = "eager";
    await Promise.all([...document.images].map((image) => image.decode().catch(() => {})));
}"""
FOOTER = (
    '<div style="width: 100%; text-align: center; font: 8px sans-serif; color: #666">'
    '<span class="title"></span>, <span class="pageNumber"></span></div>'
)


def pages() -> list[tuple[str, list[Path]]]:
    """The built pages in the order of the table of contents, part by part."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    parts = [("", [toc["root"]])]
    for part in toc["parts"]:
        parts.append((part["caption"], [page["file"] for page in part["chapters"]]))
    return [(caption, [SITE / f"{name}.html" for name in names]) for caption, names in parts]


def printed(browser: Browser, path: Path) -> PdfReader:
    """One page of the book on paper."""
    page = browser.new_page(color_scheme="light", viewport={"width": 900, "height": 1200})
    page.goto(path.as_uri(), wait_until="load")
    page.evaluate(PREPARE)
    sheet = page.pdf(
        format="A4",
        scale=0.8,
        margin=MARGIN,
        display_header_footer=True,
        header_template="<span></span>",
        footer_template=FOOTER,
        print_background=True,
        outline=True,
        tagged=True,
    )
    page.close()
    return PdfReader(io.BytesIO(sheet))


def link_chapters(book: PdfWriter, starts: dict[str, int]) -> None:
    """Links to other chapters lead to their place in the PDF, not to a file."""
    for page in book.pages:
        for note in (reference.get_object() for reference in page.get("/Annots", [])):
            address = urlsplit(str(note.get("/A", {}).get("/URI", "")))
            target = Path(unquote(address.path)).name
            if address.scheme == "file" and target in starts:
                first = book.pages[starts[target]].indirect_reference
                note[NameObject("/Dest")] = ArrayObject([first, NameObject("/Fit")])
                del note["/A"]


def main() -> None:
    """Print every page and bind them."""
    if CHROMIUM is None:
        raise SystemExit(MISSING)
    book, starts = PdfWriter(), {}
    with chromium() as browser:
        for caption, files in pages():
            part = None
            for path in files:
                sheet = printed(browser, path)
                starts[path.name] = len(book.pages)
                if caption and part is None:
                    part = book.add_outline_item(caption, len(book.pages))
                title = sheet.metadata.title if sheet.metadata else None
                book.append(sheet, outline_item=title or path.stem, import_outline=False)
                print(f"{path.stem}: {len(sheet.pages)} pages", flush=True)
    link_chapters(book, starts)
    book.add_metadata({"/Title": TITLE})
    book.compress_identical_objects()
    book.write(RESULT)
    print(f"\n{RESULT.relative_to(ROOT)}: {len(book.pages)} pages, {RESULT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
