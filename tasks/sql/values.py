"""Chooses the values that the columns of generated databases draw from.

Used by `tasks.sql.suite`. Columns that are compared with each other share one domain, so that joins find partners.
A domain has the literals of the queries, their near misses (one more, one less, a letter longer or shorter, the other
letter case, texts that a LIKE pattern just fits or just fails), and a few values of no meaning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tasks.sql.schema import Schema
from tasks.sql.use import Column, ColumnUse, Use

_WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "juniper")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)")


@dataclass(frozen=True, slots=True)
class Domain:
    """What a column draws from.

    Attributes:
        numeric: whether the column holds numbers (affinity NUMERIC), else texts.
        exact: the literals that it is compared with.
        near: near misses of them.
        plain: values of no meaning to the queries.
        ranked: whether it is compared by < or >, so that a near miss is as telling as the literal.
    """

    numeric: bool
    exact: tuple[object, ...]
    near: tuple[object, ...]
    plain: tuple[object, ...]
    ranked: bool = False


def domains(schema: Schema, use: Use) -> dict[Column, Domain]:
    """The domain of every column of a schema; linked columns have equal ones."""
    columns = [(table, name) for table, names in schema.tables.items() for name in names]
    columns += [column for column in sorted(use.missing) if column not in columns and column[0] in schema.tables]
    leader = _classes(columns, use)
    numeric = {column: _is_numeric(column, schema, use) for column in columns}
    found: dict[tuple[Column, bool], Domain] = {}
    result = {}
    for column in columns:
        # A class of linked columns is of numbers if any of them is: joins between both kinds find no partners.
        members = [other for other in columns if leader[other] == leader[column]]
        kind = any(numeric[member] for member in members)
        key = (leader[column], kind)
        if key not in found:
            uses = [use.columns.get(member, ColumnUse()) for member in members]
            found[key] = replace(_domain(uses, kind), ranked=any(own.ranked for own in uses))
        result[column] = found[key]
    return result


def _classes(columns: list[Column], use: Use) -> dict[Column, Column]:
    """Each column's leader: columns linked by a query, or of one name in several tables, have the same."""
    leader = {column: column for column in columns}

    def find(column: Column) -> Column:
        while leader[column] != column:
            column = leader[column]
        return column

    names: dict[str, Column] = {}
    same_name = [(names.setdefault(column[1], column), column) for column in columns if column[1].endswith("id")]
    for left, right in [*sorted(use.links), *same_name]:
        if left in leader and right in leader:
            leader[find(right)] = find(left)
    return {column: find(column) for column in columns}


def _is_numeric(column: Column, schema: Schema, use: Use) -> bool:
    own = use.columns.get(column, ColumnUse())
    if any(not _NUMBER.fullmatch(text.strip()) for text in own.texts) or own.patterns:
        return False
    declared = column[1] in schema.tables[column[0]] and schema.is_numeric(*column)
    return declared or own.reckoned or bool(own.numbers)


def _domain(uses: list[ColumnUse], numeric: bool) -> Domain:
    numbers = sorted({value for use in uses for value in use.numbers})
    texts = sorted({text for use in uses for text in use.texts})
    patterns = sorted({pattern for use in uses for pattern in use.patterns})
    if numeric:
        numbers += [_as_number(text) for text in texts if _NUMBER.fullmatch(text.strip())]
        texts = [text for text in texts if not _NUMBER.fullmatch(text.strip())]
        return _of_numbers(sorted(set(numbers)), texts)
    texts += [f"{number}" for number in numbers]
    return _of_texts(texts, patterns)


def _as_number(text: str) -> float:
    value = float(text)
    return int(value) if value.is_integer() else value


def _of_numbers(numbers: list[float], texts: list[str]) -> Domain:
    exact: list[object] = [*numbers, *texts]
    near: list[object] = []
    for value in numbers:
        step = 1 if float(value).is_integer() else 0.25
        near += [value + step, value - step, value + 2 * step, value + 0.5]
    near += [(low + high) / 2 for low, high in zip(numbers, numbers[1:], strict=False) if high - low > 1]
    top = int(max([abs(value) for value in numbers], default=0)) + 10
    plain: list[object] = [1, 2, 3, 5, 8, top, top + 7] if numbers else [1, 2, 3, 4, 5, 6, 8, 11]
    return Domain(True, tuple(exact), _without(near, exact), _without(plain, exact))


def _of_texts(texts: list[str], patterns: list[str]) -> Domain:
    exact: list[object] = list(texts)
    near: list[object] = []
    for text in texts:
        near += [text + "a", text[:-1] or "0", "a " + text, text.swapcase()]
        if _NUMBER.fullmatch(text.strip()):
            number = _as_number(text)
            near += [str(number + 1), str(number - 1)]
    for pattern in patterns:
        core = pattern.replace("%", "").replace("_", "x")
        inner = pattern.replace("%", "zq").replace("_", "x")
        exact += [core, inner]
        near += [f"y{core}", f"{core}y", f"y{core}y", core[:-1], core.swapcase(), core[1:]]
    words = _WORDS if not exact else _WORDS[:3]
    return Domain(False, tuple(dict.fromkeys(exact)), _without(near, exact), _without(list(words), exact))


def _without(values: list[object], others: list[object]) -> tuple[object, ...]:
    return tuple(value for value in dict.fromkeys(values) if value not in others)


def affinities(schema: Schema, found: Mapping[Column, Domain]) -> dict[str, dict[str, str]]:
    """SQLite's affinity of each column by table, columns that a reference adds included."""
    result: dict[str, dict[str, str]] = {table: {} for table in schema.tables}
    for (table, name), domain in found.items():
        result[table][name] = "NUMERIC" if domain.numeric else "TEXT"
    return result


def type_conflict(found: Mapping[Column, Domain], use: Use, known: Use) -> str | None:
    """What a query does to a column that its type has no sense for, in words; `known` is the use by the reference."""
    for column, own in use.columns.items():
        domain = found.get(column)
        if domain is None:
            continue
        texts = own.texts - known.columns.get(column, ColumnUse()).texts
        if domain.numeric and (words := [text for text in sorted(texts) if not _NUMBER.fullmatch(text.strip())]):
            return f"compares {column[1]}, which holds numbers, with {words[0]!r}"
        if not domain.numeric and own.reckoned:
            return f"reckons with {column[1]}, which holds texts"
    return None
