"""Finds the rows that a source stands for, before they become records (`tasks.sources`). Files: `tasks.row_files`.

source       rows
"bundled"    task.generate(split)
"hub"        the Hugging Face hub; with FULLTUNE_DATA set, the folder $FULLTUNE_DATA/<task>/ instead
a folder     files named after splits (`train.csv`, `test-00000-of-00002.parquet`) are the splits; without any such
             file the folder is the union of its files in name order, and the task carves the splits itself
a file       is the split that is asked for
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import itertools
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.base import SPLITS, Task, UserError
from tasks.row_files import SUFFIXES, Row, missing_file, read_rows

log = logging.getLogger(__name__)

_SPLIT_ALIASES = {"validation": "valid", "val": "valid", "dev": "valid"}
_SHARD = re.compile(r"-\d+-of-\d+$")


@dataclass(frozen=True, slots=True)
class Origin:
    """Rows before the column map; `carved` if they still hold several splits, `files` if they come from files."""

    rows: Iterable[Row]
    name: str
    carved: bool = False
    files: tuple[Path, ...] = ()


def open_origin(task: Task, split: str, source: str) -> Origin:
    """The rows of a source; of a file none is read yet.

    Raises:
        UserError: no such split, file or data set.
    """
    if split not in SPLITS:
        raise UserError(
            got=f"split {split!r}",
            wanted=f"one of {', '.join(SPLITS)}",
            fix="`valid` is the validation split" if split in _SPLIT_ALIASES else "name one of these",
        )
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
    return Origin(read_rows(path), str(path), files=(path,))


def fingerprint(task: Task, split: str, source: str, *, contents: bool = True) -> str:
    """A hash over what the source holds: the bytes of its files, or else its rows.

    `contents=False` takes names, sizes and times of the files instead, for sources too large to be read twice.
    """
    origin = open_origin(task, split, source)
    digest = hashlib.sha256()
    for file in origin.files:
        if contents:
            with file.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
        else:
            digest.update(repr((str(file), file.stat().st_size, file.stat().st_mtime_ns)).encode())
    if not origin.files:
        for row in origin.rows:
            digest.update(json.dumps(dict(row.cells), sort_keys=True, default=str).encode())
    return digest.hexdigest()


def locate(task: Task, source: str) -> str:
    """The source as another process finds it, whatever its working directory and environment."""
    mirror = os.environ.get("FULLTUNE_DATA")
    if source == "hub" and mirror:
        return str((Path(mirror) / task.name).absolute())
    return source if source in ("bundled", "hub") else str(Path(source).expanduser().absolute())


def _bundled(task: Task, split: str) -> Origin:
    if task.generate is None:
        raise UserError(
            got=f"source 'bundled' for task {task.name}",
            wanted="'hub' or a path: this task brings no data of its own",
            fix="set data.source (or --source) to hub or to a file",
        )
    name = f"bundled {task.name} {split}"
    return Origin((Row(f"{name} row {i}", cells) for i, cells in enumerate(task.generate(split))), name)


def _mirror(task: Task, split: str, root: Path) -> Origin:
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


def _folder(task: Task, split: str, folder: Path) -> Origin:
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
        return Origin(_chain(files), str(folder), carved=True, files=tuple(files))
    if not by_split[split]:
        raise UserError(
            got=f"folder {folder} with {', '.join(p.name for p in files)}",
            wanted=f"a file for split {split!r}",
            fix=f"add {split}{files[0].suffix}, or ask for another split",
        )
    shared = any(by_split[other] == by_split[split] for other in SPLITS if other != split)
    mine = by_split[split]
    return Origin(_chain(mine), ", ".join(map(str, mine)), carved=shared, files=tuple(mine))


def _files_of(task: Task, split: str, files: list[Path]) -> list[Path]:
    """Files named after the split; without any, those named after the hub's split that it is carved from."""
    stems = {file: _SHARD.sub("", file.stem) for file in files}
    own = [file for file, stem in stems.items() if _SPLIT_ALIASES.get(stem, stem) == split]
    hub_split = task.hub.splits.get(split) if task.hub else None
    return own or [file for file, stem in stems.items() if stem == hub_split]


def _chain(files: list[Path]) -> Iterator[Row]:
    return itertools.chain.from_iterable(read_rows(file) for file in files)


def _hub(task: Task, split: str) -> Origin:
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
    return Origin((Row(f"{name} row {i}", dict(cells)) for i, cells in enumerate(rows)), name, carved=shared)


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


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like this one."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return near[0] if near else None
