"""A journal is safe once written, read once its process has ended, and not begun for a run that was followed."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from evaluation import answer_journal
from tasks.base import UserError

ROWS = [{"id": "a", "completion": "x\u2028y \ud800"}, {"id": "b", "completion": ""}]


@pytest.fixture
def out(tmp_path):
    path = tmp_path / "p.jsonl"
    answer_journal.begin(path)
    return path


def test_what_was_written_is_taken_and_a_torn_line_is_not(out):
    at = answer_journal.place(out)
    journal = answer_journal.open_here(at)
    journal.write(ROWS)
    os.write(journal.file, b'{"id": "c", "compl')
    journal.close()
    assert answer_journal.take(at.path) == ROWS
    assert answer_journal.take_all(out) == ROWS


def test_the_journal_of_a_living_process_is_not_taken(out):
    at = answer_journal.place(out)
    journal = answer_journal.open_here(at)
    journal.write(ROWS)
    with pytest.raises(UserError, match="another run|other run"):
        answer_journal.take(at.path, patience_s=0.2)
    journal.close()
    assert answer_journal.take(at.path, patience_s=0) == ROWS


def test_a_process_killed_with_sigkill_leaves_its_rows_and_its_lock(out):
    at = answer_journal.place(out)
    program = (
        "import sys, time; from pathlib import Path; from evaluation import answer_journal as j\n"
        f"at = j.Place(Path({str(at.folder)!r}), {at.token!r}, {at.name!r})\n"
        "journal = j.open_here(at); journal.write([{'id': 'a'}]); print('written', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"written\n"
    process.kill()
    began = time.monotonic()
    assert answer_journal.take(at.path, patience_s=20) == [{"id": "a"}]
    assert time.monotonic() - began < 10
    process.wait(timeout=10)


def test_a_process_whose_run_was_followed_begins_none(out):
    late = answer_journal.place(out)
    answer_journal.begin(out)
    with pytest.raises(RuntimeError, match="another run"):
        answer_journal.open_here(late)
    assert answer_journal.open_here(answer_journal.place(out)) is not None


def test_without_the_runs_disk_there_is_no_journal(out):
    at = answer_journal.place(out)
    answer_journal.clear(out)
    assert answer_journal.open_here(at) is None
    assert not at.folder.exists()
    assert answer_journal.take(at.path) == []
