"""How long `fulltune --help` takes: a fresh process each time, the median of ten (the contract says below a second).

python -m benchmarks.help_time
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS = 10


def seconds() -> float:
    """One start of the command."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "ray_jobs.cli", "--help"], check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    """Prints median and range."""
    times = sorted(seconds() for _ in range(RUNS))
    print(
        f"fulltune --help: median {statistics.median(times):.3f} s, {times[0]:.3f} to {times[-1]:.3f} s ({RUNS} runs)"
    )


if __name__ == "__main__":
    main()
