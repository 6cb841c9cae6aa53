"""Saving beside the training: workers are threads here, and shards a few bytes."""

from __future__ import annotations

import errno
import importlib.util
import threading
from pathlib import Path

import pytest

from fulltune import checkpoint, comm, commit
from fulltune.saver import Saver
from tasks.base import UserError

# tests/ is not a package: the helpers beside this file are loaded by path
_SPEC = importlib.util.spec_from_file_location("workers", Path(__file__).with_name("workers.py"))
workers = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(workers)
Shard, ready, together, BOUND_S = workers.Shard, workers.ready, workers.together, workers.BOUND_S


def saver(root, peers=None, *, beside=True, said=None):
    return Saver(root, peers or comm.Workers(), 2, beside, said.append if said is not None else print)


def save(one, step, shard, *, last=False):
    one.save(step, lambda _: shard, meta={}, last=last)


def newest(root):
    found = checkpoint.latest(root, peers=comm.Workers(), say=print)
    return found.step if found else None


def test_training_goes_on_while_a_save_is_under_way(tmp_path):
    one, shard = saver(tmp_path), Shard(0)
    save(one, 1, shard)
    assert newest(tmp_path) is None
    assert not one.failed()
    shard.go.set()
    one.wait()
    assert newest(tmp_path) == 1


def test_a_second_save_waits_for_the_first(tmp_path):
    one, slow = saver(tmp_path), Shard(0)
    save(one, 1, slow)
    second = threading.Thread(target=save, args=(one, 2, ready()))
    second.start()
    second.join(0.2)
    assert second.is_alive(), "two saves at a time"
    slow.go.set()
    second.join(BOUND_S)
    assert newest(tmp_path) >= 1
    one.wait()
    assert checkpoint.published(tmp_path) == [1, 2]


def test_without_asynchronous_saving_the_checkpoint_is_there_on_return(tmp_path):
    save(saver(tmp_path, beside=False), 1, ready())
    assert newest(tmp_path) == 1


def test_workers_publish_together(tmp_path):
    def work(member):
        one = saver(tmp_path, member)
        for step in (1, 2, 3):
            save(one, step, ready(member.rank, content=bytes([step])))
        one.wait()

    assert together(3, work) == [None] * 3
    assert checkpoint.published(tmp_path) == [2, 3]
    files = checkpoint.verify(tmp_path / checkpoint.name(3))["files"]
    assert sorted(files) == ["shard-0.pt", "shard-1.pt", "shard-2.pt"]


def test_an_error_on_one_worker_ends_the_run_on_all_and_leaves_the_former_checkpoint(tmp_path):
    def work(member):
        one = saver(tmp_path, member)
        save(one, 1, ready(member.rank))
        save(one, 2, ready(member.rank, error=ValueError("broken pipe") if member.rank == 1 else None))
        if member.rank == 1:
            for _ in range(1000):
                if one.failed():
                    break
                threading.Event().wait(0.01)
            assert one.failed(), "the loop asks at every step"
        one.wait()

    for error in together(2, work):
        assert isinstance(error, RuntimeError)
        assert str(error) == "worker 1 could not save step 2: ValueError: broken pipe"
    assert newest(tmp_path) == 1
    assert not list(tmp_path.glob(".stage-*")), "the space must come back"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_runs_full_is_a_user_error_and_costs_nothing(tmp_path, code):
    one = saver(tmp_path)
    save(one, 1, ready())
    save(one, 2, ready(error=OSError(code, "full")))
    with pytest.raises(UserError, match="no space left"):
        one.wait()
    assert newest(tmp_path) == 1
    assert not list(tmp_path.glob(".stage-*"))


def test_without_room_the_training_goes_on(tmp_path, monkeypatch):
    said = []
    one = saver(tmp_path, said=said)
    save(one, 1, ready())
    monkeypatch.setattr(commit, "free_bytes", lambda _: 10**6)
    save(one, 2, ready())
    one.wait()
    assert newest(tmp_path) == 1
    assert len(said) == 1
    for words in ("not saved", "step 2", "training goes on"):
        assert words in said[0]
    monkeypatch.undo()
    save(one, 3, ready())
    one.wait()
    assert newest(tmp_path) == 3


def test_without_room_for_the_last_checkpoint_the_user_is_told(tmp_path, monkeypatch):
    one = saver(tmp_path)
    save(one, 1, ready())
    one.wait()
    monkeypatch.setattr(commit, "free_bytes", lambda _: 10**6)
    with pytest.raises(UserError, match=r"takes 50\.00 GB"):
        save(one, 2, ready(bytes=50 * 10**9), last=True)
    assert newest(tmp_path) == 1
    assert not list(tmp_path.glob(".stage-*"))


def test_room_is_counted_over_all_workers_and_the_last_chance_is_agreed(tmp_path, monkeypatch):
    monkeypatch.setattr(commit, "free_bytes", lambda _: 10 * 10**6)

    def work(member):
        save(saver(tmp_path, member), 1, ready(member.rank, bytes=6 * 10**6), last=member.rank == 1)

    for error in together(2, work):
        assert isinstance(error, UserError)
        assert "0.01 GB free" in str(error)


def test_a_failed_training_lets_the_save_under_way_end(tmp_path):
    one, shard = saver(tmp_path), Shard(0)
    save(one, 1, shard)
    threading.Timer(0.1, shard.go.set).start()
    one.settle()
    assert newest(tmp_path) == 1
