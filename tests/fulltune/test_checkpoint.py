"""Finding and verifying checkpoints, in one process. (Property 6 kills the protocol at every call.)"""

from __future__ import annotations

import errno
import threading

import pytest

from fulltune import checkpoint, comm, commit
from tasks.base import UserError

ALONE = comm.Workers()


def save(root, step, *, valid_loss=None, keep_last=2):
    stage = commit.open_stage(root, str(step))
    files = [stage / "shard.pt", stage / "rng-0.pt"]
    for file in files:
        file.write_bytes(bytes([step]) * 1000)
    commit.write_part(stage, 0, files)
    meta = {} if valid_loss is None else {"valid_loss": valid_loss}
    never = threading.Event()
    commit.publish(root, stage, step=step, size=1, meta=meta, keep_last=keep_last, patience_s=0, abandoned=never)


def latest(root):
    said = []
    found = checkpoint.latest(root, peers=ALONE, say=said.append)
    return (found.step if found else None), said


def test_nothing_saved_is_a_fresh_start(tmp_path):
    assert latest(tmp_path) == (None, [])
    assert checkpoint.newest(tmp_path) is None


def test_the_newest_is_found_with_what_was_stored(tmp_path):
    save(tmp_path, 1, valid_loss=2.0)
    save(tmp_path, 2)
    found = checkpoint.latest(tmp_path, peers=ALONE, say=print)
    assert (found.step, found.workers, found.meta) == (2, 1, {})
    assert checkpoint.newest(tmp_path) == found


def test_old_ones_go_and_the_best_stays(tmp_path):
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5)):
        save(tmp_path, step, valid_loss=loss, keep_last=1)
    assert checkpoint.published(tmp_path) == [2, 4]
    assert checkpoint.best(tmp_path) == tmp_path / "step-00000002"


def test_a_future_that_was_undone_is_forgotten(tmp_path):
    for step, loss in ((1, 3.0), (2, 2.0), (3, 1.0)):
        save(tmp_path, step, valid_loss=loss, keep_last=3)
    (tmp_path / "step-00000003" / "rng-0.pt").unlink()
    (tmp_path / "step-00000002" / "rng-0.pt").unlink()
    assert latest(tmp_path)[0] == 1
    save(tmp_path, 2, valid_loss=2.5, keep_last=3)
    assert checkpoint.published(tmp_path) == [1, 2]
    assert checkpoint.best(tmp_path) == tmp_path / "step-00000002"
    assert checkpoint.pointer(tmp_path)["step"] == 2


def test_a_universal_form_goes_with_its_checkpoint(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
        (tmp_path / f"universal-{checkpoint.name(step)}").mkdir()
    save(tmp_path, 3)
    assert [path.name for path in tmp_path.glob("universal-*")] == ["universal-step-00000002"]


def test_verify_names_the_file(tmp_path):
    save(tmp_path, 1)
    assert checkpoint.verify(tmp_path / "step-00000001")["step"] == 1
    (tmp_path / "step-00000001" / "rng-0.pt").write_bytes(b"r")
    with pytest.raises(UserError, match=r"rng-0\.pt"):
        checkpoint.verify(tmp_path / "step-00000001")


def test_a_worker_that_never_writes_its_part_is_named(tmp_path):
    stage = commit.open_stage(tmp_path, "1")
    commit.write_part(stage, 0, [])
    with pytest.raises(TimeoutError, match=r"part-00001\.json of 2 workers"):
        commit.publish(
            tmp_path, stage, step=1, size=2, meta={}, keep_last=1, patience_s=0.1, abandoned=threading.Event()
        )
    assert latest(tmp_path) == (None, [])


def test_a_file_that_cannot_be_read_is_named_and_the_checkpoint_before_is_used(tmp_path, monkeypatch):
    save(tmp_path, 1)
    save(tmp_path, 2)
    original = checkpoint.sha256

    def failing(file):
        if file.parent.name == "step-00000002" and file.name == "shard.pt":
            raise OSError(errno.EIO, "Input/output error")
        return original(file)

    monkeypatch.setattr(checkpoint, "sha256", failing)
    step, said = latest(tmp_path)
    assert step == 1
    assert "step-00000002 is damaged" in said[0]
    assert "shard.pt cannot be read: Input/output error" in said[0]
