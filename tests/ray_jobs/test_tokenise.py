"""Tokenising on Ray Data writes the same bytes as tokenising here, and says the same of rows that are wrong."""

from __future__ import annotations

import hashlib
import itertools
import json
from itertools import islice

import pytest

import tasks
from fulltune import config, data, model
from ray_jobs import cluster, prepare, tokenise
from tasks.base import UserError

TASK = tasks.get("gsm8k")
SHAPE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
ROWS = 3 * data.CHUNK_ROWS + 500

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ray_here():
    with cluster.connected():
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "train.jsonl"
    source = itertools.cycle(TASK.generate("train"))
    with path.open("w") as file:
        for i, row in zip(range(ROWS), source, strict=False):
            file.write(json.dumps({**row, "question": f"{row['question']} ({i})"}) + "\n")
    return path


def tokenised(path, cache, monkeypatch, *, head_chunks):
    """The table of a file, and whether Ray Data made it."""
    monkeypatch.setattr(prepare, "HEAD_CHUNKS", head_chunks)
    shape = config.ModelConfig(init="random", config=SHAPE, tokenizer={"vocab_size": 500})
    source = tokenise.Source("gsm8k", "train", str(path))
    texts = ["".join(segment.text for segment in TASK.render(r)) for r in islice(source.records(), 200)]
    start = model.prepare(shape, TASK, texts, seed=1, cache=cache)
    said: list[str] = []
    table = prepare.tokenised(source, start, config.DataConfig(max_length=400), cache, say=said.append)
    return table, any("Ray Data" in line for line in said)


def digests(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def test_ray_data_and_this_process_write_the_same_bytes(rows, tmp_path, monkeypatch, ray_here):
    here, on_ray = tokenised(rows, tmp_path / "here", monkeypatch, head_chunks=100)
    assert not on_ray
    there, on_ray = tokenised(rows, tmp_path / "there", monkeypatch, head_chunks=1)
    assert on_ray
    assert digests(there.folder) == digests(here.folder)
    assert len(there) + there.manifest["left_out"]["too_long"]["total"] == ROWS
    again, on_ray = tokenised(rows, tmp_path / "there", monkeypatch, head_chunks=1)
    assert (again.folder, on_ray) == (there.folder, False)


def test_another_row_at_the_end_makes_another_table(rows, tmp_path, monkeypatch, ray_here):
    first, _ = tokenised(rows, tmp_path, monkeypatch, head_chunks=1)
    text = rows.read_text()
    other = tmp_path / "train.jsonl"
    other.write_text(text.replace(f"({ROWS - 1})", "(last)"))
    second, _ = tokenised(other, tmp_path, monkeypatch, head_chunks=1)
    assert first.folder != second.folder


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ('{"question": "no answer"}', "answer"),
        ("not json", "invalid JSON"),
        ('{"question": "<START_Q> inside", "answer": "1 #### 1"}', "special token"),
        ('{"id": "gsm8k-train-3", "question": "q", "answer": "1 #### 1"}', "gsm8k-train-3' on 2 rows"),
    ],
)
def test_a_row_that_is_wrong_is_named_and_nothing_is_left_behind(
    rows, tmp_path, monkeypatch, ray_here, broken, message
):
    path = tmp_path / "train.jsonl"
    path.write_text(rows.read_text() + broken + "\n")
    with pytest.raises(UserError, match=message):
        tokenised(path, tmp_path / "cache", monkeypatch, head_chunks=1)
    assert not list((tmp_path / "cache").glob("*gsm8k*"))
