"""Write the passages that chapter 12 searches: how each section of Parts I and II begins.

    python tools/book_sections.py

Run it after a change to chapters 00 to 09; a test says when it is needed. Then execute chapter 12.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat

from attention_lib.data.sections import FILE

CHAPTERS = Path(__file__).resolve().parent.parent / "chapters"
LENGTH = 600  # characters, about 150 pieces of words
CLEANING = [
    (r"^(`{3,}).*?^\1`*", ""),  # fenced code
    (r"^:{3,}.*?^:{3,}$", ""),  # boxes
    (r"\$\$.*?\$\$", ""),
    (r"^\([\w-]+\)=$", ""),  # targets of links
    (r"^\|.*?$", ""),  # tables
    (r"\{[\w:-]+\}`[^`]*`", ""),  # citations and references
    (r"\[([^\]]+)\]\([^)]*\)", r"\1"),  # links
    (r"[*`$]", ""),
    (r"\s+", " "),
]


def passage(markdown: str) -> str:
    """Plain text, cut at the end of a sentence."""
    for pattern, replacement in CLEANING:
        markdown = re.sub(pattern, replacement, markdown, flags=re.M | re.S)
    text = markdown.strip()
    end = text.rfind(". ", 0, LENGTH)
    return text if len(text) <= LENGTH else text[: end + 1 if end > 0 else LENGTH]


def sections(path: Path) -> Iterator[tuple[str, str, str]]:
    """Page, title and passage of each section of a chapter, in order."""
    cells = nbformat.read(path, 4).cells
    whole = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    for part in re.split(r"^#{1,3} +", whole, flags=re.M)[1:]:
        title, _, body = part.partition("\n")
        if title == "Exercises":  # and the summary and the readings that follow them
            return
        if text := passage(body):  # some headings have only others below them
            yield path.stem, re.sub(r"[*`$]", "", title), text


def collect() -> list[list[str]]:
    """All sections, as they are stored."""
    paths = sorted(CHAPTERS.glob("0*.ipynb"))
    return [list(section) for path in paths for section in sections(path)]


def main() -> None:
    """Write the file."""
    found = collect()
    text = json.dumps(found, indent=1, ensure_ascii=False)
    FILE.write_text(text + "\n", encoding="utf-8")
    print(f"{len(found)} sections in {FILE.name}")


if __name__ == "__main__":
    main()
