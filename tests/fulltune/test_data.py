"""Token tables on disk: what is kept and left out, when a table is made anew, and that half a table never shows."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import tasks
from fulltune import data
from fulltune import tokenizer as tok
from fulltune.config import DataConfig
from tasks.base import Record, UserError
from tasks.sources import load

TASK = tasks.get("viggo")
RECORDS = load(TASK, "train", "bundled", limit=40)
CONFIG = DataConfig(max_length=256)


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["".join(segment.text for segment in TASK.render(record)) for record in RECORDS]
    trained = tok.train_bpe(texts, 400)
    tok.add_task_tokens(trained, TASK)
    return trained


def prepared(tokenizer, cache, records=RECORDS, **settings):
    config = CONFIG.model_copy(update=settings)
    return data.prepare(settings.pop("task", TASK), records, tokenizer, config, split="train", cache=cache)


def test_rows_come_back_in_the_order_of_the_source(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CHUNK_ROWS", 7)
    table = prepared(tokenizer, tmp_path)
    assert [table[i].id for i in range(len(table))] == [record.id for record in RECORDS]
    encoded = tok.encode_examples(tokenizer, TASK, [TASK.render(r) for r in RECORDS], loss_on="completion")
    for i, (ids, labels) in enumerate(encoded):
        assert table[i].input_ids.tolist() == ids
        assert table[i].labels.tolist() == labels
    assert table.lengths.tolist() == [len(ids) for ids, _ in encoded]
    assert table.supervised.tolist() == [sum(label != tok.IGNORE for label in labels[1:]) for _, labels in encoded]


def test_a_second_run_finds_the_files_and_leaves_them_alone(tokenizer, tmp_path):
    first = prepared(tokenizer, tmp_path).folder
    before = {file.name: file.stat().st_mtime_ns for file in first.iterdir()}
    second = prepared(tokenizer, tmp_path).folder
    assert second == first
    assert {file.name: file.stat().st_mtime_ns for file in second.iterdir()} == before


def test_whatever_decides_the_content_decides_the_name(tokenizer, tmp_path):
    def name(task=TASK, records=RECORDS, config=CONFIG, split="train", rest=""):
        chunks = data.chunked(records)
        return data.folder_name(task, chunks, tokenizer, config, split=split, rest=rest)

    other_text = [*RECORDS[:-1], replace(RECORDS[-1], fields={**RECORDS[-1].fields, "ref": "Another sentence."})]
    names = [
        name(),
        name(records=other_text),
        name(records=RECORDS[::-1]),
        name(config=CONFIG.model_copy(update={"max_length": 64})),
        name(config=CONFIG.model_copy(update={"loss_on": "all"})),
        name(split="valid"),
        name(rest="more rows"),
        name(task=replace(TASK, version="next")),
        name(task=replace(TASK, render=lambda record: TASK.render(record)[::-1])),
    ]
    assert len(set(names)) == len(names)
    assert name() == names[0]
    refusing = replace(TASK, accepts=lambda record: record != RECORDS[0])
    assert name(task=refusing) not in names


def test_what_is_left_out_is_counted_whole_and_named_in_part(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "LISTED", 3)
    monkeypatch.setattr(data, "CHUNK_ROWS", 8)
    task = replace(TASK, accepts=lambda record: RECORDS.index(record) % 4 != 0)
    config = CONFIG.model_copy(update={"max_length": 60})
    chunks = (data.encode(task, tokenizer, chunk, config) for chunk in data.chunked(RECORDS))
    data.write(tmp_path / "table", chunks, {"task": "viggo", "split": "train"})
    table = data.TokenTable(tmp_path / "table")
    left_out = table.manifest["left_out"]
    assert left_out["rejected"] == {"total": 10, "first": [RECORDS[i].id for i in (0, 4, 8)]}
    assert left_out["too_long"]["total"] == 30 - len(table) > 3
    assert len(left_out["too_long"]["first"]) == 3
    assert all(length > 60 for _, length in left_out["too_long"]["first"])
    assert left_out["without_loss"] == {"total": 0, "first": []}


def test_a_table_without_rows_is_refused_with_the_reasons(tokenizer, tmp_path):
    with pytest.raises(UserError, match="0 usable rows of 40 .* 40 longer than 8 tokens"):
        prepared(tokenizer, tmp_path, max_length=8)


@pytest.mark.parametrize("apart", [1, 25])
def test_two_rows_with_one_id_are_refused(tokenizer, tmp_path, monkeypatch, apart):
    monkeypatch.setattr(data, "CHUNK_ROWS", 8)
    records = [*RECORDS[:30], replace(RECORDS[30], id=RECORDS[30 - apart].id)]
    with pytest.raises(UserError, match=f"id '{RECORDS[30 - apart].id}' on 2 rows"):
        prepared(tokenizer, tmp_path, records)
    assert list(tmp_path.iterdir()) == []


def test_ids_that_only_share_their_hash_are_two_ids(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_keys", lambda ids: np.zeros(len(ids), dtype=np.uint64))
    assert len(prepared(tokenizer, tmp_path)) == len(RECORDS)


def test_special_tokens_of_any_task_of_the_run_are_refused_in_the_text(tokenizer):
    record = Record("viggo-train-0", {"ref": "Do <END_SQL> now", "mr": "inform(name[A])"})
    with pytest.raises(UserError, match="viggo-train-0.*<END_SQL>"):
        data.encode(TASK, tokenizer, (record,), CONFIG, special_tokens=("<END_SQL>",))
    data.encode(TASK, tokenizer, (record,), CONFIG)


def test_a_write_that_breaks_off_leaves_nothing(tokenizer, tmp_path):
    def chunks():
        yield data.encode(TASK, tokenizer, tuple(RECORDS), CONFIG)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        data.write(tmp_path / "table", chunks(), {})
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_the_same_content_both_succeed(tokenizer, tmp_path):
    folder = tmp_path / "table"

    def chunks(other):
        if other:
            data.write(folder, chunks(other=False), {"split": "train"})
        yield data.encode(TASK, tokenizer, tuple(RECORDS), CONFIG)

    data.write(folder, chunks(other=True), {"split": "train"})
    assert [file.name for file in tmp_path.iterdir()] == ["table"]
    assert json.loads((folder / "manifest.json").read_text())["rows"] == len(RECORDS)
