"""Checkpoints on an object store. The stand-in is pyarrow's local file system without any rename."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from pyarrow import fs

from fulltune import checkpoint, comm, commit
from fulltune.mirror import Mirror, connect
from fulltune.saver import Saver
from tasks.base import UserError

# tests/ is not a package: the helpers beside this file are loaded by path
_SPEC = importlib.util.spec_from_file_location("workers", Path(__file__).with_name("workers.py"))
helpers = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(helpers)

ALONE = comm.Workers()


class Bucket(fs.LocalFileSystem):
    """Objects can be written, read and deleted; nothing can be renamed."""

    def move(self, *_):
        raise AssertionError("object stores have no rename")


@pytest.fixture
def mirror(tmp_path):
    return Mirror(Bucket(), str(tmp_path / "bucket" / "run"))


def save(root, mirror, *steps, size=2, keep_last=2, say=print):
    """A run's saves with that many workers; what each worker raised."""

    def work(member):
        one = Saver(root, member, keep_last, True, say, mirror)
        for step in steps:
            shard = helpers.ready(member.rank, content=f"step {step} worker {member.rank}".encode())
            one.save(step, lambda _, shard=shard: shard, meta={}, last=False)
        one.wait()

    return helpers.together(size, work)


def restore(root, mirror, size=2):
    said = []
    results = helpers.together(size, lambda member: mirror.restore(root, member, said.append))
    return results, said


def newest(root):
    found = checkpoint.latest(root, peers=ALONE, say=print)
    return found.step if found else None


def stored(mirror):
    return sorted(str(path.relative_to(mirror.base)) for path in Path(mirror.base).rglob("*") if path.is_file())


def test_every_checkpoint_is_there_with_its_manifest(tmp_path, mirror):
    root = tmp_path / "run"
    assert save(root, mirror, 1, 2, 3) == [None, None]
    expected = ["pointer.json"]
    for step in (2, 3):
        expected += [f"step-{step:08d}/{name}" for name in ("manifest.json", "shard-0.pt", "shard-1.pt")]
    assert stored(mirror) == sorted(expected), "what the run folder dropped goes from the store as well"


@pytest.mark.parametrize("size", [1, 3])
def test_a_lost_run_folder_gets_its_checkpoint_back(tmp_path, mirror, size):
    root = tmp_path / "run"
    save(root, mirror, 1, 2)
    shutil.rmtree(root)
    results, said = restore(root, mirror, size)
    assert results == [None] * size
    assert "bringing step-00000002 back" in said[0]
    assert newest(root) == 2
    assert (root / "step-00000002" / "shard-1.pt").read_bytes() == b"step 2 worker 1"


def test_workers_download_their_share_only(tmp_path, mirror, monkeypatch):
    root = tmp_path / "run"
    save(root, mirror, 1)
    shutil.rmtree(root)
    fetched = []
    original = Mirror._fetch
    monkeypatch.setattr(Mirror, "_fetch", lambda self, path, file: (fetched.append(path), original(self, path, file)))
    restore(root, mirror)
    assert sorted(Path(path).name for path in fetched) == ["shard-0.pt", "shard-1.pt"]


def test_a_run_folder_with_checkpoints_is_left_alone(tmp_path, mirror):
    root = tmp_path / "run"
    save(root, mirror, 1)
    assert restore(root, mirror) == ([None, None], [])
    assert restore(tmp_path / "new", Mirror(Bucket(), str(tmp_path / "empty"))) == ([None, None], [])
    assert newest(tmp_path / "new") is None


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda file: file.write_bytes(b"X" + file.read_bytes()[1:]), "differs from what was written"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "bytes, wanted"),
        (lambda file: file.unlink(), "is missing"),
    ],
    ids=["flipped byte", "truncated", "missing"],
)
def test_damage_on_the_store_is_named_and_the_one_before_is_used(tmp_path, mirror, damage, words):
    root = tmp_path / "run"
    save(root, mirror, 1, 2)
    shutil.rmtree(root)
    damage(Path(mirror.base) / "step-00000002" / "shard-1.pt")
    results, said = restore(root, mirror)
    assert results == [None, None]
    assert any("step-00000002 is damaged" in line and "shard-1.pt" in line and words in line for line in said)
    assert newest(root) == 1


