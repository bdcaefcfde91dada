"""The status page knows every notebook, and none is above its budget."""

import re

from notebook_form import loads, notebooks
from status import GIGABYTES, MINUTES, PAGE, rows_of


def test_every_notebook_has_a_row():
    assert list(rows_of(PAGE.read_text())) == [path.stem for path in notebooks()], "make status"


def test_every_notebook_stays_within_its_budget():
    slow, large = set(), set()
    for name, row in rows_of(PAGE.read_text()).items():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        slow |= {name} if float(cells[5]) > 60 * MINUTES else set()
        large |= {name} if float(cells[6]) > 1000 * GIGABYTES else set()
    assert not slow
    assert not large


def test_the_counts_are_those_of_the_notebooks():
    rows = rows_of(PAGE.read_text())
    for path in notebooks():
        cells = loads(path.read_text()).cells
        code = [cell.source for cell in cells if cell.cell_type == "code"]
        numbers = [int(x) for x in re.findall(r"\| (\d+)(?= \|)", rows[path.stem])]
        assert numbers[0] == len(code), "make status"
        assert numbers[2] == "".join(code).count("# False if:"), "make status"
