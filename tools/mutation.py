"""Mutation score of the numeric core: change the library in a thousand small ways, run its tests.

A mutant that some test notices is killed. The run happens in a scratch copy, with the shape checks
off, so that only the tests' own assertions count. Nothing is excluded; what survives is printed as
a diff, to be killed by a better test or explained in CONTRIBUTING.md.

    python tools/mutation.py [--jobs 1] ["attention_lib.softmax.*"]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULES = [
    "_checks",
    "_joint",
    "scores",
    "softmax",
    "masks",
    "_masking",
    "attention",
    "positions",
    "heads",
    "blocks",
    "decoding",
    "efficient/caches",
    "efficient/cost",
    "efficient/counts",
    "efficient/latent",
    "efficient/linear",
    "efficient/low_rank",
    "efficient/online",
    "efficient/paged",
    "efficient/random_features",
    "efficient/readers",
    "efficient/sliding",
    "efficient/sparse",
    "efficient/speculative",
    "efficient/tiled",
    "efficient/window",
    "models/counting",
]
# The fast tests, in the order in which they are most likely to notice.
TESTS = [
    "scores",
    "softmax",
    "masks",
    "attention",
    "positions",
    "heads",
    "heads_properties",
    "cache",
    "joint",
    "blocks",
    "decoding",
    "caches",
    "cost",
    "counting",
    "latent",
    "linear",
    "low_rank",
    "paged",
    "random_features",
    "sliding",
    "sparse",
    "speculative",
    "tiled",
    "window",
    "errors",
    "errors_modules",
    "hostile",
    "hostile_modules",
]
HELPERS = ["conftest", "oracle", "oracle_layers", "twins"]
# A compiler cannot follow the switch between the mutants of a function.
COMPILED = (
    "tests/test_attention.py::"
    "test_no_answer_on_one_mask_is_taken_for_the_next_where_calls_are_recorded"
)
TARGET = 0.9
SETTINGS = f"""
[tool.pytest.ini_options]
addopts = ["--import-mode=importlib", "--deselect={COMPILED}"]
pythonpath = ["tests"]
markers = ["oracle", "hostile"]
filterwarnings = ["error"]

[tool.mutmut]
source_paths = ["attention_lib"]
only_mutate = {[f"attention_lib/{module}.py" for module in MODULES]}
pytest_add_cli_args_test_selection = ["tests"]
"""


def main() -> int:
    """Run mutmut in a scratch copy and print what it found; 0 if the target is reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", default="1", help="mutants to try at once")
    parser.add_argument("names", nargs="*", help="only mutants whose names match these patterns")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        _copy(Path(scratch))
        run = _mutmut(scratch, "run", "--max-children", arguments.jobs, *arguments.names)
        verdicts = _verdicts(_mutmut(scratch, "results", "--all", "true").stdout)
        if not verdicts:
            print(run.stdout[-4000:], run.stderr[-4000:], sep="\n")
            return 1
        survivors = [name for name, verdict in verdicts.items() if verdict not in KILLED]
        for name in survivors:
            print(f"--- {name}: {verdicts[name]}")
            print(_mutmut(scratch, "show", name).stdout.partition("@@")[2])
    score = 1 - len(survivors) / len(verdicts)
    counts = ", ".join(
        f"{count} {verdict}" for verdict, count in Counter(verdicts.values()).items()
    )
    print(f"{len(verdicts)} mutants: {counts}; score {score:.1%} (target {TARGET:.0%})")
    return int(score < TARGET)


# A mutant that never ends is noticed as well.
KILLED = {"killed", "timeout"}


def _copy(scratch: Path) -> None:
    """The library, its fast tests and the settings."""
    shutil.copytree(ROOT / "attention_lib", scratch / "attention_lib")
    (scratch / "tests").mkdir()
    for name in [*HELPERS, *(f"test_{test}" for test in TESTS)]:
        shutil.copy(ROOT / "tests" / f"{name}.py", scratch / "tests")
    (scratch / "pyproject.toml").write_text(SETTINGS)


def _mutmut(scratch: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One mutmut command, with one thread for each of its processes."""
    return subprocess.run(
        [sys.executable, "-m", "mutmut", *arguments],
        cwd=scratch,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def _verdicts(results: str) -> dict[str, str]:
    """Name and verdict of each mutant that was tried, from lines such as ``a.b.x_f__1: killed``."""
    pairs = [line.strip().rpartition(": ")[::2] for line in results.splitlines() if ": " in line]
    return {name: verdict for name, verdict in pairs if verdict != "not checked"}


if __name__ == "__main__":
    raise SystemExit(main())
