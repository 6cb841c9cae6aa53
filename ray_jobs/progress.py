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
    """Shows progress while the block runs: a bar on a terminal, two lines every tenth of the way otherwise.

    Where tokens and seconds of a step went stands below, in place on a terminal: with the bar it would not fit 120
    columns.
    """
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
    shape: dict[str, Any] = {"disable": quiet, "file": sys.stderr, "dynamic_ncols": True}
    with (
        tqdm(position=1, bar_format="{desc}", **shape) as below,  # closed last: it stays under the bar
        tqdm(position=0, total=total_steps, unit="step", **shape) as bar,
    ):
        while True:
            last = done.is_set()
            for line in messages.lines():
                tqdm.write(line, file=sys.stderr)
            steps = [record for record in map(_parse, metrics.lines()) if "loss" in record]
            if steps:
                record = steps[-1]
                bar.n = record["step"]
                speed = f"{record['tokens_per_s']:,.0f} tok/s{_utilisation(record)}"
                bar.set_postfix_str(f"loss {record['loss']:.3f} lr {record['lr']:.1e} {speed}")
                below.set_description_str((_parts(record) + _bill(record)).lstrip())
                if quiet and _tenth(record["step"], total_steps) != _tenth(shown, total_steps):
                    print(_plain(record, total_steps), file=sys.stderr, flush=True)
                shown = record["step"]
            if last:
                return
            done.wait(POLL_S)


def _tenth(step: int, total: int) -> int:
    return step * 10 // max(1, total)


def _plain(record: dict[str, Any], total: int) -> str:
    speed = f"{record['tokens_per_s']:,.0f} tokens/s{_utilisation(record)}{_bill(record)}"
    first = f"step {record['step']}/{total}  loss {record['loss']:.4f}  lr {record['lr']:.2e}  {speed}"
    return f"{first}\n{parts}" if (parts := _parts(record)) else first


def _utilisation(record: dict[str, Any]) -> str:
    """Of the device's peak, where that is known: "  41 % MFU"."""
    return "" if record.get("mfu") is None else f"  {record['mfu']:.0%} MFU".replace("%", " %")


def _bill(record: dict[str, Any]) -> str:
    """GPU-hours and money, spent of all, as far as known: "  2.1/6.4 GPU-h  $2/$6"."""
    parts = []
    for key, form in (("gpu_hours", "  {:.1f}/{:.1f} GPU-h"), ("cost_usd", "  ${:,.0f}/${:,.0f}")):
        if record.get(key) is not None:  # a run on CPUs may have been on GPUs before
            parts.append(form.format(record[key], record[key] + (record.get(f"{key}_to_go") or 0.0)))
    return "".join(parts)


def _parts(record: dict[str, Any]) -> str:
    """What tokens and step time are made of: "  9 supervised, 1 padded tok/s  2.00 s: data 0.10, compute 1.50, ..."."""
    found = ""
    if {"supervised_tokens_per_s", "padded_tokens_per_s"} <= record.keys():
        supervised, padded = record["supervised_tokens_per_s"], record["padded_tokens_per_s"]
        found += f"  {supervised:,.0f} supervised, {padded:,.0f} padded tok/s"
    names = ("data", "compute", "update")
    if all(f"{name}_seconds" in record for name in names):
        seconds = {name: record[f"{name}_seconds"] for name in names}
        total = sum(seconds.values())
        digits = 1 if total >= 10 else 2
        shares = ", ".join(f"{name} {part:.{digits}f}" for name, part in seconds.items())
        found += f"  {total:.{digits}f} s: {shares}"
    return found


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
