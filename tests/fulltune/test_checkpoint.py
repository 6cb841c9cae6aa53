"""Property 6, in one process: a checkpoint exists whole or is never selected; damage is named."""

from __future__ import annotations

import json

import pytest

from fulltune import checkpoint, comm
from tasks.base import UserError

ALONE = comm.Workers()


def write_state(content):
    def write(folder):
        (folder / "state").mkdir()
        (folder / "state" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(content * 1000)
        (folder / "rng-0.pt").write_bytes(b"rng")

    return write


def save(root, step, *, valid_loss=None, keep_last=2):
    meta = {} if valid_loss is None else {"valid_loss": valid_loss}
    checkpoint.save(root, step, write_state(bytes([step])), meta=meta, peers=ALONE, keep_last=keep_last)


def latest(root):
    said = []
    found = checkpoint.latest(root, peers=ALONE, say=said.append)
    return (found.step if found else None), said


def test_nothing_saved_is_a_fresh_start(tmp_path):
    assert latest(tmp_path) == (None, [])


def test_the_newest_is_found_with_what_was_stored(tmp_path):
    save(tmp_path, 1, valid_loss=2.0)
    save(tmp_path, 2)
    found = checkpoint.latest(tmp_path, peers=ALONE, say=print)
    assert (found.step, found.meta) == (2, {})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: f.write_bytes(b"X" + f.read_bytes()[1:]), "differs from what was written"),
        (lambda f: f.write_bytes(f.read_bytes()[:-1]), "999 bytes, wanted 1000"),
        (lambda f: f.unlink(), "is missing"),
    ],
    ids=["flipped byte", "truncated", "missing"],
)
def test_damage_is_named_and_the_one_before_is_used(tmp_path, damage, words):
    save(tmp_path, 1)
    save(tmp_path, 2)
    damage(tmp_path / "step-00000002" / "state" / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    step, said = latest(tmp_path)
    assert step == 1
    assert len(said) == 1
    assert "step-00000002" in said[0]
    assert "zero_pp_rank_0" in said[0]
    assert words in said[0]


def test_a_checkpoint_without_manifest_is_passed_over(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "step-00000002" / "manifest.json").unlink()
    assert latest(tmp_path)[0] == 1


def test_a_missing_pointer_is_an_error_and_never_a_restart(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "pointer.json").unlink()
    with pytest.raises(UserError, match=r"no pointer\.json"):
        latest(tmp_path)


def test_nothing_but_damage_is_an_error_and_never_a_restart(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "step-00000001" / "rng-0.pt").unlink()
    with pytest.raises(UserError, match="no usable checkpoint"):
        latest(tmp_path)


@pytest.mark.parametrize("moment", ["writing", "hashing", "publishing", "pointing"])
def test_a_crash_at_any_moment_leaves_the_previous_checkpoint(tmp_path, monkeypatch, moment):
    save(tmp_path, 1)

    class Crash(BaseException):
        pass

    def crash(*_, **__):
        raise Crash

    write = write_state(b"2")
    if moment == "writing":

        def write(folder):
            write_state(b"2")(folder)
            raise Crash

    else:
        target = {"hashing": "_flush_and_hash", "publishing": "_publish", "pointing": "_point"}[moment]
        monkeypatch.setattr(checkpoint, target, crash)
    with pytest.raises(Crash):
        checkpoint.save(tmp_path, 2, write, meta={}, peers=ALONE, keep_last=2)
    monkeypatch.undo()
    assert latest(tmp_path)[0] == 1
    save(tmp_path, 2)  # the next attempt gets there
    assert latest(tmp_path) == (2, [])


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
    assert json.loads((tmp_path / "pointer.json").read_text())["step"] == 2


def test_verify_names_the_file(tmp_path):
    save(tmp_path, 1)
    assert checkpoint.verify(tmp_path / "step-00000001")["step"] == 1
    (tmp_path / "step-00000001" / "rng-0.pt").write_bytes(b"r")
    with pytest.raises(UserError, match=r"rng-0\.pt"):
        checkpoint.verify(tmp_path / "step-00000001")


@pytest.mark.parametrize(
    ("file", "rank"),
    [
        ("zero_pp_rank_3_mp_rank_00_optim_states.pt", 3),
        ("bf16_zero_pp_rank_12_mp_rank_00_optim_states.pt", 12),
        ("zero_pp_rank_1_mp_rank_00_model_states.pt", 1),
        ("mp_rank_00_model_states.pt", 0),
        ("rng-7.pt", 7),
        ("tokenizer.json", 0),
    ],
)
def test_every_file_has_one_owner(file, rank):
    assert checkpoint._owner(file) == rank
