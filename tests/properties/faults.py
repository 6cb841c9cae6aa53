"""A disk that fails: every call that changes files is counted, and the process "dies" at a chosen one of them.

Used by property 6. After death no call has an effect, and what was written without fsync may be lost in part.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HOW = ("before", "after", "torn")  # torn: half of a write arrives; other calls have no half
CALLS = ("mkdir", "unlink", "rmdir", "replace", "fsync")


class Crash(BaseException):
    """The process is gone: not an Exception, so that nothing handles it."""


class Disk:
    """Counts the calls inside `watched`; dies at call number `at` (from 0), if that is given."""

    def __init__(self, at: int | None = None, how: str = "before", seed: int = 0) -> None:
        self.calls: list[str] = []
        self._at, self._how, self._random = at, how, random.Random(seed)
        self._dead = False
        self._unsynced: set[Path] = set()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Replaces the calls of os and io for the duration; a death inside ends the block."""
        real = {name: getattr(os, name) for name in CALLS}
        real_open = io.open
        for name in CALLS:
            setattr(os, name, self._counted(name, real[name]))
        io.open = lambda *a, **k: self._open(real_open, *a, **k)
        try:
            yield
        except Crash:
            self._lose_what_was_not_synced()
        finally:
            io.open = real_open
            for name in CALLS:
                setattr(os, name, real[name])

    def step(self, what: str, do: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        """One call that can be the last."""
        if self._dead:
            raise Crash
        here = len(self.calls) == self._at
        self.calls.append(what)
        if here and self._how == "before":
            self._die()
        if here and self._how == "torn" and half is not None:
            half()
            self._die()
        try:
            return do()
        finally:
            if here:
                self._die()

    def wrote(self, path: Path) -> None:
        """Remembers that a file's content is not safe yet."""
        self._unsynced.add(path)

    def _die(self) -> None:
        self._dead = True
        raise Crash

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            synced = Path(os.readlink(f"/proc/self/fd/{args[0]}")) if name == "fsync" else None
            result = self.step(name, lambda: real(*args, **named))
            if synced is not None:
                self._unsynced.discard(synced)
            if name == "replace":
                self._rename(Path(args[0]), Path(args[1]))
            return result

        return call

    def _rename(self, old: Path, new: Path) -> None:
        moved = {path for path in self._unsynced if path == old or old in path.parents}
        self._unsynced = (self._unsynced - moved) | {new / path.relative_to(old) for path in moved}

    def _open(self, real_open: Callable[..., Any], file: Any, mode: str = "r", *args: Any, **named: Any) -> Any:
        if not set(mode) & set("wax+"):
            return real_open(file, mode, *args, **named)
        handle = self.step("open", lambda: real_open(file, mode, *args, **named))
        self.wrote(Path(file))
        return _Writer(handle, self)

    def _lose_what_was_not_synced(self) -> None:
        for path in self._unsynced:
            if path.exists():
                os.truncate(path, self._random.randrange(path.stat().st_size + 1))


class _Writer:
    """A file handle whose writes count."""

    def __init__(self, handle: Any, disk: Disk) -> None:
        self._handle, self._disk = handle, disk

    def write(self, data: Any) -> int:
        half = data[: len(data) // 2]
        written: int = self._disk.step("write", lambda: self._handle.write(data), lambda: self._handle.write(half))
        self._disk.wrote(Path(self._handle.name))
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()
