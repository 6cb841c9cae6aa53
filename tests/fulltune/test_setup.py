"""The set-up of DeepSpeed's communication op: locks, bound, partial builds. Small scripts stand in for the compiler."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fulltune import setup

GOOD_BUILD = """
import os, pathlib
out = pathlib.Path(os.environ["TORCH_EXTENSIONS_DIR"], "deepspeed_shm_comm")
out.mkdir()
(out / "deepspeed_shm_comm.so").write_bytes(b"library")
with open(out.parent / "builds", "a") as log:
    log.write("x")
"""
HANGING_BUILD = """
import os, pathlib, subprocess, sys, time
out = pathlib.Path(os.environ["TORCH_EXTENSIONS_DIR"], "deepspeed_shm_comm")
out.mkdir()
lock = os.open(out / "lock", os.O_CREAT | os.O_EXCL)
compiler = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
(out.parent / "pids").write_text(f"{os.getpid()} {compiler.pid}")
time.sleep(60)
"""
OTHER_SET_UP = """
import pathlib, sys
from fulltune import setup
outcome = setup.prepare(pathlib.Path(sys.argv[1]), 30, lambda line: None, (sys.executable, "-c", sys.argv[2]))
print(outcome.status)
"""
LOCK_HOLDER = (
    "import os, sys, time; f = os.open(sys.argv[1], os.O_CREAT | os.O_EXCL); print('held', flush=True); time.sleep(60)"
)


def script(source: str) -> tuple[str, ...]:
    return (sys.executable, "-c", source)


def lock_in(directory: Path, age_s: float = 0.0) -> Path:
    lock = directory / setup.OP_NAME / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (time.time() - age_s,) * 2)
    return lock


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.fixture
def holder(tmp_path: Path):
    """A living process that holds torch's lock file in tmp_path, as a build does."""
    lock = tmp_path / setup.OP_NAME / "lock"
    lock.parent.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", LOCK_HOLDER, str(lock)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_builds_once_and_is_ready_afterwards(tmp_path: Path) -> None:
    said: list[str] = []
    first = setup.prepare(tmp_path, 30, said.append, script(GOOD_BUILD))
    second = setup.prepare(tmp_path, 30, said.append, script(GOOD_BUILD))
    assert (first.status, second.status) == ("built", "ready")
    assert (tmp_path / "builds").read_text() == "x"
    assert "once" in said[0]


def test_a_partial_library_is_built_again(tmp_path: Path) -> None:
    setup.prepare(tmp_path, 30, lambda _: None, script(GOOD_BUILD))
    library = setup.library_path(tmp_path)
    library.write_bytes(library.read_bytes()[:3])
    assert not setup.is_ready(tmp_path)
    assert setup.prepare(tmp_path, 30, lambda _: None, script(GOOD_BUILD)).status == "built"
    assert library.read_bytes() == b"library"


def test_a_library_whose_build_was_killed_is_built_again(tmp_path: Path) -> None:
    library = setup.library_path(tmp_path)
    library.parent.mkdir(parents=True)
    library.write_bytes(b"half")  # no note beside it: nobody saw the build end
    assert setup.prepare(tmp_path, 30, lambda _: None, script(GOOD_BUILD)).status == "built"
    assert library.read_bytes() == b"library"


def test_a_stale_lock_is_removed_with_a_message(tmp_path: Path) -> None:
    lock = lock_in(tmp_path)
    said: list[str] = []
    outcome = setup.prepare(tmp_path, 30, said.append, script(GOOD_BUILD))
    assert outcome.status == "built"
    assert not lock.exists()
    assert "stale" in said[0]
    assert str(lock) in said[0]


def test_a_lock_left_by_a_killed_process_is_stale(tmp_path: Path, holder: subprocess.Popen[bytes]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert "no process holds it" in (setup.clear_stale_lock(tmp_path) or "")


def test_a_live_lock_is_respected(tmp_path: Path, holder: subprocess.Popen[bytes]) -> None:
    assert setup.clear_stale_lock(tmp_path, bound_s=0) is None
    start = time.monotonic()
    outcome = setup.prepare(tmp_path, 1.0, lambda _: None, script(GOOD_BUILD))
    assert time.monotonic() - start < 10
    assert outcome.status == "failed"
    assert str(holder.pid) in outcome.why
    assert (tmp_path / setup.OP_NAME / "lock").exists()
    assert not (tmp_path / "builds").exists()


def test_set_up_goes_on_when_the_other_build_lets_go(tmp_path: Path, holder: subprocess.Popen[bytes]) -> None:
    def end_holder(line: str) -> None:
        if "is building the op already" in line:
            holder.kill()
            holder.wait()

    assert setup.prepare(tmp_path, 30, end_holder, script(GOOD_BUILD)).status == "built"


@pytest.mark.parametrize(("age_s", "removed"), [(10, False), (700, True)])
def test_age_decides_where_holders_cannot_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age_s: float, removed: bool
) -> None:
    monkeypatch.setattr(setup, "_can_see_holders", lambda: False)
    lock = lock_in(tmp_path, age_s)
    assert (setup.clear_stale_lock(tmp_path, bound_s=600) is not None) == removed
    assert lock.exists() != removed


def test_the_bound_ends_the_build_and_all_it_started(tmp_path: Path) -> None:
    start = time.monotonic()
    outcome = setup.prepare(tmp_path, 2.0, lambda _: None, script(HANGING_BUILD))
    assert time.monotonic() - start < 20
    assert outcome.status == "failed"
    assert "bound of 2 s" in outcome.why
    assert not (tmp_path / setup.OP_NAME / "lock").exists()
    deadline = time.monotonic() + 5
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def test_a_failing_build_says_where_and_why(tmp_path: Path) -> None:
    outcome = setup.prepare(tmp_path, 30, lambda _: None, script("raise SystemExit('no such header: omp.h')"))
    assert outcome.status == "failed"
    assert "no such header: omp.h" in outcome.why
    assert "build.log" in outcome.why


def test_two_set_ups_build_once(tmp_path: Path) -> None:
    slow = f"import time; time.sleep(2)\n{GOOD_BUILD}"
    command = [sys.executable, "-c", OTHER_SET_UP, str(tmp_path), slow]
    root = Path(setup.__file__).parents[1]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as one,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as two,
    ):
        statuses = sorted(process.communicate(timeout=30)[0].strip() for process in (one, two))
    assert statuses == ["built", "ready"]
    assert (tmp_path / "builds").read_text() == "x"


def test_without_a_compiler_it_is_skipped_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    outcome = setup.prepare(tmp_path / "x", 30, lambda _: None, script(GOOD_BUILD))
    assert outcome.status == "skipped"
    assert "no-such-compiler" in outcome.why
    assert not (tmp_path / "x").exists()


def test_an_accelerator_without_the_op_skips(tmp_path: Path) -> None:
    outcome = setup.prepare(tmp_path, 30, lambda _: None, script(f"raise SystemExit({setup.NOT_NEEDED})"))
    assert outcome.status == "skipped"


def test_the_folder_is_keyed_by_versions_and_the_variable_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    assert re.fullmatch(r"torch2\..+-deepspeed0\.19\..+-cp3\d+", setup.extensions_dir().name)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/elsewhere")
    assert setup.extensions_dir() == Path("/elsewhere")


def test_main_fails_only_when_the_op_is_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert setup.main([]) == 0
    assert setup.main(["--require"]) == 1
    assert "skipped" in capsys.readouterr().out
