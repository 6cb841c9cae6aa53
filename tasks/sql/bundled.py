"""Makes the bundled records of SQL create-context: our own tables, questions and queries in the form of the corpus.

Source `bundled` of `tasks.sql_create_context`, for a first run without downloads. As in the corpus, a context lists
only the columns that the query uses, string literals stand in double quotes, and a column whose numbers the query
does not show to be numbers is a VARCHAR. No context stands in two splits.

Equal on every platform and Python version: chance comes from `random.Random(seed).random()` alone, whose sequence
Python guarantees.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

SIZES = {"train": 2000, "valid": 200, "test": 200}

_SEED = 20230816
_T = TypeVar("_T")

# fmt: off
_PLACES = (
    "harbor", "valley", "island", "old_town", "northern", "lakeside", "river", "mountain", "coastal", "village",
    "city", "county", "garden", "winter", "summer", "royal", "student", "private", "public", "regional",
)
# plural: (singular, text columns, number columns)
_THINGS = {
    "ferries": ("ferry", ("name", "operator", "home_port", "colour"), ("seats", "length", "built_year", "crew")),
    "bakeries": ("bakery", ("name", "owner", "street", "speciality"), ("ovens", "staff", "founded_year", "loaves")),
    "lighthouses": ("lighthouse", ("name", "keeper", "coast", "material"), ("height", "year", "lamps", "visitors")),
    "choirs": ("choir", ("name", "conductor", "town", "style"), ("singers", "concerts", "founded_year", "awards")),
    "orchards": ("orchard", ("name", "grower", "district", "fruit"), ("trees", "area", "yield_tons", "workers")),
    "museums": ("museum", ("name", "director", "theme", "quarter"), ("rooms", "visitors", "opened_year", "entry_fee")),
    "trams": ("tram", ("line", "depot", "driver", "maker"), ("stops", "capacity", "speed", "built_year")),
    "theatres": ("theatre", ("name", "manager", "square", "genre"), ("seats", "shows", "opened_year", "ticket_price")),
    "cottages": ("cottage", ("name", "owner", "view", "village"), ("beds", "price", "distance", "rating")),
    "beehives": ("beehive", ("label", "keeper", "meadow", "breed"), ("frames", "honey_kilos", "age", "weight")),
    "kites": ("kite", ("model", "designer", "shape", "fabric"), ("span", "price", "weight", "lines")),
    "canals": ("canal", ("name", "engineer", "region", "cargo"), ("locks", "depth", "length", "opened_year")),
}
_WORDS = (
    "amber", "bergholt", "cadell", "dovecote", "elmstead", "fennel", "garrick", "hollin", "isley", "juniper", "kestrel",
    "lindow", "marram", "norbury", "oakum", "pellew", "quince", "rowan", "saltern", "tansy", "ulverton", "verity",
    "wendle", "yarrow",
)
# fmt: on
_CHILDREN = {
    "inspections": ("inspector", "score"),
    "repairs": ("workshop", "cost"),
    "bookings": ("guest", "people"),
    "donations": ("giver", "amount"),
}


@dataclass(frozen=True, slots=True)
class _Scene:
    """What a template draws from: a table, two of its text columns, two of its number columns, words and numbers."""

    table: str
    thing: str
    things: str
    texts: tuple[str, ...]
    numbers: tuple[str, ...]
    words: tuple[str, ...]
    low: int
    high: int
    child: str
    child_text: str
    child_number: str


Made = tuple[str, dict[str, dict[str, str]], str]  # question, columns by table, query


def generate(split: str) -> list[dict[str, str]]:
    """Rows with `question`, `context` and `answer` of a split; KeyError for a split that is not in `SIZES`."""
    return [dict(row) for row in _all_splits()[split]]


@functools.cache
def _all_splits() -> dict[str, tuple[dict[str, str], ...]]:
    """All splits at once: contexts and questions of one are kept out of the others."""
    rng = random.Random(_SEED)
    taken: dict[str, str] = {}
    questions: set[str] = set()
    return {split: tuple(_new_row(rng, split, taken, questions) for _ in range(size)) for split, size in SIZES.items()}


def _new_row(rng: random.Random, split: str, taken: dict[str, str], questions: set[str]) -> dict[str, str]:
    while True:
        question, columns, answer = _pick(rng, _TEMPLATES)(_scene(rng))
        context = "; ".join(_create_table(rng, table, names) for table, names in columns.items())
        key = "; ".join(sorted(" ".join(sorted(part.replace(",", " ").split())) for part in context.split("; ")))
        if question not in questions and taken.setdefault(key, split) == split:
            questions.add(question)
            return {"question": question, "context": context, "answer": answer}


def _create_table(rng: random.Random, table: str, names: dict[str, str]) -> str:
    columns = ", ".join(f"{name} {kind}" for name, kind in _shuffled(rng, list(names.items())))
    return f"CREATE TABLE {table} ({columns})"


def _scene(rng: random.Random) -> _Scene:
    things = _pick(rng, tuple(_THINGS))
    thing, texts, numbers = _THINGS[things]
    child = _pick(rng, tuple(_CHILDREN))
    low = 2 + int(rng.random() * 60)
    return _Scene(
        table=f"{_pick(rng, _PLACES)}_{things}",
        thing=thing,
        things=things,
        texts=tuple(_shuffled(rng, list(texts))),
        numbers=tuple(_shuffled(rng, list(numbers))),
        words=tuple(_shuffled(rng, list(_WORDS))),
        low=low,
        high=low + 2 + int(rng.random() * 80),
        child=f"{thing}_{child}",
        child_text=_CHILDREN[child][0],
        child_number=_CHILDREN[child][1],
    )


def _said(column: str) -> str:
    return column.replace("_", " ")


def _text_where(s: _Scene) -> Made:
    a, b = s.texts[:2]
    return (
        f"What is the {_said(a)} of the {s.thing} in {_said(s.table)} whose {_said(b)} is {s.words[0]}?",
        {s.table: {a: "VARCHAR", b: "VARCHAR"}},
        f'SELECT {a} FROM {s.table} WHERE {b} = "{s.words[0]}"',
    )


def _count_more(s: _Scene) -> Made:
    n = s.numbers[0]
    return (
        f"How many of the {_said(s.table)} have a {_said(n)} of more than {s.low}?",
        {s.table: {n: "INTEGER"}},
        f"SELECT COUNT(*) FROM {s.table} WHERE {n} > {s.low}",
    )


def _at_least(s: _Scene) -> Made:
    a, n = s.texts[0], s.numbers[0]
    return (
        f"List the {_said(a)} of all {_said(s.table)} whose {_said(n)} is at least {s.low}.",
        {s.table: {a: "VARCHAR", n: "INTEGER"}},
        f"SELECT {a} FROM {s.table} WHERE {n} >= {s.low}",
    )


def _aggregate(s: _Scene) -> Made:
    function, word = (("AVG", "average"), ("MAX", "greatest"), ("MIN", "smallest"), ("SUM", "total"))[s.low % 4]
    a, n = s.texts[0], s.numbers[0]
    return (
        f"What is the {word} {_said(n)} among the {_said(s.table)} with the {_said(a)} {s.words[0]}?",
        {s.table: {a: "VARCHAR", n: "INTEGER"}},
        f'SELECT {function}({n}) FROM {s.table} WHERE {a} = "{s.words[0]}"',
    )


def _top(s: _Scene) -> Made:
    a, n = s.texts[0], s.numbers[0]
    direction, word = ((" DESC", "greatest"), ("", "smallest"))[s.low % 2]
    return (
        f"Which {_said(a)} belongs to the one of the {_said(s.table)} with the {word} {_said(n)}?",
        {s.table: {a: "VARCHAR", n: "VARCHAR"}},
        f"SELECT {a} FROM {s.table} ORDER BY {n}{direction} LIMIT 1",
    )


def _sorted(s: _Scene) -> Made:
    a, b, n = s.texts[0], s.texts[1], s.numbers[0]
    return (
        f"Show {_said(a)} and {_said(b)} of the {_said(s.table)}, sorted by {_said(n)} from high to low.",
        {s.table: {a: "VARCHAR", b: "VARCHAR", n: "VARCHAR"}},
        f"SELECT {a}, {b} FROM {s.table} ORDER BY {n} DESC",
    )


def _different(s: _Scene) -> Made:
    a, n = s.texts[0], s.numbers[0]
    return (
        f"Which different values of {_said(a)} are there among the {_said(s.table)} with a {_said(n)} under {s.high}?",
        {s.table: {a: "VARCHAR", n: "INTEGER"}},
        f"SELECT DISTINCT {a} FROM {s.table} WHERE {n} < {s.high}",
    )


def _per_group(s: _Scene) -> Made:
    a = s.texts[0]
    return (
        f"For each {_said(a)}, how many {_said(s.table)} are there?",
        {s.table: {a: "VARCHAR"}},
        f"SELECT {a}, COUNT(*) FROM {s.table} GROUP BY {a}",
    )


def _frequent(s: _Scene) -> Made:
    a, count = s.texts[0], 2 + s.low % 3
    return (
        f"Which {_said(a)} have at least {count} of the {_said(s.table)}?",
        {s.table: {a: "VARCHAR"}},
        f"SELECT {a} FROM {s.table} GROUP BY {a} HAVING COUNT(*) >= {count}",
    )


def _both(s: _Scene) -> Made:
    a, b, n = s.texts[0], s.texts[1], s.numbers[0]
    return (
        f"Which {_said(a)} do {_said(s.table)} of {_said(b)} {s.words[0]} and {_said(n)} under {s.high} have?",
        {s.table: {a: "VARCHAR", b: "VARCHAR", n: "INTEGER"}},
        f'SELECT {a} FROM {s.table} WHERE {b} = "{s.words[0]}" AND {n} < {s.high}',
    )


def _either(s: _Scene) -> Made:
    a, b, n = s.texts[0], s.texts[1], s.numbers[0]
    return (
        f"Give the {_said(n)} of the {_said(s.table)} where {_said(a)} is {s.words[0]} or {_said(b)} is {s.words[1]}.",
        {s.table: {a: "VARCHAR", b: "VARCHAR", n: "VARCHAR"}},
        f'SELECT {n} FROM {s.table} WHERE {a} = "{s.words[0]}" OR {b} = "{s.words[1]}"',
    )


def _between(s: _Scene) -> Made:
    a, n = s.texts[0], s.numbers[0]
    return (
        f"Find the {_said(a)} of the {_said(s.table)} with a {_said(n)} from {s.low} to {s.high}.",
        {s.table: {a: "VARCHAR", n: "INTEGER"}},
        f"SELECT {a} FROM {s.table} WHERE {n} BETWEEN {s.low} AND {s.high}",
    )


def _contains(s: _Scene) -> Made:
    a, b = s.texts[:2]
    part = s.words[0][:3]
    return (
        f"Show the {_said(a)} of the {_said(s.table)} whose {_said(b)} contains the letters {part}.",
        {s.table: {a: "VARCHAR", b: "VARCHAR"}},
        f'SELECT {a} FROM {s.table} WHERE {b} LIKE "%{part}%"',
    )


def _above_average(s: _Scene) -> Made:
    a, n = s.texts[0], s.numbers[0]
    return (
        f"List the {_said(a)} of those {_said(s.table)} whose {_said(n)} is above the average.",
        {s.table: {a: "VARCHAR", n: "INTEGER"}},
        f"SELECT {a} FROM {s.table} WHERE {n} > (SELECT AVG({n}) FROM {s.table})",
    )


def _joined(s: _Scene) -> Made:
    key, a = f"{s.thing}_id", s.texts[0]
    return (
        f"What is the {_said(s.child_text)} of the {_said(s.child)} for {_said(s.table)} with {_said(a)} {s.words[0]}?",
        {s.table: {key: "VARCHAR", a: "VARCHAR"}, s.child: {key: "VARCHAR", s.child_text: "VARCHAR"}},
        f"SELECT T2.{s.child_text} FROM {s.table} AS T1 JOIN {s.child} AS T2 ON T1.{key} = T2.{key} "
        f'WHERE T1.{a} = "{s.words[0]}"',
    )


def _joined_total(s: _Scene) -> Made:
    key, a = f"{s.thing}_id", s.texts[0]
    return (
        f"What is the total {s.child_number} of the {_said(s.child)} for each {_said(a)} of {_said(s.table)}?",
        {s.table: {key: "VARCHAR", a: "VARCHAR"}, s.child: {key: "VARCHAR", s.child_number: "INTEGER"}},
        f"SELECT T1.{a}, SUM(T2.{s.child_number}) FROM {s.table} AS T1 JOIN {s.child} AS T2 ON T1.{key} = T2.{key} "
        f"GROUP BY T1.{a}",
    )


def _without(s: _Scene) -> Made:
    key, a = f"{s.thing}_id", s.texts[0]
    return (
        f"Which {_said(a)} do the {_said(s.table)} have that appear in none of the {_said(s.child)}?",
        {s.table: {key: "VARCHAR", a: "VARCHAR"}, s.child: {key: "VARCHAR"}},
        f"SELECT {a} FROM {s.table} WHERE NOT {key} IN (SELECT {key} FROM {s.child})",
    )


_TEMPLATES: tuple[Callable[[_Scene], Made], ...] = (
    _text_where,
    _text_where,
    _count_more,
    _at_least,
    _aggregate,
    _aggregate,
    _top,
    _sorted,
    _different,
    _per_group,
    _frequent,
    _both,
    _either,
    _between,
    _contains,
    _above_average,
    _joined,
    _joined_total,
    _without,
)


def _pick(rng: random.Random, items: Sequence[_T]) -> _T:
    return items[int(rng.random() * len(items))]


def _shuffled(rng: random.Random, items: list[_T]) -> list[_T]:
    """The items in random order."""
    return [items.pop(int(rng.random() * len(items))) for _ in range(len(items))]
