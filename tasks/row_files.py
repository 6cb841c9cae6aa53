"""Reads the rows of a CSV, JSON, JSONL or Parquet file, and says of a bad row where it stands and what is wrong.

Used by `tasks.sources`. CSV and JSON are read with the standard library and not with `datasets`, which turns the texts
"None", "NA" and "null" into nulls. Row numbers in messages count from 0, as ids do; line numbers from 1, as editors do.
"""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.base import UserError

_FIELD_LIMIT = 2**31 - 1  # the csv module refuses cells above 128 KiB by default; it is a C long, 32 bit on Windows


@dataclass(frozen=True, slots=True)
class Row:
    """One source row: where it stands, in words for messages, and its cells by column."""

    place: str
    cells: Mapping[str, Any]


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file in its order; the ending of its name says how to read it.

    Raises:
        UserError: at once for a file that is missing or has another ending, and while reading for a row that cannot
            be read; also for a file without rows.
    """
    if not path.is_file():
        raise missing_file(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(
            got=f"{path}, ending in {path.suffix or 'nothing'}",
            wanted=f"a file ending in {', '.join(SUFFIXES)}",
            fix="convert it, or give it the ending of its format",
        )
    return _not_empty(path, reader(path))


def missing_file(path: Path, hint: str = "") -> UserError:
    """The error for a path that does not exist; names the file in the same folder whose name is nearest."""
    folder = path.parent
    wanted = ", ".join(filter(None, ("an existing file", hint)))
    if not folder.is_dir():
        return UserError(f"{path}, in a folder that does not exist", wanted, f"check the path {folder}")
    names = [p.name for p in folder.iterdir() if not p.name.startswith(".")]
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.4)
    fix = f"did you mean {folder / near[0]}?" if near else f"{folder} holds {', '.join(sorted(names)[:8]) or 'nothing'}"
    return UserError(f"{path}, which does not exist", wanted, fix)


def _not_empty(path: Path, rows: Iterator[Row]) -> Iterator[Row]:
    first = next(rows, None)
    if first is None:
        raise UserError(f"{path} without a row", "at least one row of data", "check that the file was written whole")
    yield first
    yield from rows


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(_FIELD_LIMIT)
    # surrogateescape keeps bytes that are not UTF-8 until the row they stand in is known
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        yield from _csv_rows(path, csv.reader(file, strict=True))


def _csv_rows(path: Path, reader: Any) -> Iterator[Row]:
    header: list[str] | None = None
    index = 0
    while True:
        line = reader.line_num + 1
        place = f"{path} row {index} (line {line})" if header is not None else f"{path} header (line {line})"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise _bad_row(place, str(error), "a row of comma-separated cells", "check its quotes") from error
        if cells is None:
            return
        if not cells:  # a blank line
            continue
        _check_utf8(place, cells)
        if header is None:
            header = _checked_header(place, cells)
            continue
        if len(cells) != len(header):
            raise _bad_row(
                place,
                f"{len(cells)} cells",
                f"{len(header)} cells, for the columns {', '.join(header)}",
                "put cells that hold commas or line breaks in double quotes",
            )
        yield Row(place, dict(zip(header, cells, strict=True)))
        index += 1


def _checked_header(place: str, header: list[str]) -> list[str]:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise _bad_row(place, f"column {twice[0]!r} twice", "a different name for each column", "rename one of them")
    return header


def _check_utf8(place: str, cells: list[str]) -> None:
    for cell in cells:
        if not cell.isascii():
            try:
                cell.encode("utf-8")
            except UnicodeEncodeError as error:
                byte = ord(cell[error.start]) - 0xDC00
                raise _bad_row(place, f"byte 0x{byte:02x} that is not UTF-8", "UTF-8 text", "convert it") from error


def _read_json(path: Path) -> Iterator[Row]:
    """A list of objects; a file that does not begin with `[` is read as one object per line."""
    with path.open("rb") as file:
        is_list = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    return _read_json_list(path) if is_list else _read_jsonl(path)


def _read_json_list(path: Path) -> Iterator[Row]:
    try:
        rows = json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise _bad_row(f"{path} line {line}", "bytes that are not UTF-8", "UTF-8 text", "convert the file") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise _bad_row(str(path), f"invalid JSON: {error}", "a list of objects", "correct the file") from error
    for index, cells in enumerate(rows):
        yield _object(f"{path} row {index}", cells)


def _read_jsonl(path: Path) -> Iterator[Row]:
    index = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            place = f"{path} row {index} (line {number})"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if not line:
                    continue
                cells = json.loads(line)
            except UnicodeDecodeError as error:
                byte = f"byte 0x{raw[error.start]:02x} that is not UTF-8"
                raise _bad_row(place, byte, "UTF-8 text", "convert the file") from error
            except (json.JSONDecodeError, RecursionError) as error:
                fix = "write each row as JSON on one line"
                raise _bad_row(place, f"invalid JSON: {error}", "one JSON object per line", fix) from error
            yield _object(place, cells)
            index += 1


def _object(place: str, cells: Any) -> Row:
    if not isinstance(cells, dict):
        fix = 'write the row as {"column": value, ...}'
        raise _bad_row(place, f"a JSON {type(cells).__name__}: {str(cells)[:60]}", "a JSON object", fix)
    return Row(place, cells)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    index = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for cells in batch.to_pylist():
                    yield Row(f"{path} row {index}", cells)
                    index += 1
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise _bad_row(f"{path} at row {index}", reason, "a whole Parquet file", "write the file again") from error


def _bad_row(place: str, got: str, wanted: str, fix: str) -> UserError:
    return UserError(got=f"{place}: {got}", wanted=wanted, fix=fix)


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
SUFFIXES = tuple(_READERS)
