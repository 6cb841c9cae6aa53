"""A small part of `benchmarks.plan_memory`: states and copies of a live DeepSpeed engine, ZeRO 0-3 on one worker."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_states_of_live_engines_are_predicted(tmp_path):
    out = tmp_path / "rows.json"
    command = [sys.executable, "-m", "benchmarks.plan_memory", "--part", "states", "copies", "--workers", "1"]
    done = subprocess.run(
        [*command, "--shapes", "deep", "--json", str(out)], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(out.read_text())
    assert len(rows) == 4 * 5 + 4, "four stages: four kinds and their sum, and the copies of a save"
    assert max(abs(row["error"]) for row in rows) <= 0.01
