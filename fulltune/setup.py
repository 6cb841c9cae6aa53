"""Set-up of a machine, once before its first training run: builds DeepSpeed's CPU communication op.

DeepSpeed compiles the op `deepspeed_shm_comm` inside `init_distributed` the first time that a CPU worker starts. Left
to itself that looks like a hang for one to three minutes, every worker queues on torch's lock file, and a build that is
killed leaves that file behind, so that every later process waits for ever. Here the build runs beforehand, in a child
process with a bound, under a lock that the kernel releases when its holder dies; workers then only load the finished
library (`fulltune.engine.prebuild.attach`) and never build or wait. Training does not need the op: without it DeepSpeed
communicates over gloo alone, so no outcome here is fatal.

Run (`make demo` and `make test` do): python -m fulltune.setup [--bound SECONDS] [--require]
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

OP_NAME = "deepspeed_shm_comm"
CPU_ADAM = "cpu_adam"  # the optimizer of offloaded states; built by the first worker of a host that needs it
BOUND_S = 600.0
HEARTBEAT_S = 30.0
NOT_NEEDED = 3  # exit code of the child: this accelerator's DeepSpeed has no such op
BUILD_COMMAND = (sys.executable, "-m", "fulltune.engine.prebuild")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the set-up ended: "ready" (was built before), "built", "skipped" (not needed or no compiler) or "failed"."""

    status: Literal["ready", "built", "skipped", "failed"]
    why: str

    @property
    def usable(self) -> bool:
        return self.status in ("ready", "built")


def extensions_dir() -> Path:
    """The folder of torch's compiled extensions: TORCH_EXTENSIONS_DIR, else one in ~/.cache/fulltune.

    The default's name holds the versions of torch, DeepSpeed and Python, so that an upgrade builds anew. Where hosts
    share the home folder, set the variable to a local folder.
    """
    if given := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(given).expanduser().absolute()
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    key = f"torch{version('torch')}-deepspeed{version('deepspeed')}-{python}"
    return Path.home() / ".cache" / "fulltune" / "torch_extensions" / key


def library_path(directory: Path, op: str = OP_NAME) -> Path:
    """Where torch puts the op's library in `directory`."""
    return directory / op / f"{op}.so"


def is_ready(directory: Path, op: str = OP_NAME) -> bool:
    """Whether the library is there, whole: its SHA-256 is the one noted when its build ended well."""
    library, note = library_path(directory, op), _note_path(directory, op)
    try:
        wanted = json.loads(note.read_text())["sha256"]
        return bool(hashlib.sha256(library.read_bytes()).hexdigest() == wanted)
    except (OSError, ValueError, KeyError):
        return False


def prepare(
    directory: Path,
    bound_s: float = BOUND_S,
    say: Callable[[str], None] = print,
    command: Sequence[str] = BUILD_COMMAND,
    op: str = OP_NAME,
) -> Outcome:
    """Builds the op into `directory` unless it is there already. A build that fails is an outcome, not an exception.

    Args:
        directory: the extensions folder (`extensions_dir()`).
        bound_s: seconds that waiting for another build may take, and then this build.
        say: receives the lines meant for the user.
        command: the child that builds; it gets the op's name.
        op: the name of DeepSpeed's op.
    """
    if is_ready(directory, op):
        return Outcome("ready", f"built before, in {directory}")
    if missing := _missing_tool():
        return Outcome("skipped", f"{missing} is not installed; workers will communicate over gloo alone")
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with _only_one_setup(directory, bound_s, say):
            if is_ready(directory, op):
                return Outcome("ready", "another set-up has just built it")
            wait_for_other_build(directory, bound_s, say, op)
            return _build(directory, bound_s, say, command, op)
    except TimeoutError as error:
        return Outcome("failed", str(error))


def wait_for_other_build(
    directory: Path, bound_s: float, say: Callable[[str], None] = print, op: str = OP_NAME
) -> None:
    """Returns once no build holds torch's lock file: a stale one is removed, a living holder is waited for.

    Raises:
        TimeoutError: the holder is alive and has not let go within `bound_s` seconds; the lock is left to it.
    """
    deadline = time.monotonic() + bound_s
    told = False
    while (lock := _lock_path(directory, op)).exists():
        if removed := clear_stale_lock(directory, bound_s, op):
            say(removed)
            return
        holder = f"process {_holder(lock) or '(out of sight)'}"
        if time.monotonic() > deadline:
            raise TimeoutError(f"{holder} has held {lock} for more than {bound_s:.0f} s; end it and retry")
        if not told:
            say(f"{holder} is building the op already; waiting at most {bound_s:.0f} s")
            told = True
        time.sleep(0.2)


def clear_stale_lock(directory: Path, bound_s: float = BOUND_S, op: str = OP_NAME) -> str | None:
    """Removes torch's lock file if no build is behind it; returns what was done in words, None if nothing was.

    torch keeps the file open while it builds, so a lock that no process has open was left by one that was killed. Where
    that cannot be seen (no /proc), the file's age against `bound_s` decides.
    """
    lock = _lock_path(directory, op)
    try:
        age_s = time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return None
    if _holder(lock) is not None or (not _can_see_holders() and age_s <= bound_s):
        return None
    lock.unlink(missing_ok=True)
    return f"removed the stale lock {lock} ({age_s:.0f} s old; no process holds it)"


