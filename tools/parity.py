"""Run the parity tests and write chapters/parity.md from what they record.

    python tools/parity.py

Every number on the page comes from a passed test; if one fails, the page stays as it is.
"""

import datetime
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "chapters" / "parity.md"
TESTS = "tests/test_parity.py::test_error_is_within_budget"
TEXT = """\
# Parity table

Every component of the library, compared with an implementation that others wrote or, where there is
none, with the formula written out. An *error* is the largest absolute difference from a loop in
float64, over all entries. The *budget* is twice the error of the reference itself, plus four units
in the last place of the largest number involved. For gradients, of all inputs and all parameters,
the row shows the one that comes nearest to its budget; "none" means that there is no gradient.

`make parity` runs the {count} tests behind the rows and writes this page; a test keeps the rows and
the tests the same. Measured on {date} with PyTorch {torch} on a CPU; the last digits differ from
machine to machine, that each error stays within its budget does not.

| component | reference | dtype | mask | output: error | budget | gradients: error | budget |
|---|---|---|---|--:|--:|--:|--:|
"""
Row = tuple[tuple[str, ...], list[float]]


def main() -> int:
    """Run the tests; if they pass, write the page."""
    rows = recorded(TESTS)
    text = TEXT.format(
        count=len(rows), date=datetime.date.today(), torch=torch.__version__.partition("+")[0]
    )
    PAGE.write_text(text + "".join(map(_line, rows)))
    print(f"{PAGE.relative_to(ROOT)}: {len(rows)} rows")
    return 0


def recorded(*tests: str) -> list[dict[str | None, str]]:
    """Run tests and return what each has put into ``user_properties``; a red one ends it all."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        options = ["-q", *tests, f"--junitxml={report}"]
        run = subprocess.run([sys.executable, "-m", "pytest", *options], cwd=ROOT)
        if run.returncode:
            raise SystemExit(run.returncode)
        cases = list(ElementTree.parse(report).iter("testcase"))
    return [{x.get("name"): x.get("value", "") for x in case.iter("property")} for case in cases]


def shown(number: float) -> str:
    """Two significant digits; the exponent without leading zeros."""
    if number == 0:
        return "0"
    mantissa, exponent = f"{number:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def rows_of(page: str) -> list[Row]:
    """The four names and the numbers of each row of the table."""
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    rows = []
    for line in lines:
        cells = [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        rows.append((tuple(cells[:4]), [float(cell) for cell in cells[4:] if cell != "none"]))
    return rows


def _line(row: dict[str | None, str]) -> str:
    component, reference, dtype, mask = row["row"].split(" | ")
    numbers = row["output"].split() + row.get("gradients", "none none").split()
    name, comma, rest = component.partition(", ")
    cells = [f"`{name}`{comma}{f'`{rest}`' if rest else ''}", _code(reference), dtype, mask]
    return "| " + " | ".join([*cells, *numbers]) + " |\n"


def _code(reference: str) -> str:
    """PyTorch's and SciPy's names as code, words as words."""
    name, comma, rest = reference.partition(", ")
    return f"`{name}`{comma}{rest}" if "." in name or "_" in name else reference


if __name__ == "__main__":
    raise SystemExit(main())
