"""JSON and JSON Lines on disk, for every file of the evaluation stage.

Files are UTF-8, one object a line, never NaN. Reading names the file and the line of whatever it cannot read;
writing is atomic, so a reader never meets half a file.
"""

from __future__ import annotations

import json
import os
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tasks.base import UserError


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) for every line that is not blank.

    Raises:
        UserError: the file is missing, or a line is not UTF-8, not JSON or not an object.
    """
    for number, _, row in read_objects_at(path):
        yield number, row


def read_objects_at(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """`read_objects` with the offset in bytes at which each line begins: (line number, offset, object)."""
    offset = 0
    name = str(path)
    # Bytes are split on "\n" alone: str.splitlines would also cut at U+2028, which may stand inside a JSON string.
    with require_file(path).open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            if raw.strip():
                yield number, offset, parse_object(raw, where=f"{name}, line {number}")
            offset += len(raw)


def read_object(path: Path) -> dict[str, Any]:
    """The one object of a .json file; UserError as `read_objects`."""
    return parse_object(require_file(path).read_bytes(), where=str(path))


def require_file(path: Path) -> Path:
    """`path` itself when it is a file; UserError otherwise."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise UserError(got=f"{path}: {what}", wanted="a file", fix="check the path")
    return path


def parse_object(raw: bytes, *, where: str) -> dict[str, Any]:
    """The object of one line; UserError, beginning with `where`, if it is none."""
    try:
        value = json.loads(raw.removeprefix(BOM_UTF8).decode())
    except (ValueError, RecursionError) as error:
        raise UserError(
            got=f"{where}: {_shown(raw)} ({error})", wanted="a JSON object in UTF-8", fix="mend or delete the line"
        ) from error
    if not isinstance(value, dict):
        raise UserError(
            got=f"{where}: {_shown(raw)}, a {type(value).__name__}",
            wanted="a JSON object",
            fix="mend or delete the line",
        )
    return value


def _shown(raw: bytes) -> str:
    return repr(raw[:80].decode("utf-8", "backslashreplace").strip())


def dump(value: Any, *, indent: int | None = None) -> str:
    """JSON text with its letters as they are; what JSON cannot hold is written as text, NaN included."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent, default=str)
    except ValueError:
        return json.dumps(_without_nan(value), ensure_ascii=False, allow_nan=False, indent=indent, default=str)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return str(value) if isinstance(value, float) and value - value != 0.0 else value


@contextmanager
def atomic(path: Path) -> Iterator[IO[str]]:
    """A text file that replaces `path` when the block ends well, and leaves no trace when it does not.

    Lone surrogates (a model can emit "\\ud800") become their JSON escape instead of an encoding error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stage = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with stage.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            yield file
        os.replace(stage, path)
    finally:
        stage.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace `path` with `text`, whole or not at all."""
    with atomic(path) as file:
        file.write(text)
