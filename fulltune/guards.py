"""What watches over a run: unusual losses, faulty steps written down by record, and the name of what a worker is at.

The loop asks the first, the session keeps the others. Nothing here is decided by one worker: every loss and gradient
norm that is judged is already the same on all of them.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

SETTINGS = frozenset({"on_nonfinite", "max_skips", "on_loss_spike", "spike_window", "spike_threshold"})
MIN_LOSSES = 10  # so many must be known before one can be called unusual
MIN_SPREAD = 0.01  # of the median: a flat curve has almost no deviation, and every wiggle would be many of it

P = ParamSpec("P")
R = TypeVar("R")


class SpikeWatch:
    """Tells a loss that stands far above the latest ones, by median and median absolute deviation.

    Both ignore a few outliers, so that one spike does not hide the next; a curve that falls never triggers.
    """

    def __init__(self, window: int, threshold: float, losses: Iterable[float] = ()) -> None:
        self._losses: deque[float] = deque(losses, maxlen=window)
        self._threshold = threshold

    @property
    def losses(self) -> list[float]:
        """The latest ones, oldest first: what a resumed run has to know to judge as the uninterrupted one."""
        return list(self._losses)

    def usual(self, loss: float) -> float | None:
        """The median of the window if `loss` is a spike, else None; takes `loss` into the window."""
        known = list(self._losses)
        self._losses.append(loss)
        if len(known) < MIN_LOSSES:
            return None
        median = statistics.median(known)
        spread = statistics.median(abs(value - median) for value in known)
        return median if loss - median > self._threshold * max(spread, MIN_SPREAD * abs(median)) else None


class Fault(Protocol):
    """A step that was not finite (`fulltune.train.Skipped` and `NonFinite`)."""

    @property
    def step(self) -> int: ...
    @property
    def what(self) -> str: ...
    @property
    def value(self) -> float: ...
    @property
    def example_indices(self) -> Sequence[int]: ...


def write_fault(run: Path, fault: Fault, examples: Sequence[Mapping[str, Any]]) -> Path:
    """Leaves `nonfinite-<step>.json` in the run folder: what was not finite, and the records that the step held."""
    file = run / f"nonfinite-{fault.step}.json"
    file.write_text(
        json.dumps({"step": fault.step, fault.what: str(fault.value), "examples": list(examples)}, indent=1)
    )
    return file


class CollectiveTimeout(RuntimeError):
    """A collective waited longer than `ray.collective_timeout_s`; the message names worker and phase."""


class Phases:
    """Names what this worker is doing, so that an error, or a wait without end, says where it was.

    gloo raises when a collective times out; NCCL ends the process. A thread therefore tells of a phase that lasts,
    before the time-out does.
    """

    def __init__(self, rank: int, *, limit_s: float, say: Callable[[str], None]) -> None:
        self._rank, self._limit_s, self._say = rank, limit_s, say
        self._phase, self._since = "the start", time.monotonic()

    def enter(self, phase: str) -> None:
        """What the worker does from now on."""
        self._phase, self._since = phase, time.monotonic()

    def during(self, name: str, function: Callable[P, R]) -> Callable[P, R]:
        """The same function; calling it enters the phase, `{0}` in the name being the first argument."""

        def entering(*args: P.args, **kwargs: P.kwargs) -> R:
            self.enter(name.format(*args))
            return function(*args, **kwargs)

        return entering

    @contextmanager
    def named(self) -> Iterator[None]:
        """Inside, errors carry the phase they came from.

        Raises:
            CollectiveTimeout: in place of torch's error, which knows neither worker nor phase.
        """
        ended = threading.Event()
        threading.Thread(target=self._watch, args=(ended,), daemon=True).start()
        try:
            yield
        except Exception as error:
            place = f"worker {self._rank} was in {self._phase}"
            if isinstance(error, RuntimeError) and _is_timeout(error):
                raise CollectiveTimeout(f"{place} when a collective timed out; another worker never came") from error
            error.add_note(place)
            raise
        finally:
            ended.set()

    def _watch(self, ended: threading.Event) -> None:
        told: float | None = None
        while not ended.wait(self._limit_s / 10):
            since = self._since
            if since != told and time.monotonic() - since > self._limit_s:
                told = since
                self._say(f"worker {self._rank} has been in {self._phase} for {time.monotonic() - since:.0f} s")


def _is_timeout(error: RuntimeError) -> bool:
    text = str(error).lower()
    return "timed out" in text or "timeout" in text
