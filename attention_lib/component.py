"""Pieces of HTML that a notebook shows and a page runs: style, data and script in one element.

They need no kernel, no network and no other library, so they work in the built book, in Jupyter, VS
Code and Colab. What they show may come from anywhere: text is never read as markup.
"""

import base64
import json
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Component:
    """What a notebook shows when it is the last line of a cell.

    Args:
        html: The whole component.
        description: What it shows, for readers who cannot see it.

    Source:
        Used by :mod:`attention_lib.explorer` and :mod:`attention_lib.live`.
    """

    html: str
    description: str

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {"text/html": self.html, "text/plain": self.description}

    def __repr__(self) -> str:
        return self.description


def component(
    kind: str, data: dict[str, Any], description: str, still: bytes | None = None
) -> Component:
    """Put a script of the folder ``assets``, its style and its data into one element.

    Args:
        kind: Name of the script and of the style.
        data: What the script reads; anything that JSON can hold.
        description: Heading of the component, and what the picture shows.
        still: The picture that scripts replace, as PNG; it also stands on paper.

    Returns:
        The component.

    Source:
        Used by :mod:`attention_lib.explorer` and :mod:`attention_lib.live`. Chapters 03 and 04.
    """
    style, shared, own = (_asset(name) for name in (f"{kind}.css", "shared.js", f"{kind}.js"))
    # Inside a script only "</script" and "<!--" are markup: without any "<" there is none.
    inert = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    picture = "" if still is None else f'<img alt="{escape(description)}" src="{address(still)}">'
    return Component(
        f'<div class="attention-{kind}"><style>{style}</style><p><b>{escape(description)}</b></p>'
        f'<div class="still">{picture}<p>This figure needs scripts to be explored.</p></div>'
        f'<script type="application/json">{inert}</script>\n'
        f"<script>(() => {{\n{shared}{own}}})();</script></div>",
        description,
    )


def address(image: bytes) -> str:
    """An image as an address that needs no file.

    Args:
        image: PNG.

    Returns:
        A data URL.

    Source:
        RFC 2397. Used by :func:`attention_lib.explorer.explore`. Chapter 04.
    """
    return "data:image/png;base64," + base64.b64encode(image).decode()


def _asset(name: str) -> str:
    return (files("attention_lib") / "assets" / name).read_text(encoding="utf-8")
