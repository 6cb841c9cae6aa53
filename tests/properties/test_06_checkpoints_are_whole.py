"""Property 6: a checkpoint exists whole or is never selected.

A run whose state is a hash chain saves through the real protocol on a disk that fails at every single call, before it,
after it, and halfway through a write. After each death the newest whole checkpoint is loaded, nothing torn is, and the
run goes on to the same states as one that was never disturbed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import random
import shutil
import threading
from pathlib import Path

import pytest

from fulltune import checkpoint, comm, commit
from tasks.base import UserError

# tests/ is not a package: the helper beside this file is loaded by path
_SPEC = importlib.util.spec_from_file_location("faults", Path(__file__).with_name("faults.py"))
faults = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(faults)

ALONE = comm.Workers()
KEEP = 2


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """The failing disk itself says what a missing fsync loses; the real one would only take time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def state(step):
    """The state after `step`: a function of nothing but the number of updates."""
    value = b"start"
    for _ in range(step):
        value = hashlib.sha256(value).digest()
    return value


def shard(step, rank):
    return (state(step) + bytes([rank])) * 20


def save(root, step, size, *, valid_loss=None):
    """What every worker of a run does, one after the other."""
    stage = commit.open_stage(root, checkpoint.name(step))
    (stage / "state").mkdir()
    for rank in range(size):
        files = [stage / "state" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt", stage / f"rng-{rank}.pt"]
        for file in files:
            with file.open("wb") as handle:
                handle.write(shard(step, rank))
        commit.write_part(stage, rank, files)
    commit.publish(
        root,
        stage,
        step=step,
        size=size,
        meta={} if valid_loss is None else {"valid_loss": valid_loss},
        keep_last=KEEP,
        patience_s=0,
        abandoned=threading.Event(),
    )


def load(root):
    """Step of the newest whole checkpoint (0: none), and what was said; its content is what was saved."""
    said = []
    found = checkpoint.latest(root, peers=ALONE, say=said.append)
    if found is None:
        return 0, said
    for rank in range(found.workers):
        assert (found.path / f"rng-{rank}.pt").read_bytes() == shard(found.step, rank)
        assert (found.path / f"state/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").read_bytes() == shard(
            found.step, rank
        )
    return found.step, said


def damaged(root, step):
    (root / checkpoint.name(step) / "rng-0.pt").write_bytes(b"")


def first(root, size):
    """Nothing was saved yet."""


def later(root, size):
    """Older checkpoints will go, and the best one stays."""
    for step, loss in ((1, 1.0), (2, 2.0), (3, 3.0)):
        save(root, step, size, valid_loss=loss)


def again(root, size):
    """The newest one is damaged and its step is saved a second time."""
    for step in (1, 2, 3, 4):
        save(root, step, size)
    damaged(root, 4)


SCENES = {"first": (first, 0, 1), "later": (later, 3, 4), "again": (again, 3, 4)}  # set-up, newest whole, saved next


def crash_points():
    """Every call of the save, in every way, for each scene and one or two workers."""
    return [(scene, size, how) for scene in SCENES for size in (1, 2) for how in faults.HOW]


@pytest.mark.parametrize(("scene", "size", "how"), crash_points())
def test_a_death_at_any_call_of_a_save_leaves_a_whole_checkpoint(tmp_path, scene, size, how):
    prepare, before, step = SCENES[scene]
    origin = tmp_path / "origin"
    origin.mkdir()
    prepare(origin, size)
    shutil.copytree(origin, tmp_path / "whole")
    disk = faults.Disk()
    with disk.watched():
        save(tmp_path / "whole", step, size, valid_loss=9.0)
    assert load(tmp_path / "whole") == (step, [])
    assert len(disk.calls) >= 15, "the protocol must be seen by the failing disk"
    outcomes = []
    for at in range(len(disk.calls)):
        root = tmp_path / f"at-{at}"
        shutil.copytree(origin, root)
        with faults.Disk(at, how, seed=at).watched():
            save(root, step, size, valid_loss=9.0)
        found, said = load(root)
        assert found in (before, step), (at, disk.calls[at])
        assert said == [] or (scene == "again" and found == before), (at, disk.calls[at], said)
        outcomes.append(found)
        save(root, found + 1, size)  # the next attempt gets on, whatever was left behind
        assert load(root) == (found + 1, [])
        assert not list(root.glob(".stage-*")), at
    assert outcomes == sorted(outcomes), "once it is there it stays"
    assert {before, step} == set(outcomes)


def test_these_are_at_least_240_points(tmp_path):
    total = 0
    for scene, size, _ in crash_points():
        root = tmp_path / f"{scene}-{size}-{total}"
        root.mkdir()
        SCENES[scene][0](root, size)
        disk = faults.Disk()
        with disk.watched():
            save(root, SCENES[scene][2], size)
        total += len(disk.calls)
    assert total >= 240, total


def test_the_failing_disk_notices_a_missing_fsync(tmp_path, monkeypatch):
    def without_fsync(file):
        return {"bytes": file.stat().st_size, "sha256": checkpoint.sha256(file)}

    monkeypatch.setattr(commit, "_flush_and_hash", without_fsync)
    later(tmp_path / "origin", 1)
    lost = 0
    for at in range(60):
        root = tmp_path / f"at-{at}"
        shutil.copytree(tmp_path / "origin", root)
        with faults.Disk(at, "after", seed=at).watched():
            save(root, 4, 1)
        lost += bool(load(root)[1])
    assert lost > 5


@pytest.mark.parametrize("seed", range(4))
def test_a_run_that_dies_again_and_again_goes_through_the_same_states(tmp_path, seed):
    draw = random.Random(seed)
    deaths, attempts = 0, 0
    while (reached := load(tmp_path)[0]) < 12:
        attempts += 1
        assert attempts < 200
        for step in range(reached + 1, 13):
            disk = faults.Disk(draw.randrange(80), draw.choice(faults.HOW), seed=attempts)
            with disk.watched():
                save(tmp_path, step, 2, valid_loss=draw.random())
                continue
            deaths += 1
            break
        assert load(tmp_path)[0] >= reached, "what was there is still there"
    assert deaths >= 5
    assert load(tmp_path) == (12, [])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: f.write_bytes(b"X" + f.read_bytes()[1:]), "differs from what was written"),
        (lambda f: f.write_bytes(f.read_bytes()[:-1]), "659 bytes, wanted 660"),
        (lambda f: f.unlink(), "is missing"),
    ],
    ids=["flipped byte", "truncated", "missing"],
)
def test_damage_is_named_and_the_one_before_is_used(tmp_path, damage, words):
    save(tmp_path, 1, 2)
    save(tmp_path, 2, 2)
    damage(tmp_path / "step-00000002" / "state" / "zero_pp_rank_1_mp_rank_00_optim_states.pt")
    step, said = load(tmp_path)
    assert step == 1
    assert len(said) == 1
    assert "step-00000002" in said[0]
    assert "zero_pp_rank_1_mp_rank_00_optim_states.pt" in said[0]
    assert words in said[0]


