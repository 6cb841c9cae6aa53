"""Whether workers are of a kind, and what a node leaves them."""

from __future__ import annotations

import os

import pytest

from fulltune.preflight import facts

VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "fulltune": "0.1.0+aa"}


def test_this_process_knows_itself():
    found = facts.collect(3, use_gpu=False)
    assert (found.rank, found.device_memory, found.driver) == (3, None, None)
    assert set(found.versions) == {"python", "torch", "ray", "deepspeed", "transformers", "fulltune"}
    assert found.host_available <= found.host_memory <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 2**20 < found.resident < found.host_memory


def test_versions_that_differ_are_named_with_their_workers(worker):
    assert facts.check_versions([worker(), worker(1)], VERSIONS).ok
    other = worker(1, versions=VERSIONS | {"torch": "2.12.1"})
    check = facts.check_versions([worker(), other, worker(2)], VERSIONS)
    assert not check.ok
    assert check.got == "torch 2.13.0 on the driver, worker 0, worker 2; 2.12.1 on worker 1"


def test_a_stale_copy_of_the_code_is_another_version(worker):
    stale = worker(1, versions=VERSIONS | {"fulltune": "0.1.0+bb"})
    assert "0.1.0+bb on worker 1" in facts.check_versions([worker(), stale], VERSIONS).got


def test_cuda_is_compared_among_workers_although_the_driver_has_none(worker):
    pair = [worker(rank, versions=VERSIONS | {"nccl": nccl}) for rank, nccl in enumerate(("2.27", "2.26"))]
    assert "nccl 2.27 on worker 0; 2.26 on worker 1" in facts.check_versions(pair, VERSIONS).got
    assert facts.check_versions(pair[:1], VERSIONS).ok


def test_gpus_of_two_types_are_a_no_go_and_processors_of_two_types_are_told(worker):
    mixed = facts.check_devices([worker(), worker(1, device="NVIDIA L4")])
    assert not mixed.ok
    assert "NVIDIA L4 (23.6 GB, driver 570.86) on worker 1 on node-0" in mixed.got
    assert not facts.check_devices([worker(), worker(1, driver="550.1")]).ok
    cpus = [worker(rank, device=name, device_memory=None, driver=None) for rank, name in enumerate(("Xeon", "EPYC"))]
    told = facts.check_devices(cpus)
    assert told.ok
    assert "EPYC on worker 1" in told.got


@pytest.mark.parametrize(("shm", "use_gpu", "ok"), [(64, True, False), (2048, True, True), (64, False, True)])
def test_dockers_default_of_shared_memory_is_too_small_for_gpus(shm, use_gpu, ok, worker):
    check = facts.check_shared_memory([worker(), worker(1, node="node-1", shm=shm * 2**20)], use_gpu=use_gpu)
    assert check.ok is ok
    assert ok or "node-1" in check.got


@pytest.mark.parametrize(("limit", "ok"), [(1024, False), (65536, True), (-1, True)])
def test_open_files(limit, ok, worker):
    assert facts.check_open_files([worker(), worker(1, open_files=limit)]).ok is ok


def test_a_containers_limit_counts_and_no_limit_does_not(tmp_path):
    assert facts._cgroup(tmp_path) == (None, 0)
    (tmp_path / "memory.max").write_text("max\n")
    assert facts._cgroup(tmp_path) == (None, 0)
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert facts._cgroup(tmp_path) == (1000, 400)


@pytest.mark.parametrize(
    ("folder", "limit", "used", "prefix"),
    [(".", "memory.max", "memory.current", ""),
     ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")],
)  # fmt: skip
def test_cached_files_are_not_used_memory(tmp_path, folder, limit, used, prefix):
    """What `prepare` read and wrote stays in the page cache and is counted by the container as its own."""
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / limit).write_text("64000\n")
    (tmp_path / folder / used).write_text("62000\n")
    lines = f"anon 4000\nfile 58000\n{prefix}inactive_file 50000\n{prefix}active_file 8000\n"
    (tmp_path / folder / "memory.stat").write_text(lines)
    assert facts._cgroup(tmp_path) == (64000, 4000)


def test_the_drivers_version_is_read_from_the_kernel_modules_line(tmp_path):
    file = tmp_path / "version"
    assert facts._driver(file) is None
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23\nGCC version:  gcc 12.2.0\n")
    assert facts._driver(file) == "570.86.15"
