"""How long does ``import attention_lib`` take once torch and numpy are there? Prints a median.

Run: python benchmarks/import_time.py. It is measured in fresh processes; the target is 0.2 s.
"""

import statistics
import subprocess
import sys

REPEATS = 7
CODE = """
import time
import numpy, torch
start = time.perf_counter()
import attention_lib
print(time.perf_counter() - start)
"""


def main() -> None:
    """Print every repeat and the median."""
    seconds = [
        float(subprocess.run([sys.executable, "-c", CODE], capture_output=True, check=True).stdout)
        for _ in range(REPEATS)
    ]
    print("seconds:", " ".join(f"{s:.3f}" for s in sorted(seconds)))
    print(f"median: {statistics.median(seconds):.3f} s beyond torch (target 0.2 s)")


if __name__ == "__main__":
    main()
