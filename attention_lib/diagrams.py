"""Diagrams of how things are wired, as SVG in one visual language. Chapters 04 and on.

A notebook shows a diagram when it is the last line of a cell. Boxes hold what is computed, with the
shape below it; arrows say what is computed from what.
"""

from dataclasses import dataclass, field
from html import escape

INK = "#1f2933"
LINE = "#52606d"
PAPER = "#ffffff"
FILLS = {"data": "#e8edf2", "learned": "#fdebd3", "step": "#d9ecf7", "result": "#d5efe3"}


@dataclass
class Diagram:
    """A drawing of boxes and arrows on a white card.

    Args:
        width: Width of the drawing; 480 units keep its text readable on a phone.
        height: Height of the drawing.
        description: What the drawing shows, for readers who cannot see it.

    Source:
        Chapter 04.
    """

    width: int
    height: int
    description: str
    parts: list[str] = field(default_factory=list)
    places: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)

    def box(
        self,
        name: str,
        text: str,
        shape: str = "",
        *,
        at: tuple[float, float],
        kind: str = "step",
        width: float = 130,
    ) -> None:
        """Draw a box.

        Args:
            name: What arrows call it.
            text: First line, in bold.
            shape: Second line, such as the shape of the matrix.
            at: Centre of the box.
            kind: One of data, learned, step, result; decides the colour.
            width: Width of the box.
        """
        x, y = at
        height = 52 if shape else 36
        self.places[name] = (x, y, width, height)
        self.parts.append(
            f'<rect x="{x - width / 2:g}" y="{y - height / 2:g}" width="{width:g}" '
            f'height="{height}" rx="6" fill="{FILLS[kind]}" stroke="{LINE}"/>'
        )
        self._text(x, y + (-4 if shape else 5), text, weight="600")
        if shape:
            self._text(x, y + 17, shape, size=14)

    def arrow(self, start: str, end: str, label: str = "") -> None:
        """Draw an arrow from the lower edge of one box to the upper edge of a lower one.

        Args:
            start: Name of the upper box.
            end: Name of the lower box.
            label: Text beside the arrow.
        """
        x1, y1, _, height1 = self.places[start]
        x2, y2, width2, height2 = self.places[end]
        top, bottom = y1 + height1 / 2, y2 - height2 / 2 - 7
        # Enter the lower box where it is nearest, not always in its middle.
        entry = min(max(x1, x2 - width2 / 2 + 14), x2 + width2 / 2 - 14)
        middle = (top + bottom) / 2
        self.parts.append(
            f'<path d="M{x1:g} {top:g} '
            f'C{x1:g} {middle:g} {entry:g} {middle:g} {entry:g} {bottom:g}" '
            f'fill="none" stroke="{LINE}" stroke-width="1.6" marker-end="url(#head)"/>'
        )
        if label:
            self._text((x1 + entry) / 2 + 8, middle + 5, label, size=14, anchor="start")

    def _text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: int = 16,
        weight: str = "400",
        anchor: str = "middle",
    ) -> None:
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}" '
            f'text-anchor="{anchor}" fill="{INK}">{escape(text)}</text>'
        )

    def _repr_svg_(self) -> str:
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img" '
            'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">\n'
            f"<title>{escape(self.description)}</title>\n"
            '<defs><marker id="head" viewBox="0 0 10 10" refX="3" refY="5" markerWidth="7" '
            'markerHeight="7" orient="auto">'
            f'<path d="M0 0L10 5L0 10z" fill="{LINE}"/></marker></defs>\n'
            f'<rect width="{self.width}" height="{self.height}" rx="8" fill="{PAPER}"/>\n'
            f"{body}\n</svg>"
        )

    def __repr__(self) -> str:
        return f"Diagram: {self.description}"


def attention_diagram() -> Diagram:
    """One attention from the input to the output, with the shape of every matrix.

    Returns:
        The diagram.

    Source:
        After Vaswani et al. (2017), figure 2, left. Chapter 04.
    """
    drawing = Diagram(480, 452, "From the input X to the output of one attention")
    drawing.box("X", "input X", "T × D", at=(240, 36), kind="data")
    drawing.box("Q", "Q = X W_Q", "T × Dh", at=(82, 136), kind="learned", width=126)
    drawing.box("K", "K = X W_K", "T × Dh", at=(240, 136), kind="learned", width=126)
    drawing.box("V", "V = X W_V", "T × Dv", at=(398, 136), kind="learned", width=126)
    drawing.box("S", "scores = Q Kᵀ / √Dh", "T × T", at=(161, 236), width=220)
    drawing.box("W", "weights", "T × T, rows sum to 1", at=(161, 326), width=220)
    drawing.box("O", "output = weights · V", "T × Dv", at=(240, 416), kind="result", width=220)
    for start, end, label in (
        ("X", "Q", ""),
        ("X", "K", ""),
        ("X", "V", ""),
        ("Q", "S", ""),
        ("K", "S", ""),
        ("S", "W", "softmax over the keys"),
        ("W", "O", ""),
        ("V", "O", ""),
    ):
        drawing.arrow(start, end, label)
    return drawing


