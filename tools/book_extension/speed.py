"""Make the pages light: one style sheet that holds what the site uses, and scripts that wait."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from posixpath import join, normpath, relpath

import tinycss2
from bs4 import BeautifulSoup
from fontTools import subset
from tinycss2.ast import AtRule, IdentToken, LiteralToken, Node, QualifiedRule

URL = re.compile(r"url\(\s*([\"']?)(?!data:|#|[a-z]+:|/)([^\"')]+)\1\s*\)")
WORD = re.compile(r"[A-Za-z_][\w-]*")
# Rules inside these are looked through; all others (fonts, animations) are kept as they are.
GROUPS = ("media", "supports", "layer", "container")


def used_names(pages: Iterable[BeautifulSoup], site: Path) -> set[str]:
    """Every name that may be a class: those of the pages, and every word of every script."""
    names = {name for page in pages for tag in page.select("[class]") for name in tag["class"]}
    for path in site.rglob("*.js"):
        names.update(WORD.findall(path.read_text(encoding="utf-8")))
    return names


def merge_styles(pages: dict[Path, BeautifulSoup], site: Path) -> None:
    """Give all pages with the same style sheets one in their place."""
    names = used_names(pages.values(), site)
    merged: dict[tuple[str, ...], str] = {}
    for path, page in pages.items():
        links = [
            link for link in page.select('link[rel="stylesheet"]') if "://" not in link["href"]
        ]
        if len(links) < 2:
            continue  # merged by an earlier build
        folder = path.parent.relative_to(site).as_posix()
        sheets = tuple(normpath(join(folder, link["href"].partition("?")[0])) for link in links)
        if sheets not in merged:
            text = "\n".join(needed(site / sheet, site, names) for sheet in sheets)
            text = with_few_icons(text, site)
            digest = hashlib.sha256(text.encode()).hexdigest()[:10]
            merged[sheets] = f"_static/all-{digest}.css"
            (site / merged[sheets]).write_text(text, encoding="utf-8")
        links[0]["href"] = relpath(merged[sheets], folder)
        for link in links[1:]:
            link.decompose()


def needed(sheet: Path, site: Path, names: set[str]) -> str:
    """The rules of a style sheet that can match, with addresses as seen from ``_static``."""
    here = sheet.parent.relative_to(site).as_posix()

    def moved(match: re.Match[str]) -> str:
        return f'url("{relpath(normpath(join(here, match[2])), "_static")}")'

    text = URL.sub(moved, sheet.read_text(encoding="utf-8"))
    rules = tinycss2.parse_stylesheet(text, skip_comments=True, skip_whitespace=True)
    imported = ""
    for rule in [rule for rule in rules if getattr(rule, "lower_at_keyword", "") == "import"]:
        rules.remove(rule)
        name = next(token.value for token in rule.prelude if hasattr(token, "representation"))
        imported += needed(sheet.parent / name, site, names)
    return imported + "".join(_kept(rules, names))


def with_few_icons(text: str, site: Path) -> str:
    """Put a font in place of the icons' own that holds only the signs that the styles name."""
    signs = [ord(sign) for sign in re.findall(r"[\ue000-\uf8ff]", text)]
    for name in set(re.findall(r'url\("([^"]*fa-\w+-\d+)\.woff2"\)', text)):
        icons = subset.load_font(site / "_static" / f"{name}.ttf", subset.Options())
        few = subset.Subsetter(subset.Options(layout_features=[], hinting=False))
        few.populate(unicodes=signs)
        few.subset(icons)
        icons.flavor = "woff"
        icons.save(site / "_static" / f"{name}-few.woff")
        text = text.replace(f'url("{name}.woff2")', f'url("{name}-few.woff")')
        text = text.replace('format("woff2")', 'format("woff")')
        text = re.sub(rf',\s*url\("{re.escape(name)}\.ttf"\) format\("truetype"\)', "", text)
    return text


def _kept(rules: list[Node], names: set[str]) -> Iterator[str]:
    for rule in rules:
        if isinstance(rule, QualifiedRule):
            selectors = [part for part in _split(rule.prelude) if _can_match(part, names)]
            if selectors:
                heads = ",".join(tinycss2.serialize(part).strip() for part in selectors)
                yield f"{heads}{{{tinycss2.serialize(rule.content).strip()}}}\n"
        elif isinstance(rule, AtRule) and rule.content and rule.lower_at_keyword in GROUPS:
            inner = tinycss2.parse_rule_list(rule.content, skip_comments=True, skip_whitespace=True)
            if body := "".join(_kept(inner, names)):
                head = tinycss2.serialize(rule.prelude).strip()
                yield f"@{rule.at_keyword} {head}{{{body}}}\n"
        elif isinstance(rule, AtRule):
            yield rule.serialize() + "\n"


def _split(tokens: list[Node]) -> list[list[Node]]:
    """A list of selectors at its commas."""
    parts: list[list[Node]] = [[]]
    for token in tokens:
        if isinstance(token, LiteralToken) and token.value == ",":
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _can_match(selector: list[Node], names: set[str]) -> bool:
    """Whether every class of a selector occurs; what stands in brackets, as in :not(), may be."""
    classes = [
        token.value
        for before, token in pairwise(selector)
        if isinstance(before, LiteralToken)
        and before.value == "."
        and isinstance(token, IdentToken)
    ]
    return all(name in names for name in classes)
