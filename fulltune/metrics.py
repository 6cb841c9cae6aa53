"""metrics.jsonl: one line per optimizer step, cut back to the checkpoint when a run resumes.

Worker 0 writes it, the driver's progress line and the report read it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fulltune import tracker
from fulltune.meter import Meter, Spent
from fulltune.train import Skipped, Spiked, StepDone, Validated
from fulltune.validation import Outcome

FILE = "metrics.jsonl"


class MetricsLog:
    """Appends to the log of a run; lines after `keep_to` (steps that will be taken again) are dropped first.

    Create it when the first step is about to start: what is still to go is estimated from the time since then.

    Args:
        began: `time.perf_counter()` of the moment from which this attempt's devices are paid for.
        tensorboard: draw the curves as well.
    """

    def __init__(
        self, run: Path, *, meter: Meter, keep_to: int, began: float, every: int = 1, tensorboard: bool = False
    ) -> None:
        self._every, self._meter, self._keep_to = every, meter, keep_to
        self._before = spent(read(run))
        self._began, self._first_step_at = began, time.perf_counter()
        self._path = run / FILE
        self.attempt = next_attempt(run)
        kept = [line for line in read(run) if line["step"] <= keep_to]
        temporary = self._path.with_name(f".{FILE}")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(temporary, self._path)
        self._handle = self._path.open("a", encoding="utf-8", buffering=1)
        self._curves = tracker.draw(run, kept) if tensorboard else None

    def close(self) -> None:
        """Writes what the curves have buffered; the log itself has no buffer."""
        self._handle.close()
        if self._curves is not None:
            self._curves.close()

    def step(self, event: StepDone) -> None:
        """One optimizer step, if it is one of those that are logged."""
        if event.step % self._every:
            return
        self._write(dataclasses.asdict(event) | self._meter.rates(event) | self._spending(event.step))

    def _spending(self, step: int) -> dict[str, float | None]:
        now = time.perf_counter()
        per_step = (now - self._first_step_at) / (step - self._keep_to)
        held = (now - self._began) / 3600
        return self._meter.bill(self._before, step=step, held_hours=held, seconds_per_step=per_step)

    def skipped(self, event: Skipped) -> None:
        """A step whose gradients were dropped; the line has no `loss`, `nonfinite-<step>.json` lists its records."""
        self._write({"step": event.step, "skipped": event.what, "value": str(event.value)})

    def spiked(self, event: Spiked) -> None:
        """An unusual loss; the line stands beside its step's."""
        self._write({"step": event.step, "spike": event.loss, "usual_loss": event.usual})

    def validated(self, event: Validated) -> None:
        """A validation loss; the line has `valid_loss` and no `loss`."""
        self._write({"step": event.step, "valid_loss": event.loss})

    def outcome(self, outcome: Outcome) -> None:
        """A validation by the task's metric; it comes some steps after the step that it is about."""
        self._write(outcome_line(outcome))

    def _write(self, line: dict[str, Any]) -> None:
        line = line | {"attempt": self.attempt, "time": round(time.time(), 3)}
        self._handle.write(json.dumps(line) + "\n")
        if self._curves is not None:
            self._curves.add(line)


def outcome_line(outcome: Outcome) -> dict[str, Any]:
    """`{"step", "validation": {metric: mean}}`, or why there are no metrics."""
    told: dict[str, Any] = outcome.metrics if outcome.status == "done" else {outcome.status: outcome.why}
    times = {"validation_started": outcome.started, "validation_ended": outcome.ended}
    return {"step": outcome.step, "validation": told, "validation_rows": outcome.n} | times


def add_outcomes(run: Path, outcomes: Iterable[Outcome], *, tensorboard: bool = False) -> None:
    """Appends the outcomes that came in after the workers had ended; then the curves are drawn with them."""
    known = {line["step"] for line in read(run) if "validation" in line}
    with (run / FILE).open("a", encoding="utf-8") as handle:
        for outcome in outcomes:
            if outcome.step not in known:
                handle.write(json.dumps(outcome_line(outcome)) + "\n")
    if tensorboard:
        tracker.draw(run, read(run)).close()


def read(run: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's log; none if there is no log. A last line that a crash cut short is left out."""
    try:
        text = (run / FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    for line in text.split("\n")[:-1]:
        yield json.loads(line)


def spent(lines: Iterable[Mapping[str, Any]]) -> Spent:
    """The bill at the end of a log: steps that will be taken again were paid for as well."""
    bills = [line for line in lines if line.get("hours") is not None]
    last = max(bills, key=lambda line: float(line["hours"]), default=None)
    return Spent() if last is None else Spent(last["hours"], last.get("gpu_hours"), last.get("cost_usd"))


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
