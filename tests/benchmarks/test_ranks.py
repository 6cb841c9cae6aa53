"""The launcher of ranks: what each finds comes back in order, and neither a failure nor a hang goes unnoticed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks import ranks

SAY = """
import json, os, sys
rank = os.environ["RANK"]
found = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "EXTRA")]
open(f"{sys.argv[1]}/{rank}.json", "w").write(json.dumps(found))
"""


def command(text, folder):
    return [sys.executable, "-c", text, str(folder)]


def test_each_rank_knows_itself_and_what_it_found_comes_back_in_order(tmp_path):
    found = ranks.run(command(SAY, tmp_path), 3, {"EXTRA": "yes"}, tmp_path, timeout_s=60)
    port = found[0][3]
    assert found == [[str(rank), str(rank), "3", port, "yes"] for rank in range(3)]


def test_a_rank_that_fails_fails_the_run_with_its_output(tmp_path):
    text = SAY + "\nif rank == '1': sys.exit('rank one broke')"
    with pytest.raises(RuntimeError, match=r"\[0, 1\](.|\n)*rank one broke"):
        ranks.run(command(text, tmp_path), 2, {"EXTRA": ""}, tmp_path, timeout_s=60)


def test_a_rank_that_hangs_is_ended(tmp_path):
    text = "import os, sys, time\nopen(f'{sys.argv[1]}/pid', 'w').write(str(os.getpid()))\ntime.sleep(600)"
    with pytest.raises(subprocess.TimeoutExpired):
        ranks.run(command(text, tmp_path), 1, {}, tmp_path, timeout_s=20)
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
