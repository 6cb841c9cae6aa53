"""Drivers and actors killed with SIGKILL at random moments: no completion that was finished is computed again."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
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
MORE = 8  # completions that are finished between two kills, at most


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
                [*command, "--prompt", "structured", "--batch-tokens", "50"],
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


def finished(folder):
    """How many completions have been finished so far."""
    return sum(computed(folder)[0].values())


def wait_for_more(process, folder, draw):
    """Until some completions more are finished, and then a random while."""
    wanted = finished(folder) + draw.randint(1, MORE)

    def arrived():
        assert process.poll() is None, (folder / "log").read_text()[-3000:]
        return finished(folder) >= wanted

    helpers.wait_until(arrived, bound_s=200, what=f"{wanted} completions")
    time.sleep(draw.uniform(0, 0.5))
    wait_until_quiet(folder)


def wait_until_quiet(folder):
    """The trace says "finished" a fraction of a millisecond before the journal has it: no kill between the two."""
    size = -1
    while size != (size := (folder / "computed").stat().st_size):
        time.sleep(0.005)


WORKER = """
import sys
from pathlib import Path
import tasks
from evaluation import answer_journal
from ray_jobs import predict
from tasks.sources import load

name, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
task = tasks.get(name)
data = {"task": name, "split": "test", "source": "bundled"}
asked = {"model": str(folder), "label": "m", "prompt": "structured", "batch_tokens": 50}
request = predict.Request(**data, **asked, out=out)
done = predict._continue(request, task, folder)
out.touch()
missing = [record for record in load(task, "test", "bundled") if record.id not in done]
if missing:
    for _ in predict.Predictor(request, folder).answers(missing, [], answer_journal.place(out)):
        pass
    predict._continue(request, task, folder)
"""


def test_what_a_killed_process_had_finished_is_in_its_journal(tmp_path, task_file, model):
    """The actor's class alone, without a cluster: nobody takes its answers, so only its journal can have them."""
    draw = random.Random("journal")
    command = [sys.executable, "-c", WORKER, f"{task_file}:TASK", str(model), str(tmp_path / "p.jsonl")]

    def run():
        with (tmp_path / "log").open("ab") as log:
            return subprocess.Popen(command, cwd=helpers.ROOT, stdout=log, stderr=subprocess.STDOUT)

    for _ in range(2):
        process = run()
        wait_for_more(process, tmp_path, draw)
        process.kill()
        process.wait(timeout=20)
    after = finish(run(), tmp_path)
    assert computed(tmp_path)[0] == Counter(after.values()), "computed again, or lost"


@pytest.mark.parametrize(
    ("engine", "victims"), [("hf", ["driver", "actor", "driver"]), ("hf-static", ["actor", "driver"])]
)
def test_no_finished_completion_is_computed_again_whoever_is_killed(tmp_path, start, engine, victims):
    draw = random.Random(f"{engine} {os.environ.get('FULLTUNE_KILL_SEED', 1)}")
    process = start(engine)
    for victim in victims:
        wait_for_more(process, tmp_path, draw)
        if victim == "actor":
            os.kill(computed(tmp_path)[1][-1], signal.SIGKILL)
            continue
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=20)
        assert len(lines(tmp_path)) < ROWS, "it was done before it was killed"
        process = start(engine)
    after = finish(process, tmp_path)
    times, actors = computed(tmp_path)
    assert times == Counter(after.values()), "computed again, or lost"
    assert len(actors) == len(victims) + 1, "every kill hit an actor at work, or its driver"
    assert "answered before" in (tmp_path / "log").read_text()
    assert not (tmp_path / ".p.answers").exists()
    meta = json.loads((tmp_path / "p.meta.json").read_text())
    assert (meta["workers"], meta["engine"]) == (1, engine)
    assert meta["batching"] == {"hf": "continuous", "hf-static": "static"}[engine]