def test_an_upload_that_was_cut_off_before_the_manifest_does_not_exist(tmp_path, mirror, monkeypatch):
    root = tmp_path / "run"
    save(root, mirror, 1)
    with monkeypatch.context() as patched:
        patched.setattr(Mirror, "publish", lambda *_: None)
        save(root, mirror, 2)
    shutil.rmtree(root)
    restore(root, mirror)
    assert newest(root) == 1
    save(root, mirror, 2)
    assert "step-00000002/manifest.json" in stored(mirror)


@pytest.mark.parametrize("refusing", ["shard-0.pt", "shard-1.pt", "manifest.json"])
def test_a_store_that_refuses_costs_the_copy_and_not_the_checkpoint(tmp_path, mirror, monkeypatch, refusing):
    root, said = tmp_path / "run", []
    save(root, mirror, 1)
    original = Mirror._upload

    def refuse(self, file, path):
        if path.endswith(refusing):
            raise OSError("503 slow down")
        original(self, file, path)

    with monkeypatch.context() as patched:
        patched.setattr(Mirror, "_upload", refuse)
        assert save(root, mirror, 2, say=said.append) == [None, None]
    assert any("step-00000002 was not uploaded" in line and "503 slow down" in line for line in said)
    assert newest(root) == 2
    assert "step-00000002/manifest.json" not in stored(mirror), "half a copy is none"
    assert save(root, mirror, 3) == [None, None]
    assert {"step-00000003/manifest.json", "pointer.json"} <= set(stored(mirror))
    assert not any("step-00000001" in name for name in stored(mirror))


def test_a_store_that_is_away_when_a_save_begins_is_told_of(tmp_path, mirror, monkeypatch):
    root, said = tmp_path / "run", []

    def away(self, folder):
        raise OSError("no route to host")

    monkeypatch.setattr(Mirror, "_delete", away)
    assert save(root, mirror, 1, say=said.append) == [None, None]
    assert [line for line in said if "no route to host" in line]
    assert newest(root) == 1
    assert stored(mirror) == []


@pytest.mark.parametrize("size", [1, 2])
def test_a_missing_pointer_on_the_store_is_an_error_on_every_worker_and_never_a_restart(tmp_path, mirror, size):
    root = tmp_path / "run"
    save(root, mirror, 1)
    shutil.rmtree(root)
    (Path(mirror.base) / "pointer.json").unlink()
    errors, _ = restore(root, mirror, size)
    assert all(isinstance(error, UserError) and "no pointer.json" in str(error) for error in errors)
    assert len(errors) == size


def test_a_restore_that_was_cut_off_is_never_a_start_and_is_made_again(tmp_path, mirror, monkeypatch):
    root = tmp_path / "run"
    save(root, mirror, 1, 2)
    shutil.rmtree(root)

    def die(*_):
        raise KeyboardInterrupt

    for cut in ("_rename", "write_atomically"):
        with monkeypatch.context() as patched:
            patched.setattr(commit, cut, die)
            with pytest.raises(KeyboardInterrupt):
                mirror.restore(root, ALONE, print)
        assert checkpoint.published(root) == []
    (root / "pointer.json").write_text(json.dumps({"step": 2}))
    with pytest.raises(UserError, match="no usable checkpoint"):
        newest(root)
    mirror.restore(root, ALONE, print)
    assert newest(root) == 2


def test_the_pointer_names_no_best_that_is_not_there(tmp_path, mirror):
    root = tmp_path / "run"
    save(root, mirror, 1, 2)
    Path(mirror.base, "pointer.json").write_text(json.dumps({"step": 2, "best": 1, "best_valid_loss": 0.5}))
    shutil.rmtree(root)
    restore(root, mirror)
    assert checkpoint.pointer(root) == {"step": 2}


def test_a_uri_that_nothing_opens_is_a_user_error():
    with pytest.raises(UserError, match=r"checkpoint\.upload_to: nowhere://x"):
        connect("nowhere://x", "run")


def test_a_file_uri_is_opened(tmp_path):
    root = tmp_path / "run"
    save(root, connect(f"file://{tmp_path}/bucket", "run"), 1, size=1)
    assert (tmp_path / "bucket" / "run" / "step-00000001" / "manifest.json").exists()
