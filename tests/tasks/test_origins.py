"""Sources as others need them: row by row, as a hash of what they hold, and under a name that any process knows."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import replace

import pytest

import tasks
from tasks.base import UserError
from tasks.origins import fingerprint, locate
from tasks.sources import iterate, load

VIGGO = tasks.get("viggo")
ROWS = [{"ref": f"sentence {i}", "mr": f"inform(name[{i}])"} for i in range(6)]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize("limit", [None, 0, 2, 6, 9])
def test_one_by_one_gives_what_loading_gives(file, limit):
    assert list(iterate(VIGGO, "train", str(file), limit=limit)) == load(VIGGO, "train", str(file), limit=limit)
    assert list(iterate(VIGGO, "train", "bundled", limit=limit)) == load(VIGGO, "train", "bundled", limit=limit)


def test_a_column_map_applies_row_by_row(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("sentence,mr\nhello,inform(name[A])\n")
    (record,) = iterate(VIGGO, "train", str(path), columns={"sentence": "ref"})
    assert record["ref"] == "hello"


def test_rows_are_read_as_they_are_asked_for(file):
    file.write_text(file.read_text() + "not json\n")
    assert len(list(itertools.islice(iterate(VIGGO, "train", str(file)), 6))) == 6
    with pytest.raises(UserError, match="invalid JSON"):
        list(iterate(VIGGO, "train", str(file)))


def test_what_the_task_refuses_is_left_to_the_caller(file):
    refusing = replace(VIGGO, accepts=lambda record: False)
    assert len(list(iterate(refusing, "train", str(file)))) == 6
    assert load(refusing, "train", str(file)) == []


def test_a_carved_split_keeps_the_numbers_of_the_rows(tmp_path):
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    carving = replace(VIGGO, carve=lambda fields: "test" if fields["ref"].endswith(("1", "4")) else "train")
    ids = [record.id for record in iterate(carving, "test", str(tmp_path), limit=2)]
    assert ids == ["viggo-test-1", "viggo-test-4"]


def test_the_fingerprint_is_of_the_bytes_wherever_they_lie(file, tmp_path):
    first = fingerprint(VIGGO, "train", str(file))
    other = tmp_path / "elsewhere.jsonl"
    other.write_bytes(file.read_bytes())
    assert fingerprint(VIGGO, "train", str(other)) == first
    other.write_text(file.read_text().replace("sentence 5", "sentence 6"))
    assert fingerprint(VIGGO, "train", str(other)) != first


def test_without_the_contents_the_fingerprint_takes_name_size_and_time(file):
    first = fingerprint(VIGGO, "train", str(file), contents=False)
    assert fingerprint(VIGGO, "train", str(file), contents=False) == first
    os.utime(file, ns=(1, 1))
    assert fingerprint(VIGGO, "train", str(file), contents=False) != first


def test_rows_that_are_made_are_hashed_themselves():
    first = fingerprint(VIGGO, "train", "bundled")
    assert fingerprint(VIGGO, "train", "bundled") == first
    assert fingerprint(VIGGO, "valid", "bundled") != first
    assert fingerprint(replace(VIGGO, generate=lambda split: ROWS), "train", "bundled") != first


def test_a_folder_is_the_hash_of_its_files_of_the_split(tmp_path, file):
    alone = fingerprint(VIGGO, "train", str(tmp_path))
    (tmp_path / "test.jsonl").write_text(file.read_text())
    assert fingerprint(VIGGO, "train", str(tmp_path)) == alone
    (tmp_path / "train-1.jsonl").write_text(file.read_text())
    assert fingerprint(VIGGO, "train", str(tmp_path)) == alone
    file.write_text(file.read_text() + json.dumps(ROWS[0]) + "\n")
    assert fingerprint(VIGGO, "train", str(tmp_path)) != alone


def test_a_source_is_named_for_other_processes(tmp_path, monkeypatch):
    monkeypatch.delenv("FULLTUNE_DATA", raising=False)
    assert locate(VIGGO, "bundled") == "bundled"
    assert locate(VIGGO, "hub") == "hub"
    monkeypatch.chdir(tmp_path)
    assert locate(VIGGO, "rows.jsonl") == str(tmp_path / "rows.jsonl")
    monkeypatch.setenv("FULLTUNE_DATA", str(tmp_path))
    assert locate(VIGGO, "hub") == str(tmp_path / "viggo")
