"""Properties 5 and 6 together: SIGKILL at random moments, a third of them inside a save, changes nothing in the end.

A few draws of `benchmarks.kill_campaign`; the script itself takes as many as one likes, over the whole matrix.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.extended, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("setting", ["zero0-ga1", "zero1-ga4", "zero2-ga4", "zero3-ga1"])
def test_the_restarted_run_is_the_undisturbed_one(setting):
    command = [sys.executable, "-m", "benchmarks.kill_campaign", "--draws", "5", "--configs", setting]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["outcomes"] == {"same": 5}
