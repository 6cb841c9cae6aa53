"""Reads the CREATE TABLE statements of a record into tables and columns.

Used by every step of SQL scoring after `tasks.sql.extraction`. The contexts of sql-create-context name columns such as
`2007`, `from` or `group` without quotes, which no SQL parser takes; a reader of this one statement does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

_CREATE = re.compile(r"create\s+(?:temp(?:orary)?\s+)?table\s+(?:if\s+not\s+exists\s+)?", re.IGNORECASE)
_NAME = re.compile(r"\s*(?:\"([^\"]+)\"|`([^`]+)`|\[([^\]]+)\]|([^\s(),;]+))\s*")
_CONSTRAINT = re.compile(
    r"\s*(?:primary\s+key|foreign\s+key|unique\s*\(|check\s*\(|constraint\s+\S+\s+(?:primary|foreign|unique|check)|(?:key|index)\s+\S*\s*\()",
    re.IGNORECASE,
)
_TABLE_KEY = re.compile(r"\s*(?:constraint\s+\S+\s+)?(primary\s+key|unique)\s*\(([^(),]+)\)", re.IGNORECASE)
# What may follow a type; TEXT CONSTRAINT key and TEXT REFERENCES points are no types of numbers, though INT is in them.
_TYPE_END = re.compile(r"\b(?:NOT|NULL|PRIMARY|UNIQUE|DEFAULT|CHECK|REFERENCES|CONSTRAINT|COLLATE|COMMENT|GENERATED)\b")
_NUMERIC = re.compile(r"int|num|dec|real|float|doub|serial|number|money|bit", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Schema:
    """Tables by lower-case name, each with its columns (lower case) and their declared types, in order."""

    tables: Mapping[str, Mapping[str, str]]

    @property
    def columns(self) -> frozenset[str]:
        """Names of all columns of all tables."""
        return frozenset(name for columns in self.tables.values() for name in columns)

    def is_numeric(self, table: str, column: str) -> bool:
        """Whether the declared type of a column is one of numbers."""
        return bool(_NUMERIC.search(_TYPE_END.split(self.tables[table][column], maxsplit=1)[0]))

    def is_required(self, table: str, column: str) -> bool:
        """Whether a column is declared to hold no NULL."""
        return bool(re.search(r"\b(?:NOT\s+NULL|PRIMARY\s+KEY)\b", self.tables[table].get(column, "")))

    def is_unique(self, table: str, column: str) -> bool:
        """Whether a column is declared to hold each value once."""
        return bool(re.search(r"\b(?:PRIMARY\s+KEY|UNIQUE)\b", self.tables[table].get(column, "")))


@lru_cache(maxsize=512)
def read_schema(context: str) -> Schema:
    """The schema in a context; statements that are not CREATE TABLE are passed over, nothing raises."""
    tables: dict[str, dict[str, str]] = {}
    at = 0
    while match := _CREATE.search(context, at):
        at = match.end()
        name = _NAME.match(context, at)
        if name is None or not context.startswith("(", name.end()):
            continue
        table = _plain(name).rpartition(".")[2].lower()
        body, at = _body(context, name.end())
        tables[table] = dict(_columns(body))
    return Schema({table: columns for table, columns in tables.items() if columns})


def _columns(body: str) -> Iterator[tuple[str, str]]:
    items = _split(body)
    keys = dict(filter(None, map(_table_key, items)))
    for item in items:
        name = _NAME.match(item)
        if name and not _CONSTRAINT.match(item):
            column = _plain(name).lower()
            declared = item[name.end() :].strip().upper() or "VARCHAR"
            yield column, declared if keys.get(column, "") in declared else f"{declared} {keys[column]}"


def _table_key(item: str) -> tuple[str, str] | None:
    """The column and the words of a key that is declared apart from its column: `UNIQUE (code)`."""
    key = _TABLE_KEY.match(item)
    name = _NAME.match(key[2]) if key else None
    return (_plain(name).lower(), " ".join(key[1].upper().split())) if key and name else None


def _plain(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group is not None)


def _body(text: str, start: int) -> tuple[str, int]:
    """The text between the parenthesis at `start` and its partner, and the offset behind that."""
    depth = 0
    for bracket in re.compile(r"[()]").finditer(text, start):
        depth += 1 if bracket.group() == "(" else -1
        if depth == 0:
            return text[start + 1 : bracket.start()], bracket.end()
    return text[start + 1 :], len(text)


def _split(body: str) -> list[str]:
    """The parts between the commas that stand outside of parentheses."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"[(),]", body):
        if match.group() == ",":
            if depth == 0:
                parts.append(body[start : match.start()])
                start = match.end()
        else:
            depth += 1 if match.group() == "(" else -1
    return [*parts, body[start:]]
