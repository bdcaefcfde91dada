"""The benchmarks' arithmetic, by hand, and the page that shows their records. Nothing is timed."""

import ast
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import figure  # noqa: E402
import page  # noqa: E402
import rounds  # noqa: E402
import verdicts  # noqa: E402
import words  # noqa: E402
from plain_gpt import PlainGPT  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"


# --- rounds --------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only when somebody is called."""
    now = [0.0]
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: now[0])

    def competitor(name: str, seconds: float, calls: list[str]):
        def call() -> None:
            now[0] += seconds
            calls.append(name)

        return call

    return competitor


def test_every_competitor_runs_once_a_round_and_nobody_always_first(clock):
    calls: list[str] = []
    some = {name: clock(name, 1.5, calls) for name in "abc"}
    found = rounds.alternate(some, seconds=0, least=4)
    # One call each to warm up, one trial (long calls need no more), then the rounds.
    assert "".join(calls) == "aabbcc" + "abc" + "bca" + "cab" + "abc"
    assert found.seconds == {name: [1.5] * 4 for name in "abc"}
    assert (len(found), found.calls, found.left_out) == (4, 1, {})


def test_rounds_go_on_for_the_time_and_end_at_an_even_number(clock):
    some = {name: clock(name, 2.0, []) for name in "ab"}
    assert len(rounds.alternate(some, seconds=17, least=2)) == 6  # 4 s a round: 5, and 1 more
    assert len(rounds.alternate(some, seconds=17, least=8)) == 8
    assert len(rounds.alternate(some, seconds=1e9, least=2)) == rounds.MOST


def test_short_calls_are_repeated_within_a_timing(clock):
    calls: list[str] = []
    some = {"a": clock("a", 0.004, calls), "b": clock("b", 0.005, calls)}
    found = rounds.alternate(some, seconds=0, least=2)
    assert found.calls == 5  # of 0.004 s, to fill 0.02 s
    assert len(calls) == 2 * (1 + 3) + 2 * 2 * 5
    assert found.seconds["b"] == pytest.approx([0.005] * 2)


def test_the_hopeless_are_left_out_but_not_those_who_are_to_be_kept(clock):
    some = {
        name: clock(name, taken, []) for name, taken in zip("abcd", (9, 2, 4, 4.5), strict=True)
    }
    found = rounds.alternate(some, seconds=0, keep=("a",))
    assert list(found.seconds) == ["a", "b", "c"]
    assert found.left_out == {"d": 4.5}
    assert rounds.alternate({"a": some["a"]}, seconds=0, keep=("a",)).left_out == {}


def test_the_opponent_is_chosen_in_one_half_and_measured_in_the_other():
    found = rounds.Rounds(
        {
            "ours": [6.0, 6.0, 6.0, 6.0],
            "even": [1.0, 4.0, 3.0, 8.0],  # fastest in rounds 0 and 2
            "odd": [5.0, 2.0, 6.0, 1.0],  # fastest in rounds 1 and 3
        },
        calls=1,
    )
    ratios, chosen = rounds.against_fastest(found, "ours", ["even", "odd", "left out"])
    assert chosen == ["even", "odd"]
    assert ratios == [6 / 5, 6 / 4, 6 / 6, 6 / 8]


