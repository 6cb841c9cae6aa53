"""The one progress bar of a run, drawn by the driver from what worker 0 writes into the run folder."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fulltune.metrics import FILE

POLL_S = 0.5


@contextlib.contextmanager
def following(run: Path, total_steps: int) -> Iterator[None]:
    """Shows progress while the block runs: a bar on a terminal, a line every tenth of the way otherwise."""
    done = threading.Event()
    thread = threading.Thread(target=_follow, args=(run, total_steps, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=10)


def _follow(run: Path, total_steps: int, done: threading.Event) -> None:
    messages = _Tail(run / "messages.log", from_end=True)
    metrics = _Tail(run / FILE, from_end=False)
    shown = 0
    quiet = not sys.stderr.isatty()
    with tqdm(total=total_steps, unit="step", disable=quiet, file=sys.stderr, dynamic_ncols=True) as bar:
        while True:
            last = done.is_set()
            for line in messages.lines():
                tqdm.write(line, file=sys.stderr)
            steps = [record for record in map(_parse, metrics.lines()) if "loss" in record]
            if steps:
                record = steps[-1]
                bar.n = record["step"]
                speed = f"{record['tokens_per_s']:,.0f} tok/s{_worth(record)}"
                bar.set_postfix_str(f"loss {record['loss']:.3f} lr {record['lr']:.1e} {speed}")
                if quiet and _tenth(record["step"], total_steps) != _tenth(shown, total_steps):
                    print(_plain(record, total_steps), file=sys.stderr, flush=True)
                shown = record["step"]
            if last:
                return
            done.wait(POLL_S)


def _tenth(step: int, total: int) -> int:
    return step * 10 // max(1, total)


def _plain(record: dict[str, Any], total: int) -> str:
    return (
        f"step {record['step']}/{total}  loss {record['loss']:.4f}  lr {record['lr']:.2e}  "
        f"{record['tokens_per_s']:,.0f} tokens/s{_worth(record)}"
    )


def _worth(record: dict[str, Any]) -> str:
    """Utilisation, GPU-hours and money, spent of all, as far as known: "  41 % MFU  2.1/6.4 GPU-h  $2/$6"."""
    parts = []
    if record.get("mfu") is not None:
        parts.append(f"  {record['mfu']:.0%} MFU".replace("%", " %"))
    for key, form in (("gpu_hours", "  {:.1f}/{:.1f} GPU-h"), ("cost_usd", "  ${:,.0f}/${:,.0f}")):
        if record.get(key) is not None:
            parts.append(form.format(record[key], record[key] + record[f"{key}_to_go"]))
    return "".join(parts)


def _parse(line: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(line)
    return record


class _Tail:
    """New whole lines of a growing file; starts over when it was replaced (a resumed run)."""

    def __init__(self, path: Path, *, from_end: bool) -> None:
        self._path = path
        self._offset = path.stat().st_size if from_end and path.exists() else 0
        self._inode = path.stat().st_ino if path.exists() else 0

    def lines(self) -> list[str]:
        if not self._path.exists():
            return []
        state = self._path.stat()
        if state.st_size < self._offset or state.st_ino != self._inode:
            self._offset, self._inode = 0, state.st_ino
        with self._path.open("rb") as handle:
            handle.seek(self._offset)
            whole, newline, _ = handle.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        return whole.decode("utf-8", "replace").split("\n") if whole else []
