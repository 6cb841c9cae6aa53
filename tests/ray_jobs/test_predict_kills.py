"""A killed prediction, and a killed actor of one: what stands in the file is never computed again."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import tasks
from fulltune import tokenizer as tok

# tests/ is not a package: the helpers beside this file are loaded by path
_SPEC = importlib.util.spec_from_file_location("ray_jobs_test_helpers", Path(__file__).with_name("conftest.py"))
helpers = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(helpers)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROWS = 60
WRITTEN = 10  # answers that stand in the file before something dies
UNDER_WAY = 8  # answers finished and not yet written when it does: those of a moment, and the one being sent


@pytest.fixture
def task_file(tmp_path):
    return Path(shutil.copy(Path(__file__).with_name("logging_task.py"), tmp_path / "logging_task.py"))


@pytest.fixture
def model(tmp_path, task_file):
    """A random model that writes something else after every prompt, to the limit."""
    task = tasks.get(f"{task_file}:TASK")
    records = list(task.generate("test"))
    tokenizer = tok.train_bpe([f"row {record['number']} {record['answer']}" for record in records], 300)
    tok.add_task_tokens(tokenizer, task)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.4, **shape))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def start(tmp_path, task_file, model):
    """start(engine): `fulltune predict` as a user would start it; whatever is left of it dies with the test."""
    started = []

    def run(engine):
        command = [sys.executable, "-m", "ray_jobs.cli", "predict", "--task", f"{task_file}:TASK", "--split", "test"]
        command += ["--model", str(model), "--out", str(tmp_path / "p.jsonl"), "--engine", engine, "--workers", "1"]
        with (tmp_path / "log").open("ab") as log:
            process = subprocess.Popen(
                [*command, "--prompt", "structured", "--batch-tokens", "300"],
                cwd=helpers.ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def lines(folder):
    """Id -> completion of the whole lines that stand in the file."""
    path = folder / "p.jsonl"
    text = path.read_text() if path.exists() else ""
    rows = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    assert len({row["id"] for row in rows}) == len(rows), "an answer was written twice"
    return {row["id"]: row["completion"] for row in rows}


def computed(folder):
    """How often each text was computed, and in which processes, the first one first."""
    path = folder / "computed"
    found = [line.split(" ") for line in path.read_text().splitlines()] if path.exists() else []
    return Counter(bytes.fromhex(text).decode() for _, text in found), list(dict.fromkeys(int(pid) for pid, _ in found))


def finish(process, folder):
    assert process.wait(timeout=200) == 0, (folder / "log").read_text()[-3000:]
    found = lines(folder)
    assert len(found) == ROWS
    assert len(set(found.values())) > 0.9 * ROWS, "computed answers are told apart by their text"
    return found


def wait_for_lines(process, folder):
    def arrived():
        assert process.poll() is None, (folder / "log").read_text()[-3000:]
        return len(lines(folder)) >= WRITTEN

    helpers.wait_until(arrived, bound_s=200, what=f"{WRITTEN} answers")


def assert_nothing_twice(folder, before, after):
    """`before` stood in the file when something died."""
    assert {name: after[name] for name in before} == before
    times, _ = computed(folder)
    wanted = Counter(after.values())  # two answers may be equal
    assert [text for text in before.values() if times[text] != wanted[text]] == []
    assert sum(times.values()) - ROWS <= UNDER_WAY


@pytest.mark.parametrize("engine", ["hf", "hf-static"])
def test_a_killed_run_goes_on_and_computes_nothing_twice(tmp_path, start, engine):
    process = start(engine)
    wait_for_lines(process, tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=20)
    before = lines(tmp_path)
    assert len(before) < ROWS, "it was done before it was killed"
    after = finish(start(engine), tmp_path)
    assert_nothing_twice(tmp_path, before, after)
    log = (tmp_path / "log").read_text()
    assert f"{ROWS - len(before)} prompts ({len(before)} answered before)" in log
    meta = json.loads((tmp_path / "p.meta.json").read_text())
    assert (meta["workers"], meta["engine"]) == (1, engine)
    assert meta["batching"] == {"hf": "continuous", "hf-static": "static"}[engine]


def test_a_killed_actor_is_replaced_and_its_answers_stay(tmp_path, start):
    process = start("hf")
    wait_for_lines(process, tmp_path)
    _, (actor,) = computed(tmp_path)
    before = lines(tmp_path)
    os.kill(actor, signal.SIGKILL)
    after = finish(process, tmp_path)
    assert_nothing_twice(tmp_path, before, after)
    assert len(computed(tmp_path)[1]) == 2
