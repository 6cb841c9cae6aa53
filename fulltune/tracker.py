"""The run's curves for TensorBoard: event files that say what metrics.jsonl says, beside it in the run folder.

    worker 0: MetricsLog line -> Curves.add         driver: validations that came in last -> Curves.add

Nothing reads them back. metrics.jsonl is what survives a crash; every attempt therefore draws the curves anew from the
lines it keeps, so that a step taken again is there once and nothing is missing that a dead process had not flushed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = "tensorboard"
FLUSH_S = 10
PLAIN = frozenset({"step", "attempt", "time", "validation_rows", "validation_started", "validation_ended"})


@dataclass(frozen=True, slots=True)
class Curves:
    """Event files of one run."""

    writer: Any

    def add(self, line: Mapping[str, Any]) -> None:
        """A point for every number of a line of metrics.jsonl."""
        for tag, value in scalars(line):
            self.writer.add_scalar(tag, value, line["step"], walltime=line.get("time"))

    def close(self) -> None:
        """Writes what is buffered."""
        self.writer.close()


def draw(run: Path, lines: Iterable[Mapping[str, Any]]) -> Curves:
    """Curves of these lines in place of what earlier attempts left; more may be added."""
    from tensorboardX import SummaryWriter

    for left in (run / FOLDER).glob("events.*"):
        left.unlink()
    # purge_step: a TensorBoard that is open has read the former files
    curves = Curves(SummaryWriter(str(run / FOLDER), purge_step=0, flush_secs=FLUSH_S))
    for line in lines:
        curves.add(line)
    return curves


def scalars(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Tags and values: `train/loss`, `valid/loss`, `validation/<metric of the task>`."""
    for name, value in line.items():
        if name == "validation":
            yield from ((f"validation/{metric}", float(mean)) for metric, mean in value.items() if _is_number(mean))
        elif name not in PLAIN and _is_number(value):
            yield "valid/loss" if name == "valid_loss" else f"train/{name}", float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
