"""Write the drawings that pages without code show: ``python tools/figures.py``."""

from pathlib import Path

from attention_lib.diagrams import book_map, fourth_map, second_map, third_map

FIGURES = {
    "map.svg": book_map,
    "map2.svg": second_map,
    "map3.svg": third_map,
    "map4.svg": fourth_map,
}
FOLDER = Path(__file__).resolve().parent.parent / "_static"


def main() -> None:
    """Draw every figure into ``_static``."""
    for name, draw in FIGURES.items():
        (FOLDER / name).write_text(draw()._repr_svg_() + "\n")
        print(f"_static/{name}")


if __name__ == "__main__":
    main()
