"""Reads the rows of a task: made by our own code, from the hub, or from files of the user.

The second step of the flow, after `tasks.get`: `load(task, split, source)` gives the records that are rendered,
prompted and scored. Files are read by `tasks.row_files`.

    source       rows
    "bundled"    task.generate(split)
    "hub"        the Hugging Face hub; with FULLTUNE_DATA set, the folder $FULLTUNE_DATA/<task>/ instead
    a folder     files named after splits (`train.csv`, `test-00000-of-00002.parquet`) are the splits; without any such
                 file the folder is the union of its files in name order, and the task carves the splits itself
    a file       is the split that is asked for

Ids are `<task>-<split>-<index>` with the 0-based source row, counted before any filter, unless a row brings its own.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.base import SPLITS, Record, Task, UserError
from tasks.row_files import SUFFIXES, Row, missing_file, read_rows

__all__ = ["LoadReport", "Loaded", "iterate_references", "load", "load_with_report", "read_references"]

log = logging.getLogger(__name__)

_SPLIT_ALIASES = {"validation": "valid", "val": "valid", "dev": "valid"}
_SHARD = re.compile(r"-\d+-of-\d+$")


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
class _Origin:
    """Rows before the column map; `carved` if they still hold several splits."""

    rows: Iterable[Row]
    name: str
    carved: bool = False


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
    if split not in SPLITS:
        raise UserError(
            got=f"split {split!r}",
            wanted=f"one of {', '.join(SPLITS)}",
            fix="`valid` is the validation split" if split in _SPLIT_ALIASES else "name one of these",
        )
    return _collect(task, split, _origin(task, split, source), columns, limit)


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
    return _collect(task, split or file.stem, _Origin(read_rows(file), str(file)), columns, limit).records


def iterate_references(task: Task, path: str | Path, split: str | None = None) -> Iterator[Record]:
    """`read_references` record by record, for files too large to be held. Ids are not checked for being unique."""
    file = Path(path).expanduser()
    rename: Mapping[str, str] | None = None
    rejected = 0
    for index, row in enumerate(read_rows(file)):
        if rename is None:
            rename = _renaming(task, row, None)
        record = _record(task, split or file.stem, index, row, rename)
        if task.accepts is None or task.accepts(record):
            yield record
        else:
            rejected += 1
    if rejected:
        log.warning("%s: %d rows not usable", file, rejected)


def _collect(task: Task, split: str, origin: _Origin, columns: Mapping[str, str] | None, limit: int | None) -> Loaded:
    if limit is not None and limit < 0:
        raise UserError(got=f"limit {limit}", wanted="a number of rows, 0 or more", fix="leave it out to read all rows")
    records: list[Record] = []
    rejected: list[str] = []
    places: dict[str, str] = {}
    rename: Mapping[str, str] | None = None
    rows = enumerate(origin.rows)
    index = -1
    while len(records) != limit:  # asked before the next row is read: a bad row beyond the limit does no harm
        index, row = next(rows, (index, None))
        if row is None:
            break
        if rename is None:
            rename = _renaming(task, row, columns)
        record = _record(task, split, index, row, rename)
        if origin.carved and task.carve is not None and task.carve(record.fields) != split:
            continue
        _check_unique(record.id, row.place, places)
        if task.accepts is None or task.accepts(record):
            records.append(record)
        else:
            rejected.append(record.id)
    if rejected:
        log.warning("%s: %d of %d rows not usable, for instance %s", origin.name, len(rejected), index + 1, rejected[0])
    return Loaded(records, LoadReport(origin.name, index + 1, tuple(rejected)))


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
                fix=_nearest(column, row.cells) or "correct the column map",
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
    near = _nearest(column, row.cells)
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


def _origin(task: Task, split: str, source: str) -> _Origin:
    if source == "bundled":
        return _bundled(task, split)
    if source == "hub":
        mirror = os.environ.get("FULLTUNE_DATA")
        return _mirror(task, split, Path(mirror)) if mirror else _hub(task, split)
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(task, split, path)
    if not path.exists():
        raise missing_file(path, hint="or one of the sources bundled and hub")
    return _Origin(read_rows(path), str(path))


def _bundled(task: Task, split: str) -> _Origin:
    if task.generate is None:
        raise UserError(
            got=f"source 'bundled' for task {task.name}",
            wanted="'hub' or a path: this task brings no data of its own",
            fix="set data.source (or --source) to hub or to a file",
        )
    name = f"bundled {task.name} {split}"
    return _Origin((Row(f"{name} row {i}", cells) for i, cells in enumerate(task.generate(split))), name)


def _mirror(task: Task, split: str, root: Path) -> _Origin:
    folder = root / task.name
    _announce_mirror(task.name, folder)
    if not folder.is_dir():
        raise UserError(
            got=f"FULLTUNE_DATA={root}, which has no folder {task.name}",
            wanted=f"{folder} with the files of this task",
            fix="put them there, or unset FULLTUNE_DATA to read from the hub",
        )
    return _folder(task, split, folder)


@functools.cache
def _announce_mirror(task_name: str, folder: Path) -> None:
    """Say once per task and process that the hub is not asked. A warning, so that it shows without logging set up."""
    log.warning("task %s: FULLTUNE_DATA is set, source 'hub' reads %s", task_name, folder)


def _folder(task: Task, split: str, folder: Path) -> _Origin:
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not files:
        raise UserError(
            got=f"folder {folder} without a data file",
            wanted=f"files ending in {', '.join(SUFFIXES)}",
            fix="check the path",
        )
    by_split = {name: _files_of(task, name, files) for name in SPLITS}
    if not any(by_split.values()):
        if task.carve is None:
            raise UserError(
                got=f"folder {folder} with {', '.join(p.name for p in files)}",
                wanted=f"files named after splits, such as train{files[0].suffix}: task {task.name} does not carve",
                fix="rename the files, or give the path of one file",
            )
        return _Origin(_chain(files), str(folder), carved=True)
    if not by_split[split]:
        raise UserError(
            got=f"folder {folder} with {', '.join(p.name for p in files)}",
            wanted=f"a file for split {split!r}",
            fix=f"add {split}{files[0].suffix}, or ask for another split",
        )
    shared = any(by_split[other] == by_split[split] for other in SPLITS if other != split)
    return _Origin(_chain(by_split[split]), ", ".join(map(str, by_split[split])), carved=shared)


def _files_of(task: Task, split: str, files: list[Path]) -> list[Path]:
    """Files named after the split; without any, those named after the hub's split that it is carved from."""
    stems = {file: _SHARD.sub("", file.stem) for file in files}
    own = [file for file, stem in stems.items() if _SPLIT_ALIASES.get(stem, stem) == split]
    hub_split = task.hub.splits.get(split) if task.hub else None
    return own or [file for file, stem in stems.items() if stem == hub_split]


