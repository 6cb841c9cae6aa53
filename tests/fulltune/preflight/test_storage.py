"""The storage probe writes for real; what it cannot do is a no-go with the reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fulltune.preflight import storage

MIB = 2**20


def test_a_probe_measures_and_leaves_nothing(tmp_path):
    with storage.marked(tmp_path) as mark:
        found = storage.probe(tmp_path, mark, 1, 3 * MIB + 5)
        assert found.error is None
        assert found.sees_driver
        assert found.bytes == 3 * MIB + 5
        assert min(found.write_seconds, found.read_seconds) > 0
        assert found.free > 0
        assert not list((tmp_path / storage.MARK).glob(f"{mark}-*"))
    assert not list(tmp_path.iterdir())


def test_a_path_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    run = tmp_path / "file" / "run"
    with pytest.raises(OSError, match="Not a directory") as raised, storage.marked(run):
        pass
    check = storage.check_writable(raised.value, run)
    assert (check.ok, check.name) == (False, "storage")
    assert str(run) in check.got
    assert "ray.storage_path" in check.fix
    assert "Not a directory" in storage.probe(run, "mark", 0, MIB).error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
def test_a_disk_that_fills_up_under_a_worker_is_named(tmp_path):
    """Free space is not all: a quota ends a write that `df` would have allowed."""
    with storage.marked(tmp_path) as mark:
        (tmp_path / storage.MARK / f"{mark}-0").symlink_to("/dev/full")
        probes = [storage.probe(tmp_path, mark, 0, MIB), storage.probe(tmp_path, mark, 1, MIB)]
    check = storage.check_workers(probes, MIB)[0]
    assert not check.ok
    assert "No space left on device" in check.got


PROBES = [
    storage.Probe(rank, None, True, 100 * MIB, write_seconds=seconds, read_seconds=0.5, free=10**12)
    for rank, seconds in enumerate((1.0, 2.0))
]


def test_workers_that_write_at_once_share_the_rate_of_the_slowest():
    (check,) = storage.check_workers(PROBES, 1000 * MIB)
    assert check.ok
    assert "2 at once write 104.9 MB/s and read 419.4 MB/s" in check.got
    assert "takes 10.0 s" in check.got


def test_a_checkpoint_that_takes_too_long_is_a_no_go():
    (check,) = storage.check_workers(PROBES, 100_000 * MIB)
    assert not check.ok
    assert "within 10 minutes" in check.wanted


def test_workers_on_another_folder_or_without_one_are_named():
    (blind,) = storage.check_workers([PROBES[0], replace(PROBES[1], sees_driver=False)], MIB)
    assert not blind.ok
    assert blind.got.endswith("on worker 1")
    (failed,) = storage.check_workers([PROBES[0], storage.Probe(1, error="Read-only file system (/x)")], MIB)
    assert not failed.ok
    assert failed.got == "worker 1: Read-only file system (/x)"


def test_room_counts_what_an_earlier_start_left(tmp_path):
    assert storage.kept(tmp_path) == 0
    shard = tmp_path / "checkpoints" / "step-1" / "state" / "a.pt"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(b"x" * 1000)
    assert storage.kept(tmp_path) == 1000
    assert storage.check_space(10, 10, "things", where="here").ok
    full = storage.check_space(9, 10, "things", where="here")
    assert (full.ok, full.name) == (False, "free space")


def test_a_prepared_model_is_known_by_its_size(tmp_path):
    assert not storage.has_model(tmp_path / "cache", 10 * MIB)
    weights = tmp_path / "cache" / "model-abc" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(bytes(10 * MIB + 1000))
    assert storage.has_model(tmp_path / "cache", 10 * MIB)
    assert not storage.has_model(tmp_path / "cache", 20 * MIB)
