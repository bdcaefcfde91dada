"""Figures and exercises are numbered by chapter: Figure 1.2 is the second of chapter 1."""

import re

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


def number_by_chapter(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Replace Sphinx's numbers, which run through the whole book, by (chapter, position)."""
    for docname, kinds in env.toc_fignumbers.items():
        chapter = chapter_of(docname)
        for numbers in kinds.values():
            # Document order is the order of Sphinx's own numbers.
            for position, name in enumerate(sorted(numbers, key=numbers.__getitem__), start=1):
                numbers[name] = (chapter, position) if chapter else (position,)
    return []


def chapter_of(docname: str) -> str:
    """The chapter that a file name stands for: ``chapters/04b_learned`` gives ``4b``."""
    match = re.match(r"0*(\d+[a-z]?)_", docname.rpartition("/")[2])
    return match[1] if match else ""
