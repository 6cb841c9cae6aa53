"""What runs were trained on, and which records of a report stand in it. Used by report and benchmark.

A run that continues another was trained on that one's rows too. Rows are read again from the recorded configuration.
What cannot be read again, or is too large for it, is said and named in the report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evaluation.comparison import LeakCheck
from evaluation.leaks import seen_in_training
from evaluation.wording import counted
from fulltune import config, lineage
from fulltune.config import RunConfig
from ray_jobs.prepare import training_sources
from tasks.base import Record, Task, UserError

Part = tuple[str, Task, list[Record]]  # name of a source, its task, its rows
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a benchmark: its label, what answers as a path (which need not exist), and whether it is tuned."""

    label: str
    model: Path
    tuned: bool


@dataclass(frozen=True, slots=True)
class Look:
    """What was looked through so far, by name: rows of it, or why it was not."""

    say: Say
    rows: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def leave_out(self, name: str, why: str, *, more: str = "") -> None:
        """Notes and says that a source is not looked through; `more` may name paths and is said only."""
        self.say(f"leaks: {name} is not looked through: {why}{more}")
        self.left_out[name] = why

    def leaks(self, task: Task, asked: Sequence[Record], parts: Iterable[Part]) -> tuple[dict[str, str], LeakCheck]:
        """Asked records whose question stands in a part: id -> reason; and what they were compared with."""
        found = seen_in_training(task, asked, self._noted(parts))
        against = tuple(f"{name} ({counted(rows, 'row')})" for name, rows in self.rows.items())
        return found, LeakCheck(against, tuple(f"{name}, {why}" for name, why in self.left_out.items()))

    def _noted(self, parts: Iterable[Part]) -> Iterator[Part]:
        for name, task, rows in parts:
            self.rows[name] = self.rows.get(name, 0) + len(rows)
            yield name, task, rows


def stages(folder: Path) -> list[RunConfig]:
    """Recorded configurations of the runs that made the model of a run folder or of its export, the first one first.

    Empty for a folder that is neither. Raises UserError for a configuration that cannot be read.
    """
    run = folder.parent if folder.name == lineage.EXPORT else folder
    if not (run / lineage.CONFIG).is_file():
        return []
    return [config.load(stage / lineage.CONFIG) for stage in lineage.folders(run)]


def parts(runs: Sequence[RunConfig], look: Look, *, named: bool) -> Iterator[Part]:
    """Every source of every run, one in memory at a time; `named` tells the runs apart by their names."""
    for run in runs:
        name = f"train of {run.ray.name}" if named else "train"
        if run.data.loader == "streaming":
            look.leave_out(name, "a stream")
            continue
        try:
            for source in training_sources(run):
                task = source.open()
                rows = [row for row in source.records() if task.accepts is None or task.accepts(row)]
                yield name, task, rows
        except UserError as error:
            look.leave_out(name, "cannot be read again", more=f" ({error.got})")


def rows_parts(rows: Iterable[Row], whole: Callable[[], Part], look: Look) -> Iterator[Part]:
    """What the run folders among the rows were trained on.

    Where that is not known of every tuned row, or no row is a run folder, the `whole` training split of what is asked
    comes after it.
    """
    runs: list[RunConfig] = []
    known = True
    for row in rows:
        try:
            found = stages(row.model)
        except UserError as error:
            look.leave_out(f"train of {row.label}", "cannot be read again", more=f" ({error.got})")
            found = []
        runs += [run for run in found if run not in runs]
        known = known and (bool(found) or not row.tuned)
    yield from parts(runs, look, named=True)
    if runs and known and not look.left_out:
        return
    try:
        yield whole()
    except UserError as error:
        look.leave_out("train", "cannot be read", more=f" ({error.got})")