def test_a_spread_is_median_quartiles_and_an_interval_for_the_median():
    found = rounds.spread([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (found["low"], found["median"], found["high"]) == (2.0, 3.0, 4.0)
    assert 1.0 <= found["from"] < 3.0 < found["to"] <= 5.0
    assert rounds.spread([2.0, 2.0]) == dict.fromkeys(("low", "median", "high", "from", "to"), 2.0)


def test_a_row_holds_everything_and_the_noise_only_where_there_is_a_second_copy():
    seconds = {"ours": [2.0, 4.0], "again": [2.0, 2.0], "peer": [1.0, 8.0]}
    found = rounds.Rounds(seconds, calls=3, left_out={"slow": 9.0})
    record = rounds.row({"shape": [1]}, found, "ours", ["peer", "slow"], "again")
    assert record["ratio"]["median"] == (2.0 + 0.5) / 2
    assert record["noise"]["median"] == (1.0 + 2.0) / 2
    assert (record["shape"], record["rounds"], record["calls a timing"]) == ([1], 2, 3)
    assert record["ours"] == "ours"
    assert (record["fastest"], record["left out"]) == (["peer", "peer"], {"slow": 9.0})
    assert record["seconds"]["peer"]["median"] == 4.5
    assert "noise" not in rounds.row({}, found, "ours", ["peer"], None)


def test_records_hold_four_digits():
    assert rounds.rounded({"a": [1.23456, 7], "b": "x"}) == {"a": [1.235, 7], "b": "x"}


# --- numbers as text and verdicts ----------------------------------------------------------------


def test_numbers_are_written_with_units():
    assert [words.seconds(x) for x in (2.5e-5, 0.0123, 4.0)] == ["25 µs", "12.3 ms", "4 s"]
    assert [words.size(x) for x in (12, 4e4, 8.6e9)] == ["12 B", "40 kB", "8.6 GB"]
    assert words.ratio({"median": 0.984, "low": 0.951, "high": 1.049}) == "0.98 (0.95–1.05)"


@pytest.mark.parametrize(
    ("values", "lows", "verdict"),
    [
        ([0.9, 1.05], None, "met"),
        ([0.9, 1.06], None, "**missed**"),
        ([0.9, 1.06], [0.8, 1.05], "within noise"),
        ([1.1, 1.06], [1.06, 0.9], "**missed**"),
    ],
)
def test_a_target_is_met_only_if_every_run_meets_it(values, lows, verdict):
    assert verdicts.judge(values, 1.05, lows) == verdict


def _run(rows):
    return {"rows": rows}


def _row(median, **case):
    ends = {"low": median - 0.1, "high": median + 0.1, "from": median - 0.06, "to": median + 0.06}
    return {"ratio": {"median": median, **ends}, **case}


def test_a_module_has_its_mean_and_its_worst_row_of_each_direction():
    runs = [
        _run([_row(0.5, backward=False), _row(2.0, backward=False), _row(1.1, backward=True)]),
        _run([_row(0.8, backward=False), _row(1.2, backward=False), _row(0.9, backward=True)]),
    ]
    found = list(verdicts.modules({"attention": runs}, "attention", "M"))
    assert [line.what for line in found] == [
        "M, forward: geometric mean of the rows",
        "M, forward: worst row",
        "M, forward + backward: geometric mean of the rows",
        "M, forward + backward: worst row",
    ]
    assert found[0].found == ["1.00 ± 0.06", "0.98 ± 0.04"]
    assert found[1].found == ["2.00 (1.90–2.10)", "1.20 (1.10–1.30)"]
    assert [line.met for line in found] == ["met", "**missed**", "**missed**", "within noise"]


def test_the_interval_of_a_mean_shrinks_with_the_number_of_rows():
    one, half = verdicts.geometric([_row(1.03)])
    many, less = verdicts.geometric([_row(1.03)] * 4)
    assert (one, many) == pytest.approx((1.03, 1.03))
    assert half == pytest.approx(0.06, abs=1e-3)  # that of the row itself
    assert less == pytest.approx(half / 2)
    assert verdicts.mean_target("M", 1.0, [[_row(1.03)]]).met == "within noise"
    assert verdicts.mean_target("M", 1.0, [[_row(1.03)] * 8]).met == "**missed**"


def test_tiled_attention_is_judged_by_time_and_by_memory():
    def row(backward, causal, ratio, part):
        case = {"backward": backward, "causal": causal, "shape": [1, 16, 8, 2]}
        return _row(ratio, bytes=100 * part, explicit={"bytes": 100}, **case)

    rows = [row(False, False, 1.5, 0.05), row(True, False, 2.0, 0.06), row(False, True, 1.9, 0.0)]
    found = list(verdicts.tiled({"tiled": [_run(rows)]}))
    assert [line.target for line in found[::2]] == ["at most 1.5", "at most 2.0", "at most 1.7"]
    assert [line.met for line in found[::2]] == ["met", "met", "**missed**"]
    assert [line.met for line in found[1::2]] == ["met", "**missed**", "met"]


def test_times_faster_import_training_and_kernels_are_judged():
    def only(group, rows):
        return {group: [_run(rows)]}

    case = {"target": True, "window": 256, "shape": [1, 16384, 512, 8]}
    faster = only("window", [_row(0.2, target=False), _row(0.1, **case)])
    (line,) = verdicts.at_least(faster, "window", verdicts.window, 10)
    assert line.what == "sliding window of 256 at length 16,384: faster than full SDPA"
    assert (line.found, line.met) == (["10"], "met")
    assert verdicts.decoding({"cached": 4096, "model": "M"}).startswith(
        "one token from a cache of 4,096, M:"
    )
    (line,) = verdicts.at_least(faster, "window", verdicts.window, 11)
    assert line.met == "**missed**"
    (line,) = verdicts.training(only("training", [_row(0.91, target=True)]))
    assert line.met == "**missed**"
    (line,) = verdicts.importing(only("importing", [{"seconds": {"median": 0.2}}]))
    assert (line.found, line.met) == (["200 ms"], "met")
    gpu = [{"rows": [{"what": "forward", "speed": 0.8}, {"what": "forward", "speed": 0.9}]}]
    gpu[0]["rows"].append({"what": "forward and backward", "speed": 0.69})
    assert [line.met for line in verdicts.kernels(gpu)] == ["met", "**missed**"]
    assert [line.met for line in verdicts.kernels([])] == ["not measured"] * 2


def test_every_group_has_a_name_and_a_place_on_the_page():
    tree = ast.parse((ROOT / "benchmarks" / "groups.py").read_text(encoding="utf-8"))
    (named,) = (
        node.value.keys
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and node.target.id == "BY_NAME"
    )
    assert tuple(key.value for key in named) == words.GROUPS
    assert {group for group, _ in verdicts.TARGETS} | {"curves"} == set(words.GROUPS)
    assert set(page.SECTIONS) | {"importing", "curves"} == set(words.GROUPS)


def test_the_plain_gpt_has_as_many_parameters_as_the_gpt_of_chapter_11():
    from attention_lib.models.characters import LENGTH
    from attention_lib.models.recipes import PLAIN

    ours = PLAIN.model(65, seed=0)
    plain = PlainGPT(65, LENGTH, width=128, layers=4, heads=4)
    assert len({sum(p.numel() for p in model.parameters()) for model in (ours, plain)}) == 1


# --- the records and the page --------------------------------------------------------------------


def test_the_page_is_what_the_records_say():
    assert page.text(RESULTS) == (ROOT / "chapters" / "benchmarks.md").read_text(encoding="utf-8")


def test_the_figure_is_drawn_from_the_last_run():
    rows = json.loads((RESULTS / "curves.json").read_text(encoding="utf-8"))[-1]["rows"]
    assert f"<dc:title>{figure.fingerprint(rows)}</dc:title>" in (
        ROOT / "_static" / "curves.svg"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize("group", words.GROUPS)
def test_a_record_is_of_two_real_runs_on_one_machine(group):
    runs = json.loads((RESULTS / f"{group}.json").read_text(encoding="utf-8"))
    assert len(runs) == 2
    for run in runs:
        assert "--small" not in run["command"]
        assert run["rows"]
    assert len({json.dumps([run["machine"], run["threads"]]) for run in runs}) == 1
    assert runs[0]["rows"] != runs[1]["rows"]
