"""Answers on disk in the step that finishes them, written by the process that computes them.

    predicting process -> .<out>.answers/<name>.jsonl -> `take`, by whoever goes on -> <out>.jsonl

An answer on its way to the process that writes the predictions file dies with either of the two. So the one that
computes keeps a journal beside that file: one write per step with every answer that the step finished. SIGKILL does
not take back what the operating system has; a machine that goes down may.

A journal is locked as long as its process lives. Whoever takes it over waits for the lock, so that nobody still adds to
what it has read. The token tells a process that it works for a run which another has followed, and one on a node
without this disk that its journal would not be found: there, answers are safe once they have been sent.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation import jsonl
from tasks.base import UserError

TOKEN = "token"
PATIENCE_S = 60.0  # processes of a killed run end within seconds


@dataclass(frozen=True, slots=True)
class Place:
    """Where one process journals: handed to it by the run that it works for."""

    folder: Path
    token: str
    name: str

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.jsonl"


@dataclass(frozen=True, slots=True)
class Journal:
    """An open and locked journal."""

    file: int

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append the rows, in one write."""
        data = "".join(f"{jsonl.dump(row)}\n" for row in rows).encode(errors="backslashreplace")
        while data:
            data = data[os.write(self.file, data) :]

    def close(self) -> None:
        """Release the lock."""
        os.close(self.file)


def folder_of(out: Path) -> Path:
    """Where the journals of a predictions file lie."""
    return out.with_name(f".{out.stem}.answers")


def begin(out: Path) -> None:
    """Makes room for the journals of a run; from now on processes of earlier runs begin none."""
    jsonl.write_text(folder_of(out) / TOKEN, uuid.uuid4().hex)


def place(out: Path) -> Place:
    """A place that no process has been given before, for the run that has begun."""
    folder = folder_of(out)
    return Place(folder, (folder / TOKEN).read_text(), uuid.uuid4().hex)


def open_here(at: Place) -> Journal | None:
    """The journal of this process; None where the disk is not the run's, or cannot lock.

    Raises:
        RuntimeError: another run has followed the one that this process works for.
    """
    if not (at.folder / TOKEN).is_file():
        return None
    file = os.open(at.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    # looked at with the lock held: a run that follows changes the token first and looks for journals then
    token = (at.folder / TOKEN).read_text()
    if token != at.token:
        os.close(file)
        raise RuntimeError(f"another run answers into {at.folder} by now ({token})")
    return Journal(file)


def take(path: Path, *, patience_s: float = PATIENCE_S) -> list[dict[str, Any]]:
    """The rows of a journal whose process has ended; a torn last line is left out.

    Raises:
        UserError: its process is alive after `patience_s`.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return []
    with file:
        _wait_for_lock(file.fileno(), path, patience_s)
        whole = file.read().rpartition(b"\n")[0]
    return [jsonl.parse_object(line, where=str(path)) for line in whole.split(b"\n") if line]


def take_all(out: Path) -> list[dict[str, Any]]:
    """The rows of every journal beside `out`; UserError as in `take`."""
    return [row for path in sorted(folder_of(out).glob("*.jsonl")) for row in take(path)]


def clear(out: Path, *, keep_token: bool = False) -> None:
    """Removes the journals; what they hold stands in `out`."""
    if keep_token:
        for path in folder_of(out).glob("*.jsonl"):
            path.unlink()
    else:
        shutil.rmtree(folder_of(out), ignore_errors=True)


def _wait_for_lock(file: int, path: Path, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise UserError(
                    got=f"{path}: a process has been answering into it for {patience_s:.0f} s",
                    wanted="a predictions file that no other run is working on",
                    fix="wait for the other run, or end it",
                ) from None
            time.sleep(0.1)
