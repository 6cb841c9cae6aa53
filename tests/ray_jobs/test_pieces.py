"""Small parts of the Ray side that need no cluster: capacity arithmetic, the followed files, the upload."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys

import pytest

from fulltune.config import RayConfig
from ray_jobs import cluster, progress, submit


def test_fractions_of_a_cpu_fill_a_node_exactly():
    assert cluster._places({"CPU": 2.0}, {"CPU": 0.1}) == 20
    assert cluster._places({"CPU": 2.0}, {"CPU": 1.5}) == 1
    assert cluster._places({"CPU": 64.0, "GPU": 8.0}, {"CPU": 8.0, "GPU": 1.0}) == 8
    assert cluster._places({"CPU": 64.0}, {"CPU": 8.0, "GPU": 1.0}) == 0


def test_workers_ask_for_a_gpu_only_where_the_run_uses_them():
    assert cluster.worker_resources(RayConfig(cpus_per_worker=0.5)) == {"CPU": 0.5}
    assert cluster.worker_resources(RayConfig(use_gpu=True, cpus_per_worker=8)) == {"CPU": 8.0, "GPU": 1.0}


def test_a_followed_file_gives_whole_lines_once_and_starts_over_when_cut_back(tmp_path):
    path = tmp_path / "log"
    tail = progress._Tail(path, from_end=False)
    assert tail.lines() == []
    path.write_text("one\ntwo\nthr")
    assert tail.lines() == ["one", "two"]
    path.write_text("one\ntwo\nthree\n")
    assert tail.lines() == ["three"]
    assert tail.lines() == []
    path.write_text("one\n")
    assert tail.lines() == ["one"]


def test_messages_of_an_earlier_start_are_not_shown_again(tmp_path):
    path = tmp_path / "log"
    path.write_text("old\n")
    tail = progress._Tail(path, from_end=True)
    path.write_text("old\nnew\n")
    assert tail.lines() == ["new"]


def test_the_progress_line_says_what_was_spent_of_what_it_will_cost():
    record = {"step": 3, "loss": 1.5, "lr": 1e-5, "tokens_per_s": 2048.0}
    cpu = record | {"mfu": None, "gpu_hours": None, "cost_usd": None}
    gpu = record | {"mfu": 0.412, "gpu_hours": 2.1, "gpu_hours_to_go": 4.3, "cost_usd": 2.2, "cost_usd_to_go": 4.5}
    assert progress._plain(cpu, 9) == "step 3/9  loss 1.5000  lr 1.00e-05  2,048 tokens/s"
    assert progress._plain(gpu, 9) == progress._plain(cpu, 9) + "  41 % MFU  2.1/6.4 GPU-h  $2/$7"


PARTS = {
    "supervised_tokens_per_s": 1024.0, "padded_tokens_per_s": 32.0,
    "data_seconds": 0.1, "compute_seconds": 1.5, "update_seconds": 0.4,
}  # fmt: skip
FULL = {"step": 3, "loss": 1.5, "lr": 1e-5, "tokens_per_s": 2048.0, "mfu": 0.412} | PARTS
FULL |= {"gpu_hours": 2.1, "gpu_hours_to_go": 4.3, "cost_usd": 2.2, "cost_usd_to_go": 4.5}
LARGE = FULL | {"step": 123_456, "tokens_per_s": 123_456.0, "supervised_tokens_per_s": 99_999.0, "loss": 12.5}
LARGE |= {"padded_tokens_per_s": 12_345.0, "compute_seconds": 11.5, "gpu_hours": 1234.5, "gpu_hours_to_go": 5678.9}
LARGE |= {"cost_usd": 3456.7, "cost_usd_to_go": 12345.6}


def test_below_the_progress_line_stands_what_tokens_and_seconds_are_made_of():
    parts = "  1,024 supervised, 32 padded tok/s  2.00 s: data 0.10, compute 1.50, update 0.40"
    plain = {key: value for key, value in FULL.items() if key not in PARTS}
    assert progress._plain(FULL, 9) == f"{progress._plain(plain, 9)}\n{parts}"
    cpu = FULL | {"mfu": None, "gpu_hours": None, "cost_usd": None}
    assert progress._plain(cpu, 9) == f"step 3/9  loss 1.5000  lr 1.00e-05  2,048 tokens/s\n{parts}"
    assert all(len(line) <= 120 for line in progress._plain(LARGE, 123_456).splitlines())


def test_gpu_hours_of_before_are_shown_where_a_run_goes_on_on_cpus():
    record = FULL | {"gpu_hours_to_go": None, "cost_usd_to_go": None}
    assert progress._plain(record, 9).splitlines()[0].endswith("  2.1/2.1 GPU-h  $2/$2")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("record", "total"), [(FULL, 9), (LARGE, 234_567)])
def test_a_terminal_of_120_columns_has_all_figures_in_a_bar_and_a_line_below(tmp_path, monkeypatch, record, total):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    with progress.following(tmp_path, total):
        pass
    # no terminal has this one's width, so nothing is cut; and no run takes all steps in a millisecond
    usual = re.sub(r"[\d.]+step/s, ", "12.25s/step, ", terminal.getvalue().replace("\x1b[A", ""))
    shown = [line.rstrip() for line in re.split(r"[\r\n]+", usual)]
    bar = next(line for line in shown if f"{record['step']}/{total}" in line and "loss" in line)
    below = next(line for line in reversed(shown) if "supervised" in line)
    assert bar.endswith(f"{record['tokens_per_s']:,.0f} tok/s  41 % MFU]")
    assert below == (progress._parts(record) + progress._bill(record)).strip()
    assert max(map(len, shown)) <= 120


def test_the_upload_is_small_and_runs_from_its_own_folder(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("task: viggo\nmodel: {name_or_path: some/model}\n")
    upload = tmp_path / "upload"
    upload.mkdir()
    assert submit.stage(upload, "demo") == "demo"
    assert sum(file.stat().st_size for file in upload.rglob("*") if file.is_file()) < 2_000_000
    other = tmp_path / "other"
    other.mkdir()
    assert submit.stage(other, str(mine)) == "mine.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "ray_jobs.train", "mine.yaml", "--print-config"],
        cwd=other,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "name: mine" in done.stdout
