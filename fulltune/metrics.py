"""metrics.jsonl: one line per optimizer step, cut back to the checkpoint when a run resumes.

Worker 0 writes it, the driver's progress line and the report read it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fulltune.train import Skipped, Spiked, StepDone, Validated

FILE = "metrics.jsonl"


class MetricsLog:
    """Appends to the log of a run; lines after `keep_to` (steps that will be taken again) are dropped first."""

    def __init__(self, run: Path, *, keep_to: int, every: int = 1) -> None:
        self._every = every
        self._path = run / FILE
        self.attempt = next_attempt(run)
        kept = [line for line in read(run) if line["step"] <= keep_to]
        temporary = self._path.with_name(f".{FILE}")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(temporary, self._path)
        self._handle = self._path.open("a", encoding="utf-8", buffering=1)

    def step(self, event: StepDone) -> None:
        """One optimizer step, if it is one of those that are logged."""
        if event.step % self._every:
            return
        line = dataclasses.asdict(event)
        seconds = line.pop("seconds")
        self._write(line | {"tokens_per_s": round(event.tokens / seconds, 1), "mfu": None})

    def skipped(self, event: Skipped) -> None:
        """A step whose gradients were dropped; the line has no `loss`, `nonfinite-<step>.json` lists its records."""
        self._write({"step": event.step, "skipped": event.what, "value": str(event.value)})

    def spiked(self, event: Spiked) -> None:
        """An unusual loss; the line stands beside its step's."""
        self._write({"step": event.step, "spike": event.loss, "usual_loss": event.usual})

    def validated(self, event: Validated) -> None:
        """A validation loss; the line has `valid_loss` and no `loss`."""
        self._write({"step": event.step, "valid_loss": event.loss})

    def _write(self, line: dict[str, Any]) -> None:
        self._handle.write(json.dumps(line | {"attempt": self.attempt}) + "\n")


def read(run: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's log; none if there is no log. A last line that a crash cut short is left out."""
    try:
        text = (run / FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    for line in text.split("\n")[:-1]:
        yield json.loads(line)


def skips(run: Path, *, until: int) -> int:
    """How many of the steps up to `until` were left out; lines after that are of steps that will be taken again."""
    return sum("skipped" in line and line["step"] <= until for line in read(run))


def next_attempt(run: Path) -> int:
    """Counts the starts of a run, from 1, in the file `attempts`."""
    counter = run / "attempts"
    number = int(counter.read_text()) + 1 if counter.exists() else 1
    temporary = run / ".attempts"
    temporary.write_text(str(number))
    os.replace(temporary, counter)
    return number
