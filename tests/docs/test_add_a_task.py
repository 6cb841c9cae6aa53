"""docs/add_a_task.md does what it says: its shell blocks run in order, in an empty folder outside of the repository."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "add_a_task.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|sh slow)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
QUICK = [text for kind, text in BLOCKS if kind == "sh"]


def run(blocks: list[str], folder: Path, timeout_s: int) -> str:
    """What the blocks print, with the `fulltune` and `python` of this environment; stops where one of them fails."""
    programs = folder / ".bin"
    programs.mkdir()
    for name, command in {"python": "", "fulltune": "-m ray_jobs.cli"}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {command} "$@"\n')
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }
    script = "set -eux\n" + "\n".join(blocks)
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout_s
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_the_page_works_from_start_to_end(tmp_path: Path) -> None:
    shown = run(QUICK, tmp_path, 200)
    assert shown.count("5 passed") == 2
    assert "1 failed" in shown
    assert "as it should" in shown
    assert "<START_A>[[item=" in shown
    assert "task: parcels/parcel_facts.py:TASK" in shown
    right, wrong = map(json.loads, (tmp_path / "scored" / "scores.jsonl").read_text().splitlines())
    assert (right["error"], right["metrics"]["facts"]) == (None, 1.0)
    assert (wrong["error"], wrong["metrics"]["facts"]) == ("not_pairs", 0.0)
    assert json.loads((tmp_path / "scored" / "metrics.json").read_text())["task_version"] == "2"


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.timeout(900)
def test_the_training_it_ends_with_ends_in_a_report(tmp_path: Path) -> None:
    blocks = [QUICK[0], *(text for kind, text in BLOCKS if kind == "sh slow")]
    shown = run(blocks, tmp_path, 800)
    report = tmp_path / "runs" / "parcel_facts" / "report"
    assert (report / "report.html").is_file(), shown[-2000:]
    results = json.loads((report / "results.json").read_text())
    assert results["task"] == "parcel_facts"


def test_the_entry_point_shown_is_read_by_the_registry() -> None:
    (block,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    import tasks

    assert tomllib.loads(block)["project"]["entry-points"] == {
        tasks.ENTRY_POINT_GROUP: {"parcel_facts": "parcels.parcel_facts:TASK"}
    }


def test_the_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert links
    assert not [link for link in links if not (ROOT / "docs" / link).exists()]
