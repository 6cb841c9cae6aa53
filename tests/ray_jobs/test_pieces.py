"""Small parts of the Ray side that need no cluster: capacity arithmetic, the followed files, the upload."""

from __future__ import annotations

import subprocess
import sys

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