def _build(directory: Path, bound_s: float, say: Callable[[str], None], command: Sequence[str], op: str) -> Outcome:
    # whatever is there has no note: partial, or of unknown origin
    shutil.rmtree(directory / op, ignore_errors=True)
    log = directory / "build.log"
    say(f"building DeepSpeed's op {op}, once (1-3 minutes; log: {log})")
    start = time.monotonic()
    code = _run_bounded([*command, op], _child_environment(directory), log, bound_s, say)
    took = f"{time.monotonic() - start:.0f} s"
    if code is None:
        _lock_path(directory, op).unlink(missing_ok=True)
        return Outcome("failed", f"the build was stopped at its bound of {bound_s:.0f} s; see {log}")
    if code == NOT_NEEDED:
        return Outcome("skipped", "this accelerator's DeepSpeed does not use the op")
    if code != 0 or not library_path(directory, op).exists():
        return Outcome("failed", f"the build ended with code {code} after {took}: {_last_line(log)}; see {log}")
    _write_note(directory, op)
    return Outcome("built", f"in {took}, in {directory}")


def _run_bounded(
    command: Sequence[str], environment: Mapping[str, str], log: Path, bound_s: float, say: Callable[[str], None]
) -> int | None:
    """The exit code of `command`, or None if it was stopped at the bound (with every process that it had started)."""
    with log.open("wb") as sink:
        child = subprocess.Popen(
            command, env=dict(environment), stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
        )
    start = time.monotonic()
    try:
        while (left := start + bound_s - time.monotonic()) > 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(timeout=min(left, HEARTBEAT_S))
            if left > HEARTBEAT_S:
                say(f"still compiling ({time.monotonic() - start:.0f} s)")
        return None
    finally:
        _kill_group(child)


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    """Ends the child's whole session, ninja and the compilers too; on Ctrl-C as well, so that no build lives on."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


@contextlib.contextmanager
def _only_one_setup(directory: Path, bound_s: float, say: Callable[[str], None]) -> Iterator[None]:
    """Holds an advisory lock on the folder while one set-up works; the kernel drops it when the process dies."""
    deadline = time.monotonic() + bound_s
    with (directory / "setup.flock").open("w") as handle:
        told = False
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"another set-up has been working in {directory} for more than {bound_s:.0f} s")
            if not told:
                say(f"another set-up is working in {directory}; waiting at most {bound_s:.0f} s")
                told = True
            time.sleep(0.2)
        yield


def _child_environment(directory: Path) -> dict[str, str]:
    """The environment of the build: the folder, and this Python's bin folder on PATH (ninja comes with pip)."""
    return {**os.environ, "TORCH_EXTENSIONS_DIR": str(directory), "PATH": tool_path()}


def tool_path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _missing_tool() -> str | None:
    compiler = os.environ.get("CXX", "c++")  # what torch.utils.cpp_extension calls; Debian's g++ package provides it
    for tool, name in ((compiler, f"the C++ compiler {compiler!r} (package g++)"), ("ninja", "ninja")):
        if shutil.which(tool, path=tool_path()) is None:
            return name
    return None


def _holder(lock: Path) -> int | None:
    """The id of a process of this host that has the lock file open; None if there is none that we may look into."""
    target = str(lock.resolve())
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # the process ended meanwhile, or is another user's
            if os.readlink(descriptor) == target:
                return int(descriptor.parts[2])
    return None


def _can_see_holders() -> bool:
    return Path("/proc/self/fd").is_dir()


def _lock_path(directory: Path, op: str) -> Path:
    return directory / op / "lock"


def _note_path(directory: Path, op: str) -> Path:
    return directory / op / "fulltune.json"


def _write_note(directory: Path, op: str) -> None:
    """Notes the library's hash beside it, by rename, so that the note is there whole or not at all."""
    note = _note_path(directory, op)
    partial = note.with_suffix(".partial")
    partial.write_text(json.dumps({"sha256": hashlib.sha256(library_path(directory, op).read_bytes()).hexdigest()}))
    partial.replace(note)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no output"


def main(argv: Sequence[str] | None = None) -> int:
    """Prepares this machine and says how it went; exit code 1 only under --require and without the op."""
    parser = argparse.ArgumentParser(prog="python -m fulltune.setup", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bound", type=float, default=BOUND_S, help="seconds that a build may take (default 600)")
    parser.add_argument("--require", action="store_true", help="fail unless the op is there at the end")
    args = parser.parse_args(argv)
    say = _prefixed
    outcome = prepare(extensions_dir(), args.bound, say)
    say(f"DeepSpeed CPU communication op: {outcome.status} ({outcome.why})")
    if outcome.status == "failed":
        say("training works without the op, over gloo alone; run this again to retry")
    return 1 if args.require and not outcome.usable else 0


def _prefixed(line: str) -> None:
    print(f"setup: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
