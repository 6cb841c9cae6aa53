"""Two stages in one command: the second starts from what the first exported, with tokens of another task added."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]


def test_the_second_stage_starts_from_the_first(tmp_path):
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    tree = {
        "task": "viggo",
        "model": {"init": "random", "config": shape, "tokenizer": {"vocab_size": 400}},
        "data": {"limit": 40},
        "train": {"learning_rate": 1e-3, "global_batch_size": 10, "max_steps": 3},
        "ray": {"num_workers": 1, "cpus_per_worker": 0.5, "storage_path": str(tmp_path)},
        "stages": [
            {"name": "sums", "task": "gsm8k", "data": {"max_length": 2048}},
            {"name": "forms", "base": "@sums"},
        ],
    }
    recipe = tmp_path / "two.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "ray_jobs.train", str(recipe)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("two/forms/checkpoints/step-00000003")
    final = yaml.safe_load((tmp_path / "two" / "forms" / "config.yaml").read_text())
    assert final["model"]["name_or_path"].endswith("two/sums/export")
    first = AutoTokenizer.from_pretrained(tmp_path / "two" / "sums" / "export")
    second = AutoTokenizer.from_pretrained(tmp_path / "two" / "forms" / "checkpoints" / "step-00000003" / "hf")
    assert first.get_vocab() == second.get_vocab(), "both tasks use the same four tokens"