def multi_head_diagram() -> Diagram:
    """Multi-head attention, with the shape of every tensor.

    Returns:
        The diagram.

    Source:
        After Vaswani et al. (2017), figure 2, right. Chapter 07.
    """
    drawing = Diagram(480, 542, "Multi-head attention: project, split, attend, merge, mix")
    drawing.box("X", "input x", "B × T × D", at=(240, 36), kind="data")
    for name, x in (("Q", 82), ("K", 240), ("V", 398)):
        drawing.box(name, f"x W_{name}", "B × T × D", at=(x, 136), kind="learned", width=126)
        drawing.box(name + "s", "split", "B × H × T × Dh", at=(x, 236), width=140)
        drawing.arrow("X", name)
        drawing.arrow(name, name + "s")
    drawing.box("A", "attend, all heads at once", "B × H × T × Dh", at=(240, 326), width=240)
    drawing.box("M", "merge", "B × T × D", at=(240, 416), width=140)
    drawing.box("O", "output = merged · W_O", "B × T × D", at=(240, 506), kind="result", width=220)
    for start, end in (("Qs", "A"), ("Ks", "A"), ("Vs", "A"), ("A", "M"), ("M", "O")):
        drawing.arrow(start, end)
    return drawing


def book_map() -> Diagram:
    """The chapters of part I and the question each answers.

    Returns:
        The diagram.

    Source:
        Front page.
    """
    return _column(
        "The chapters of part I, from correlation to learned attention",
        (
            ("1 · Correlation", "similar things count more", "data"),
            ("2 · Scores", "what counts as similar", "step"),
            ("3 · Softmax", "from scores to weights", "step"),
            ("4 · Attention", "queries, keys, values", "result"),
            ("4b · Learned attention", "deciding what to compare", "learned"),
        ),
        ("take it apart", "make weights of them", "put it together", "train it"),
    )


def second_map() -> Diagram:
    """The chapters of part II and the question each answers.

    Returns:
        The diagram.

    Source:
        Front page.
    """
    return _column(
        "The chapters of part II, from masks to the Transformer block",
        (
            ("5 · Masks", "who may look at whom", "step"),
            ("6 · Sequence to sequence", "why attention was invented", "learned"),
            ("7 · Heads", "several questions at once", "step"),
            ("8 · Positions", "what tells the order", "step"),
            ("9 · Blocks", "attention becomes a Transformer", "result"),
        ),
        ("read and write", "ask more than once", "put the words in order", "stack it"),
    )


def third_map() -> Diagram:
    """The chapters of part III and the question each answers.

    Returns:
        The diagram.

    Source:
        Front page.
    """
    return _column(
        "The chapters of part III, from the Transformer to detection",
        (
            ("10 · Transformer", "read one language, write another", "result"),
            ("11 · GPT", "write on", "learned"),
            ("12 · BERT", "fill the gaps", "learned"),
            ("13 · ViT", "read an image", "data"),
            ("14 · DETR", "find the objects in it", "result"),
        ),
        ("keep the decoder", "keep the encoder", "patches for words", "ask for a set"),
    )


def fourth_map() -> Diagram:
    """The chapters of part IV and the question each answers.

    Returns:
        The diagram.

    Source:
        Front page.
    """
    return _column(
        "The chapters of part IV, from the cost of attention to its approximations",
        (
            ("15 · Cost", "what attention costs, and where", "data"),
            ("16 · Tiled", "exact, and never the whole matrix", "step"),
            ("17 · Cache", "write without reading again", "step"),
            ("18 · Approximate", "pay less, lose something", "result"),
        ),
        ("save memory", "save repeated work", "compute less"),
    )


def _column(
    description: str, chapters: tuple[tuple[str, str, str], ...], links: tuple[str, ...]
) -> Diagram:
    drawing = Diagram(480, 82 + 96 * len(links), description)
    for row, (title, question, kind) in enumerate(chapters):
        drawing.box(title, title, question, at=(240, 40 + 96 * row), kind=kind, width=250)
    for (start, _, _), (end, _, _), label in zip(chapters, chapters[1:], links, strict=False):
        drawing.arrow(start, end, label)
    return drawing
