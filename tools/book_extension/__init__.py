"""What the book adds to Sphinx: its own numbering, local MathJax, accessible pages."""

from importlib import metadata
from pathlib import Path
from shutil import copyfile
from typing import Any

from sphinx.application import Sphinx

from book_extension.mend import mend_site
from book_extension.numbering import number_by_chapter
from book_extension.references import resolve_short_name

# The parts of MathJax that mathjax3_config loads, and what those load themselves.
MATHJAX_PARTS = (
    "startup.js",
    "core.js",
    "input/tex.js",
    "output/chtml.js",
    "output/chtml/fonts/tex.js",
    "a11y/assistive-mml.js",
)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the handlers; called by Sphinx."""
    # After Sphinx has numbered the figures its own way.
    app.connect("env-get-updated", number_by_chapter, priority=900)
    app.connect("missing-reference", resolve_short_name)
    app.connect("build-finished", copy_mathjax)
    app.connect("build-finished", mend_site, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    """Copy the needed parts of MathJax and its fonts into the site."""
    if error:
        return
    files = metadata.files("sphinx-mathjax-offline") or []
    for file in files:
        _, found, part = file.as_posix().partition("/static/mathjax/")
        if found and (part in MATHJAX_PARTS or part.endswith(".woff")):
            target = Path(app.outdir) / "_static" / "mathjax" / part
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                copyfile(file.locate(), target)