def test_a_missing_pointer_is_an_error_and_never_a_restart(tmp_path):
    save(tmp_path, 1, 1)
    (tmp_path / "pointer.json").unlink()
    with pytest.raises(UserError, match=r"no pointer\.json"):
        load(tmp_path)


def test_nothing_but_damage_is_an_error_and_never_a_restart(tmp_path):
    save(tmp_path, 1, 1)
    damaged(tmp_path, 1)
    with pytest.raises(UserError, match="no usable checkpoint"):
        load(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", '{"step": "x"}', "[]", "\x00"])
def test_a_pointer_that_says_nothing_is_an_error_and_never_a_restart(tmp_path, content):
    save(tmp_path, 1, 1)
    (tmp_path / "pointer.json").write_text(content)
    with pytest.raises(UserError, match=r"pointer\.json holds"):
        load(tmp_path)


def test_a_torn_manifest_is_passed_over(tmp_path):
    save(tmp_path, 1, 1)
    save(tmp_path, 2, 1)
    manifest = tmp_path / "step-00000002" / "manifest.json"
    manifest.write_text(manifest.read_text()[:-20])
    step, said = load(tmp_path)
    assert step == 1
    assert "manifest.json" in said[0]
    assert checkpoint.newest(tmp_path).step == 1


def test_the_workers_of_a_save_are_in_its_manifest(tmp_path):
    save(tmp_path, 1, 2)
    manifest = json.loads((tmp_path / "step-00000001" / "manifest.json").read_text())
    assert manifest["workers"] == 2
    assert len(manifest["files"]) == 4
    assert not list((tmp_path / "step-00000001").glob(".part*"))
