"""metrics.jsonl: one line per optimizer step, cut back to the checkpoint when a run resumes.

Worker 0 writes it, the driver's progress line and the report read it. Beside it worker 0 keeps spent.jsonl, what the
run has cost: that is not cut back, and grows where no step is logged as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fulltune import commit, tracker
from fulltune.meter import Figures, Meter, Spent
from fulltune.train import Skipped, Spiked, StepDone, Validated
from fulltune.validation import Outcome

FILE = "metrics.jsonl"
SPENT = "spent.jsonl"
BILL = ("hours", "gpu_hours", "cost_usd")
CHARGE_S = 60.0  # between two lines of SPENT: what a worker that is killed before it logs may leave unpaid


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
        self._began, self._first_step_at = began, time.perf_counter()
        self._run, self._charged_at = run, self._first_step_at
        self._before = charge(run, meter, self._held_hours(self._first_step_at))  # before the log is cut
        self.attempt = next_attempt(run)
        kept = [line for line in read(run) if line["step"] <= keep_to]
        _replace(run / FILE, kept)
        self._handle = (run / FILE).open("a", encoding="utf-8", buffering=1)
        self._curves = tracker.draw(run, kept) if tensorboard else None

    def close(self) -> None:
        """Writes what the curves have buffered, and the bill to the end; the log itself has no buffer."""
        self._charge(time.perf_counter())
        self._handle.close()
        if self._curves is not None:
            self._curves.close()

    def step(self, event: StepDone) -> None:
        """One optimizer step, if it is one of those that are logged; the time of the others is on the bill too."""
        now = time.perf_counter()
        if event.step % self._every == 0:
            worth = self._meter.rates(event) | self._spending(event.step, now)
            self._write(dataclasses.asdict(event) | worth | {"device": self._meter.device})
        else:
            self._charge_now_and_then(now)

    def _spending(self, step: int, now: float) -> Figures:
        per_step = (now - self._first_step_at) / (step - self._keep_to)
        return self._meter.bill(self._before, step=step, held_hours=self._held_hours(now), seconds_per_step=per_step)

    def _held_hours(self, now: float) -> float:
        return (now - self._began) / 3600

    def _charge(self, now: float) -> None:
        self._charged_at = now
        # a disk that is full costs the bill some minutes, not the run its workers
        with contextlib.suppress(OSError), (self._run / SPENT).open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(self._meter.so_far(self._before, self._held_hours(now))) + "\n")

    def _charge_now_and_then(self, now: float) -> None:
        if now - self._charged_at >= CHARGE_S:
            self._charge(now)

    def skipped(self, event: Skipped) -> None:
        """A step whose gradients were dropped; the line has no `loss`, `nonfinite-<step>.json` lists its records."""
        self._write({"step": event.step, "skipped": event.what, "value": str(event.value)})
        self._charge_now_and_then(time.perf_counter())

    def spiked(self, event: Spiked) -> None:
        """An unusual loss; the line stands beside its step's."""
        self._write({"step": event.step, "spike": event.loss, "usual_loss": event.usual})

    def validated(self, event: Validated) -> None:
        """A validation loss; the line has `valid_loss` and no `loss`."""
        self._write({"step": event.step, "valid_loss": event.loss})
        self._charge_now_and_then(time.perf_counter())

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


def _bill_lines(run: Path) -> Iterator[dict[str, Any]]:
    """Those of SPENT; one that a full disk cut short, and that was written on after it, is left out."""
    try:
        text = (run / SPENT).read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def _replace(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """On the disk before it returns: what is cut afterwards may be known from these lines only."""
    commit.write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))


def charge(run: Path, meter: Meter, held_hours: float) -> Spent:
    """Puts the hours of an attempt that has logged nothing yet on the run's bill; what was spent before it.

    spent.jsonl then has the latest bill, the latest one with a price, and the new one; lines are as those of the log.
    """
    known = _bills([*read(run), *_bill_lines(run)])
    before = spent(known)
    _replace(run / SPENT, [*known, meter.so_far(before, held_hours)])
    return before


@contextlib.contextmanager
def paid_for(run: Path, meter: Callable[[], Meter], began: float) -> Iterator[None]:
    """Where there is no log yet: hours up to an error (memory ran out while loading) are on the run's bill as well."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):  # it is the first error that the user has to read
            charge(run, meter(), (time.perf_counter() - began) / 3600)
        raise


def spent(lines: Iterable[Mapping[str, Any]]) -> Spent:
    """The bill at the end of a log: steps that will be taken again were paid for as well."""
    bills = _bills(lines)
    if not bills:
        return Spent()
    last, priced = bills[-1], bills[0]
    hours = priced["gpu_hours"] if last["gpu_hours"] is None else last["gpu_hours"]
    unpriced = (hours or 0.0) - (priced["gpu_hours"] or 0.0)
    return Spent(last["hours"], hours, priced["cost_usd"], unpriced)


def _bills(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The latest bill among these lines, and ahead of it the latest one with a price where it has none itself.

    Hours only grow, so the latest one has most of them.
    """
    bills = [{key: line.get(key) for key in BILL} for line in lines if line.get("hours") is not None]
    bills.sort(key=lambda bill: float(bill["hours"] or 0.0))
    priced = [bill for bill in bills if bill["cost_usd"] is not None][-1:]
    return priced if priced == bills[-1:] else priced + bills[-1:]


def skips(run: Path, *, until: int) -> int:
    """How many of the steps up to `until` were left out; lines after that are of steps that will be taken again."""
    return sum("skipped" in line and line["step"] <= until for line in read(run))


def next_attempt(run: Path) -> int:
    """Counts the starts of a run, from 1, in the file `attempts`."""
    counter = run / "attempts"
    number = int(counter.read_text()) + 1 if counter.exists() else 1
    commit.write_atomically(counter, str(number))
    return number
