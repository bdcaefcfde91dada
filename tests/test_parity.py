"""The parity table: every component against an outside reference, and the page that shows it.

``make parity`` runs these tests and writes the page from what they record.
"""

import parity_cases
import parity_efficient
import parity_models
import pytest
import torch
from parity import PAGE, rows_of, shown
from parity_cases import Case

CASES = parity_cases.CASES + parity_efficient.CASES + parity_models.CASES
IDS = ["-".join(case.row()) for case in CASES]


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_error_is_within_budget(
    case: Case, generator: torch.Generator, request: pytest.FixtureRequest
):
    output, *gradients = case.run(case.dtype, case.mask, generator)
    # The gradient that comes nearest to its budget stands for all of them.
    tightest = max(gradients, key=lambda pair: pair[0] / max(pair[1], 1e-300), default=None)
    # What the report of the run carries; the fixture for it warns about the format of the report.
    record = request.node.user_properties
    record += [("row", " | ".join(case.row())), ("output", " ".join(map(shown, output)))]
    if tightest:
        record.append(("gradients", " ".join(map(shown, tightest))))
    for found, allowed in [output, *gradients]:
        assert found <= allowed


def test_no_case_stands_in_the_table_twice():
    assert len(set(IDS)) == len(IDS)


def test_the_page_has_exactly_the_rows_of_the_tests():
    found = [names for names, _ in rows_of(PAGE.read_text())]
    assert found == [case.row() for case in CASES], "run `make parity`"


def test_no_error_on_the_page_is_above_its_budget():
    for names, numbers in rows_of(PAGE.read_text()):
        assert len(numbers) in (2, 4), names
        for found, allowed in zip(numbers[::2], numbers[1::2], strict=True):
            assert found <= allowed, names
