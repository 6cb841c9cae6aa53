"""Reads the records of a task: made by our own code, from the hub, or from files of the user.

The second step of the flow, after `tasks.get`: `load(task, split, source)` gives the records that are rendered,
prompted and scored, `iterate` the same one by one. `tasks.origins` finds the rows that a source stands for.

Ids are `<task>-<split>-<index>` with the 0-based source row, counted before any filter, unless a row brings its own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tasks.base import Record, Task, UserError
from tasks.origins import Origin, fingerprint, locate, nearest, open_origin
from tasks.row_files import Row, read_rows

__all__ = [
    "LoadReport",
    "Loaded",
    "fingerprint",
    "iterate",
    "iterate_references",
    "load",
    "load_with_report",
    "locate",
    "read_references",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load read.

    Attributes:
        origin: the source in words, for logs and provenance.
        rows: source rows read, those of other splits and rejected ones included.
        rejected: ids of rows of this split that `task.accepts` refused.
    """

    origin: str
    rows: int
    rejected: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Loaded:
    """Records in the order of their source rows, and how they came about."""

    records: list[Record]
    report: LoadReport


@dataclass(frozen=True, slots=True)
class _Read:
    """One source row; `record` is None where it belongs to another split."""

    index: int
    place: str
    record: Record | None


def load(
    task: Task, split: str, source: str, *, columns: Mapping[str, str] | None = None, limit: int | None = None
) -> list[Record]:
    """The records of a split; rows that the task rejects are logged. See `load_with_report`."""
    return load_with_report(task, split, source, columns=columns, limit=limit).records


def load_with_report(
    task: Task, split: str, source: str, *, columns: Mapping[str, str] | None = None, limit: int | None = None
) -> Loaded:
    """The records of a split and a report of what was left out.

    Args:
        task: whose columns the records must have.
        split: one of `SPLITS`.
        source: "bundled", "hub" or a path.
        columns: source column -> task column. Columns that already have the task's or the hub's names need none.
        limit: only the first so many records, by index.

    Raises:
        UserError: no such split, file or column, or a row that cannot be read.
    """
    return _collect(task, split, open_origin(task, split, source), columns, limit)


def iterate(
    task: Task, split: str, source: str, *, columns: Mapping[str, str] | None = None, limit: int | None = None
) -> Iterator[Record]:
    """The rows of a split one by one, for sources of any size: one row of a file is in memory at a time.

    What looks at many rows is left to the caller: whether the task accepts a row, and that ids are unique. So `limit`
    counts rows of the split, accepted or not. Other arguments and errors are those of `load_with_report`. (A `.json`
    file is one value and is read whole: millions of rows belong into JSONL, CSV or Parquet.)
    """
    rows = (read.record for read in _read(task, split, open_origin(task, split, source), columns))
    yield from islice((row for row in rows if row is not None), limit)


def read_references(
    task: Task,
    path: str | Path,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> list[Record]:
    """Records of one file to score predictions against.

    Rows without an `id` get `<task>-<split>-<index>`, where the split is the one given or else the file's stem.

    Raises:
        UserError: no such file or column, or a row that cannot be read.
    """
    file = Path(path).expanduser()
    return _collect(task, split or file.stem, Origin(read_rows(file), str(file)), columns, limit).records


def iterate_references(task: Task, path: str | Path, split: str | None = None) -> Iterator[Record]:
    """`read_references` record by record, for files too large to be held. Ids are not checked for being unique."""
    file = Path(path).expanduser()
    rejected = 0
    for read in _read(task, split or file.stem, Origin(read_rows(file), str(file)), None):
        assert read.record is not None, "a file of references is one split"
        if task.accepts is None or task.accepts(read.record):
            yield read.record
        else:
            rejected += 1
    if rejected:
        log.warning("%s: %d rows not usable", file, rejected)


def _collect(task: Task, split: str, origin: Origin, columns: Mapping[str, str] | None, limit: int | None) -> Loaded:
    if limit is not None and limit < 0:
        raise UserError(got=f"limit {limit}", wanted="a number of rows, 0 or more", fix="leave it out to read all rows")
    records: list[Record] = []
    rejected: list[str] = []
    places: dict[str, str] = {}
    rows = 0
    reads = _read(task, split, origin, columns)
    while len(records) != limit:  # asked before the next row is read: a bad row beyond the limit does no harm
        read = next(reads, None)
        if read is None:
            break
        rows = read.index + 1
        if read.record is None:
            continue
        _check_unique(read.record.id, read.place, places)
        if task.accepts is None or task.accepts(read.record):
            records.append(read.record)
        else:
            rejected.append(read.record.id)
    if rejected:
        log.warning("%s: %d of %d rows not usable, for instance %s", origin.name, len(rejected), rows, rejected[0])
    return Loaded(records, LoadReport(origin.name, rows, tuple(rejected)))


def _read(task: Task, split: str, origin: Origin, columns: Mapping[str, str] | None) -> Iterator[_Read]:
    rename: Mapping[str, str] | None = None
    for index, row in enumerate(origin.rows):
        if rename is None:
            rename = _renaming(task, row, columns)
        record = _record(task, split, index, row, rename)
        elsewhere = origin.carved and task.carve is not None and task.carve(record.fields) != split
        yield _Read(index, row.place, None if elsewhere else record)


def _record(task: Task, split: str, index: int, row: Row, rename: Mapping[str, str]) -> Record:
    fields = {column: value for column, value in row.cells.items() if column not in rename}
    fields |= {column: row.cells[source] for source, column in rename.items() if source in row.cells}
    for column in task.columns:
        if fields.get(column) is None:
            _refuse_column(task, column, row, rename)
    own = fields.get("id")
    return Record(f"{task.name}-{split}-{index}" if own in (None, "") else str(own), fields)


def _renaming(task: Task, row: Row, columns: Mapping[str, str] | None) -> dict[str, str]:
    """Source column -> task column: what the user says, then the hub's names where the task's own are missing."""
    rename = dict(columns or {})
    for column in rename:
        if column not in row.cells:
            raise UserError(
                got=f"a column map for {column!r}, but {row.place} has the columns {', '.join(row.cells)}",
                wanted="a column map from columns of the data to columns of the task",
                fix=nearest(column, row.cells) or "correct the column map",
            )
    for hub_column, column in (task.hub.columns if task.hub else {}).items():
        if column not in row.cells and column not in rename.values() and hub_column in row.cells:
            rename.setdefault(hub_column, column)
    return rename


def _refuse_column(task: Task, column: str, row: Row, rename: Mapping[str, str]) -> None:
    names = [rename.get(name, name) for name in row.cells]
    if column in names:
        raise UserError(
            got=f"{row.place} without a value for {column!r}",
            wanted=f"a value in each of the columns {', '.join(task.columns)}",
            fix="fill the cell or remove the row",
        )
    near = nearest(column, row.cells)
    raise UserError(
        got=f"{row.place} with the columns {', '.join(row.cells) or 'none'}",
        wanted=f"the columns of task {task.name}: {', '.join(task.columns)}; {column!r} is missing",
        fix=f"rename it, or map it: columns={{{near or 'SOURCE'!r}: {column!r}}}"
        if near
        else f"add {column!r} or map it",
    )


def _check_unique(record_id: str, place: str, places: dict[str, str]) -> None:
    if record_id in places:
        raise UserError(
            got=f"{place} with id {record_id!r}, which {places[record_id]} has as well",
            wanted="a different id in each row",
            fix="make the ids unique, or drop the id column to have rows numbered",
        )
    places[record_id] = place
