"""The run's storage: can it be written, does every worker see the same folder, how fast is it, and is there room.

A folder may exist, be writable by its mode and still refuse (read-only mounts, quotas), so the probe writes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fulltune.plan.planner import gb
from fulltune.preflight.check import Check, judged

MARK = ".preflight"  # folder of the probes, below the run folder
BLOCK = 2**22
SLOWEST_SAVE_S = 600.0  # a checkpoint that takes longer stands in the way of the next one
SAME_SIZE = 0.01  # of a model's bytes: headers
SMALL = 2**20  # models that differ by less count as the same: tokenizers differ by more
PLACE = "set ray.storage_path to a folder that this user may write, with room, on storage that every node mounts"


@dataclass(frozen=True, slots=True)
class Probe:
    """One worker's look at the storage.

    Attributes:
        error: why it could not be written or read; None where it could.
        sees_driver: the driver's file is there: it is the same folder.
        written, bytes: rates are `bytes` by these seconds.
        free: bytes.
    """

    rank: int
    error: str | None = None
    sees_driver: bool = False
    bytes: int = 0
    write_seconds: float = 0.0
    read_seconds: float = 0.0
    free: int = 0

    def as_json(self) -> dict[str, Any]:
        """As it is recorded."""
        return asdict(self)


def free_bytes(folder: Path) -> int:
    """What an ordinary user may still write below this folder."""
    return shutil.disk_usage(folder).free


@contextlib.contextmanager
def marked(run: Path) -> Iterator[str]:
    """The driver's mark: a file that workers look for. Gives its name; the folder goes when the block ends.

    Raises:
        OSError: the storage cannot be written.
    """
    folder = run / MARK
    folder.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex
    try:
        (folder / mark).write_text(mark)
        yield mark
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_writable(error: OSError | None, run: Path) -> Check:
    """Whether the driver could write; it prepares data and model there."""
    got = f"{run}: {error.strerror or error}" if error else f"{run} can be written"
    return judged("storage", ok=error is None, got=got, wanted="a folder that can be written", fix=PLACE)


def probe(run: Path, mark: str, rank: int, size: int) -> Probe:
    """Writes and reads `size` bytes, past the page cache as far as an ordinary process can."""
    folder = run / MARK
    try:
        sees = (folder / mark).is_file()
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{mark}-{rank}"
        written = _write(file, size)
        read = _read(file)
        file.unlink()
        return Probe(rank, None, sees, size, written, read, free_bytes(run))
    except OSError as error:
        return Probe(rank, error=f"{error.strerror or error} ({run})")


def _write(file: Path, size: int) -> float:
    block = os.urandom(BLOCK)  # storage that compresses would flatter zeros
    begun = time.perf_counter()
    with file.open("wb", buffering=0) as handle:
        for start in range(0, size, BLOCK):
            handle.write(block[: min(BLOCK, size - start)])
        os.fsync(handle.fileno())
    return time.perf_counter() - begun


def _read(file: Path) -> float:
    begun = time.perf_counter()
    with file.open("rb", buffering=0) as handle:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while handle.read(BLOCK):
            pass
    return time.perf_counter() - begun


def check_workers(probes: Sequence[Probe], checkpoint: int) -> list[Check]:
    """Every worker writes, into the same folder, and all together fast enough for a checkpoint.

    Args:
        checkpoint: its planned bytes, of all workers.
    """
    failed = [found for found in probes if found.error]
    if failed:
        got = "; ".join(f"worker {found.rank}: {found.error}" for found in failed)
        return [judged("storage on workers", ok=False, got=got, wanted="every worker can write", fix=PLACE)]
    blind = [str(found.rank) for found in probes if not found.sees_driver]
    if blind:
        got = f"the driver's file is not there on worker {', '.join(blind)}"
        return [judged("storage on workers", ok=False, got=got, wanted="one folder that all nodes see", fix=PLACE)]
    return [_check_rate(probes, checkpoint)]


def _check_rate(probes: Sequence[Probe], checkpoint: int) -> Check:
    size = sum(found.bytes for found in probes)
    write, read = (size / max(max(getattr(found, key) for found in probes), 1e-9)
                   for key in ("write_seconds", "read_seconds"))  # fmt: skip
    wanted = checkpoint / SLOWEST_SAVE_S
    return judged(
        "storage on workers",
        ok=write >= wanted,
        got=f"{len(probes)} at once write {gb(int(write))}/s and read {gb(int(read))}/s; "
        f"a checkpoint of {gb(checkpoint)} takes {checkpoint / write:,.1f} s",
        wanted=f"at least {gb(int(wanted))}/s: a checkpoint within {SLOWEST_SAVE_S / 60:.0f} minutes",
        fix="take faster shared storage, or save less often (checkpoint.every_steps)",
    )


def check_space(free: int, needed: int, what: str, *, where: str) -> Check:
    """Room for everything that the run keeps.

    Args:
        what: `needed` in words.
        where: whose view it is.
    """
    return judged(
        "free space",
        ok=free >= needed,
        got=f"{gb(free)} free on the storage, seen from {where}",
        wanted=f"at least {gb(needed)}: {what}",
        fix="make room, set ray.storage_path to larger storage, or lower checkpoint.keep_last",
    )


def kept(run: Path) -> int:
    """Bytes of checkpoints and exports that are there from an earlier start: they need no room again."""
    return sum(_size(run / name) for name in ("checkpoints", "export"))


def has_model(cache: Path, size: int) -> bool:
    """Whether a prepared model of about that size is there from an earlier start (`fulltune.model.prepare`)."""
    return any(abs(_size(folder) - size) <= max(SMALL, SAME_SIZE * size) for folder in cache.glob("model-*"))


def _size(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())
