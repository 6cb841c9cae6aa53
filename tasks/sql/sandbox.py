"""Runs untrusted SQL: an in-memory SQLite database that can be read and nothing else, within bounds of time and size.

Used by `tasks.sql.suite` and `tasks.sql.blog`. What a query may do is an allow-list: SELECT, reading the tables of the
record, recursion, and the functions below. Everything else (writing, ATTACH, PRAGMA, extensions, files, the schema
table, table-valued functions) is refused by SQLite's authorizer while the statement is prepared, before it runs.

Bounds: a deadline that SQLite asks for every few thousand steps, a cap on rows, on the length of any value, on the heap
of the whole process's SQLite, and on the size of the statement. LIKE and GLOB are our own functions, linear in both
texts: SQLite's backtrack, and can take hours inside one single step (so can PRINTF, which is not in the list).
"""

from __future__ import annotations

import sqlite3
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache

MAX_ROWS = 3_000
MAX_VALUE_BYTES = 50_000
MAX_HEAP_BYTES = 192 * 1024 * 1024
_STEPS = 2_000
_MAX_LIKE = 200
_MAX_LIKE_TEXT = 2_000

# fmt: off
FUNCTIONS = frozenset((
    "abs", "avg", "ceil", "ceiling", "char", "coalesce", "concat", "count", "cume_dist", "date", "datetime",
    "dense_rank", "first_value", "floor", "glob", "group_concat", "hex", "ifnull", "iif", "instr", "julianday",
    "lag", "last_value", "lead", "length", "like", "lower", "ltrim", "max", "min", "mod", "nth_value", "ntile",
    "nullif", "percent_rank", "pow", "power", "quote", "rank", "replace", "round", "row_number", "rtrim", "sign",
    "sqrt", "strftime", "substr", "substring", "sum", "time", "total", "trim", "trunc", "typeof", "unicode", "upper",
))
# fmt: on

_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: MAX_VALUE_BYTES,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 45_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 100,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 150,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 20,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 25_000,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 20,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: _MAX_LIKE,
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE}

Row = tuple[object, ...]


class SandboxError(Exception):
    """A query that did not come to an end: `category` is an error category of the task, the message says why."""

    def __init__(self, category: str, why: str) -> None:
        super().__init__(why)
        self.category = category


@dataclass(frozen=True, slots=True)
class Table:
    """A table to put into a database: columns with their affinity ("TEXT", "NUMERIC"), and rows."""

    columns: Mapping[str, str]
    rows: Sequence[Row]


@dataclass(slots=True)
class Deadline:
    """Seconds of wall time that several runs share; `used` grows with each run."""

    seconds: float
    used: float = field(default=0.0)


@dataclass(slots=True)
class _Clock:
    """When the running query has to end, on `time.monotonic`'s scale."""

    until: float = field(default=0.0)

    def is_over(self) -> bool:
        return time.monotonic() > self.until


