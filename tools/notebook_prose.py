"""The prose of a notebook, and the rule that a number in it was printed by a cell above.

A bare number in the text is a measurement. It must stand as the same token in a text output above
it, in the same level-2 section or the one before (in the summary: anywhere above). What is given
and not measured stands in mathematics or in inline code, and is exempt.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from nbformat import NotebookNode
from notebook_form import text_of

# What is no prose, in the order in which it is blanked out.
NOT_PROSE = [
    re.compile(pattern, re.M | re.S)
    for pattern in (
        r"^(`{3,})[^`]*?^\1`*",  # fenced code
        r"<!--.*?-->|^%.*?$",  # comments
        r"^:{3,}\{solution[\w-]*\}.*?$|^:{3,}(?:\{[\w-]+\})?",  # directives, but not their titles
        r"^:[\w-]+:.*?$|^\([\w-]+\)=$",  # options, targets
        r"^# \d+\w*",  # the chapter's number in its title
        r"^\*(?:easy|medium|hard) · \d+ minutes\*$|<summary>.*?</summary>",  # about exercises
        r"\$\$.+?\$\$|(?<![\\$])\$(?!\s)(?:(?!\n\n).)+?(?<![\\\s])\$",  # mathematics
        r"\{[\w:-]+\}`[^`]*`|(`+)(?!`).+?(?<!`)\1(?!`)",  # roles, inline code
        r"\]\([^)\s]*\)|<?https?://[^\s>)]+>?|</?[a-zA-Z][^>\n]*>",  # link targets, addresses, tags
        r"^\s*\d+[.)]\s",  # markers of a numbered list
    )
]
CITATION = re.compile(r"\{cite(?::\w+)?\}`[^`]*`")
DETAILS = re.compile(r"<details>.*?</details>", re.S)
NEAR = 60  # characters between a year and the citation that it belongs to
REFERENCE = re.compile(
    r"\b(?:eq|equation|sec|section|page|p|pp|chapter|topic|exercise|figure|table|theorem|algorithm"
    r"|appendix|footnote)s?\.?[\s~]*\(?\d[\d.]*\)?(?:(?:,|,? and| to|–|-)\s*\(?\d[\d.]*\)?)*",
    re.I,
)
# 3x3, and one digit tied to a letter: 1-NN, 2-D. A digit after a letter (W2) is never a number.
NAME = re.compile(r"\b\d+(?:x\d+)+\b|\b\d-?(?!e[-+]?\d)[A-Za-z]\w*")
NUMBER = re.compile(r"(?<![\w.])(?<![A-Za-z]-)[-+−]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?")
PERCENT = re.compile(r"\s?%|\s(?:percent|per cent)\b")
YEAR = re.compile(r"(?:19|20)\d\d")
HEADING = re.compile(r"^(#{1,6})\s+(.*?)\s*$", re.M)


@dataclass(frozen=True)
class Number:
    """A number in the prose: its token, whether it is a percentage, and the text around it."""

    token: str
    percent: bool
    context: str
    section: int
    summary: bool


def prose(text: str) -> str:
    """The text with everything that is not prose blanked out; positions stay the same."""
    for pattern in NOT_PROSE:
        text = pattern.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    return text


def headings(text: str) -> list[tuple[int, str, int]]:
    """Level, title and position of each heading of a markdown cell."""
    fences = NOT_PROSE[0].sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    return [(len(found[1]), found[2], found.start()) for found in HEADING.finditer(fences)]


def words(cells: Iterable[NotebookNode]) -> int:
    """Number of words of prose in a notebook's cells, without what is folded away."""
    texts = [prose(DETAILS.sub("", cell.source)) for cell in cells if cell.cell_type == "markdown"]
    return len(re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*", " ".join(texts)))


def tokens(text: str) -> list[tuple[str, bool, int]]:
    """The numbers of a text: token, whether a percent sign follows, position."""
    return [
        (
            found[0].replace(",", "").replace("−", "-").lstrip("+"),
            PERCENT.match(text, found.end()) is not None,
            found.start(),
        )
        for found in NUMBER.finditer(text)
    ]


def _numbers(source: str) -> list[tuple[str, bool, int]]:
    text = prose(source)
    for pattern in (REFERENCE, NAME):
        text = pattern.sub(lambda found: " " * len(found[0]), text)
    citations = [found.span() for found in CITATION.finditer(source)]
    return [
        (token, percent, position)
        for token, percent, position in tokens(text)
        if not (
            YEAR.fullmatch(token)
            and any(start - NEAR < position < end + NEAR for start, end in citations)
        )
    ]


def _shown(cell: NotebookNode) -> str:
    """What a reader can read in a cell's outputs; the size of a figure is not a result."""
    parts = [
        text_of(output) for output in cell.outputs if "image/png" not in output.get("data", {})
    ]
    parts += [f"{output.evalue}" for output in cell.outputs if output.output_type == "error"]
    return "\n".join(parts)


def unprinted_numbers(notebook: NotebookNode) -> list[Number]:
    """Numbers in the prose that no cell above printed, near enough for a reader to find them."""
    section, summary = 0, False
    printed: list[
        tuple[int, str, bool]
    ] = []  # section, token, whether its output speaks of percent
    missing = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            shown = _shown(cell)
            printed += [(section, token, "%" in shown) for token, _, _ in tokens(shown)]
            continue
        new_sections = [entry for entry in headings(cell.source) if entry[0] <= 2]
        for token, percent, position in _numbers(cell.source):
            title = [entry for entry in new_sections if entry[2] <= position]
            here = section + len(title)
            in_summary = title[-1][1] == "Summary" if title else summary
            if not any(
                token == other and (speaks_of_percent or not percent)
                for where, other, speaks_of_percent in printed
                if in_summary or where >= here - 1
            ):
                around = " ".join(cell.source[max(0, position - 40) : position + 30].split())
                missing.append(Number(token, percent, around, here, in_summary))
        section += len(new_sections)
        if new_sections:
            summary = new_sections[-1][1] == "Summary"
    return missing
