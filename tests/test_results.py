"""The page of results says what the logs say."""

import hashlib
import json

import pytest
from results import FROM_LOGS, PAGE, PUBLISHED, WEIGHTS, line

SHIPPED = sorted(WEIGHTS.glob("*.safetensors"))


@pytest.mark.parametrize("rows", FROM_LOGS, ids=lambda rows: rows.__name__)
def test_the_page_has_the_rows_of_the_logs(rows):
    page = PAGE.read_text(encoding="utf-8")
    found = list(rows())
    assert found
    for row in found:
        assert line(row) in page, "run `make results`"


def test_the_page_has_a_row_for_each_published_model_within_its_target():
    lines = [x for x in PAGE.read_text(encoding="utf-8").splitlines() if "largest diff" in x]
    assert len(lines) == len(PUBLISHED)
    for text in lines:
        _, _, _, target, reached, *_ = (cell.strip() for cell in text.split("|"))
        assert float(reached) <= float(target.split()[0])


def test_the_weights_together_are_small():
    assert SHIPPED
    assert sum(path.stat().st_size for path in SHIPPED) < 20e6


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_weights_are_those_of_the_log(path):
    log = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    text = json.dumps(log)
    assert hashlib.sha256(path.read_bytes()).hexdigest() in text
    assert [key for key in ("command", "seed", "CPU", "torch") if key not in text] == []