class Database:
    """One throw-away database. It is filled once, then locked; `run` is all that can be done with it.

    Its memory is given back when the last reference to it goes. A connection that is not closed is a cycle (it holds a
    cache of statements that holds it), and in a process with many objects Python looks for cycles so seldom that they
    fill SQLite's heap. So the database closes it, and nothing that the connection holds refers back to the database.
    """

    def __init__(self, tables: Mapping[str, Table]) -> None:
        self._connection = sqlite3.connect(
            ":memory:", isolation_level=None, check_same_thread=False, cached_statements=0
        )
        weakref.finalize(self, self._connection.close)
        self._clock = _Clock()
        self._fill(tables)
        self._lock()

    def _fill(self, tables: Mapping[str, Table]) -> None:
        execute = self._connection.execute
        execute("PRAGMA temp_store = MEMORY")
        _limit_heap()
        for name, table in tables.items():
            columns = ", ".join(f"{_quoted(column)} {affinity}" for column, affinity in table.columns.items())
            execute(f"CREATE TABLE {_quoted(name)} ({columns})")
            marks = ", ".join("?" * len(table.columns))
            self._connection.executemany(f"INSERT INTO {_quoted(name)} VALUES ({marks})", table.rows)
        execute("PRAGMA query_only = ON")

    def _lock(self) -> None:
        connection = self._connection
        for arguments in (2, 3):
            connection.create_function("like", arguments, like, deterministic=True)
        connection.create_function("glob", 2, glob, deterministic=True)
        connection.create_function("concat", -1, lambda *parts: "".join("" if p is None else str(p) for p in parts))
        for limit, value in _LIMITS.items():
            connection.setlimit(limit, value)
        connection.set_authorizer(_authorize)
        connection.set_progress_handler(self._clock.is_over, _STEPS)

    def run(self, sql: str, deadline: Deadline, max_rows: int = MAX_ROWS) -> list[Row]:
        """The rows of a query.

        Raises:
            SandboxError: with category timeout, too_many_rows or not_executable.
        """
        start = time.monotonic()
        self._clock.until = start + deadline.seconds - deadline.used
        try:
            cursor = self._connection.execute(sql)
            rows: list[Row] = cursor.fetchmany(max_rows + 1)
            cursor.close()
        except (sqlite3.Error, sqlite3.Warning, MemoryError, OverflowError, ValueError) as error:
            raise self._explained(error) from error
        finally:
            deadline.used += time.monotonic() - start
        if len(rows) > max_rows:
            raise SandboxError("too_many_rows", f"more than {max_rows} rows")
        return rows

    def _explained(self, error: Exception) -> SandboxError:
        text = " ".join(str(error).split())[:160]
        if "interrupted" in text or self._clock.is_over():
            return SandboxError("timeout", "the query did not end in time")
        if "not authorized" in text or "prohibited" in text:
            return SandboxError("not_executable", f"uses what a query may not: {text}")
        if isinstance(error, MemoryError) or "too big" in text:
            return SandboxError("not_executable", "a value or the query needs too much memory")
        return SandboxError("not_executable", f"SQLite refuses it: {text}")


@cache
def _limit_heap() -> None:
    """Set SQLite's limit, which is one for the whole process."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(f"PRAGMA hard_heap_limit = {MAX_HEAP_BYTES}")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _authorize(action: int, first: str | None, second: str | None, _database: str | None, _inner: str | None) -> int:
    if action in _ALLOWED:
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_READ and not (first or "").lower().startswith(("sqlite_", "pragma_")):
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in FUNCTIONS:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


def like(pattern: object, text: object, escape: object = None) -> int | None:
    """`text LIKE pattern`: `%` any text, `_` any character, ASCII letters in either case; NULL if either is NULL."""
    if pattern is None or text is None:
        return None
    wanted, given = _ascii_lower(_as_text(pattern)), _ascii_lower(_as_text(text))
    return int(_matches(_parts(wanted, "%", "_", _as_text(escape).lower() if escape else ""), given))


def glob(pattern: object, text: object) -> int | None:
    """`text GLOB pattern` with `*` and `?`; sets in brackets are taken literally."""
    if pattern is None or text is None:
        return None
    return int(_matches(_parts(_as_text(pattern), "*", "?", ""), _as_text(text)))


def _as_text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _ascii_lower(text: str) -> str:
    return text.lower() if text.isascii() else "".join(c.lower() if c.isascii() else c for c in text)


def _parts(pattern: str, many: str, one: str, escape: str) -> list[tuple[str, str]]:
    """The pattern as (kind, character): kind "many", "one" or "is"."""
    parts: list[tuple[str, str]] = []
    characters = iter(pattern)
    for character in characters:
        if escape and character == escape:
            parts.append(("is", next(characters, "")))
        elif character == many:
            if not parts or parts[-1][0] != "many":
                parts.append(("many", ""))
        else:
            parts.append(("one", "") if character == one else ("is", character))
    return parts


def _matches(parts: list[tuple[str, str]], text: str) -> bool:
    """Whether the pattern fits: on a mismatch only the last "many" is tried again, so len(parts) * len(text) steps."""
    if len(parts) > _MAX_LIKE or len(text) > _MAX_LIKE_TEXT:
        raise ValueError(f"LIKE of {len(parts)} by {len(text)} characters")
    at = place = 0
    back: tuple[int, int] | None = None
    while place < len(text):
        kind, character = parts[at] if at < len(parts) else ("end", "")
        if kind == "many":
            at += 1
            back = (at, place)
        elif kind == "one" or (kind == "is" and character == text[place]):
            at, place = at + 1, place + 1
        elif back is not None:
            back = (back[0], back[1] + 1)
            at, place = back
        else:
            return False
    return all(kind == "many" for kind, _ in parts[at:])
