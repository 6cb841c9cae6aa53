"""Does the demo's tuned model reach its bar, and does the untuned one know nothing? Exit code 1 if not.

python benchmarks/check_demo.py runs/demo/report/results.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

BARS = {"attributes_ordered": 0.95, "exact": 0.75}
KNOWS_NOTHING = 0.01


def main(path: Path) -> int:
    """Prints each figure beside its bar."""
    rows = {row["role"]: row["metrics"] for row in json.loads(path.read_text())["models"]}
    good = True
    for metric, bar in BARS.items():
        tuned, base = (rows[role][metric]["mean"] for role in ("tuned", "base"))
        reached = tuned >= bar and base <= KNOWS_NOTHING
        good &= reached
        print(f"{metric}: tuned {tuned:.3f} (bar {bar}), base {base:.3f}: {'ok' if reached else 'BELOW THE BAR'}")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
