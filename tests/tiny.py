"""Cells for tiny notebooks, on which the checks of notebooks are tested."""

import base64
import io

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_output
from PIL import Image

FIGURE = {"image": {"alt": "A line."}, "figure": {"caption": "It rises.", "name": "fig-line"}}


def png(dpi: int) -> str:
    """A PNG file in base64 that states its resolution."""
    file = io.BytesIO()
    Image.new("L", (2, 2)).save(file, "png", dpi=(dpi, dpi))
    return base64.b64encode(file.getvalue()).decode()


def code(source: str, *outputs: NotebookNode, **metadata) -> NotebookNode:
    """A code cell; its execution count is set by `tiny`."""
    return new_code_cell(source, outputs=list(outputs), metadata=metadata)


def stream(text: str, name: str = "stdout") -> NotebookNode:
    """Printed text."""
    return new_output("stream", name=name, text=text)