def _chain(files: list[Path]) -> Iterator[Row]:
    return itertools.chain.from_iterable(read_rows(file) for file in files)


def _hub(task: Task, split: str) -> _Origin:
    hub = task.hub
    if hub is None or split not in hub.splits:
        raise UserError(
            got=f"source 'hub' for task {task.name}, split {split}",
            wanted="a source that has this split",
            fix="give the path of a file" if hub is None else f"ask for one of {', '.join(hub.splits)}",
        )
    try:
        rows = _download(hub.dataset_id, hub.config, hub.splits[split])
    except ImportError as error:
        raise UserError(
            "source 'hub' without the package datasets", "datasets installed", "pip install datasets"
        ) from error
    except Exception as error:  # hub clients raise dozens of types: network, authorisation, unknown data set
        raise UserError(
            got=f"{hub.dataset_id} could not be read: {' '.join(f'{type(error).__name__}: {error}'.split())[:300]}",
            wanted="access to the Hugging Face hub",
            fix=f"check network and token, or set FULLTUNE_DATA to a folder that has {task.name}/",
        ) from error
    name = f"hub {hub.dataset_id} {hub.splits[split]}"
    shared = sum(expression == hub.splits[split] for expression in hub.splits.values()) > 1
    return _Origin((Row(f"{name} row {i}", dict(cells)) for i, cells in enumerate(rows)), name, carved=shared)


def _download(dataset_id: str, config: str | None, split: str) -> Iterable[Mapping[str, Any]]:
    """Rows from the hub. The one place that imports `datasets`: on local files it would lose texts such as "NA".

    Data sets that are a loading script (GEM/viggo was one) are refused by datasets 4 and later; for those the hub keeps
    a converted copy under another revision.
    """
    import datasets

    rows: Iterable[Mapping[str, Any]]
    try:
        rows = datasets.load_dataset(dataset_id, config, split=split)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        rows = datasets.load_dataset(dataset_id, config, split=split, revision="refs/convert/parquet")
    return rows


def _nearest(name: str, known: Iterable[str]) -> str | None:
    near = difflib.get_close_matches(name, list(known), n=1)
    return near[0] if near else None
