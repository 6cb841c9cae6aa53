"""tasks.sql.suite, compare, schema and bundled: the same databases everywhere, types from use, ties in any order."""

from __future__ import annotations

import hashlib
import json
import time

import pytest

from tasks.base import SPLITS
from tasks.sql import bundled
from tasks.sql.bundled import SIZES, generate
from tasks.sql.compare import Expected, normal_row, same_rows
from tasks.sql.query import Fault, Query, read_query
from tasks.sql.sandbox import Deadline
from tasks.sql.schema import read_schema
from tasks.sql.suite import compare, suite_of
from tasks.sql.use import use_of

CONTEXT = "CREATE TABLE t (name VARCHAR, age VARCHAR, id VARCHAR)"


def verdict(gold: str, answer: str, context: str = CONTEXT) -> bool:
    suite, query = suite_of(context, gold), read_query(answer, read_schema(context))
    assert not isinstance(suite, Fault)
    assert isinstance(query, Query)
    return compare(suite, query, use_of(query.qualified or query.tree, suite.schema)).match


def test_suites_are_the_same_everywhere() -> None:
    suite_of.cache_clear()
    suite = suite_of(CONTEXT, 'SELECT name FROM t WHERE age > 3 AND id LIKE "x%"')
    assert not isinstance(suite, Fault)
    rows = [case.database.run("SELECT * FROM t", Deadline(1)) for case in suite.cases]
    assert len(rows) >= 10
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
    assert digest == "b097645009e6099e"


def test_a_text_column_that_is_compared_with_numbers_holds_numbers() -> None:
    suite = suite_of(CONTEXT, "SELECT name FROM t WHERE age > 9")
    assert not isinstance(suite, Fault)
    rows = suite.cases[0].database.run("SELECT age, TYPEOF(age), age > 9 FROM t", Deadline(1))
    assert all(kind in ("integer", "real") and bool(more) == (age > 9) for age, kind, more in rows)
    assert verdict("SELECT SUM(age) FROM t", "SELECT SUM(t.age) FROM t")
    assert not verdict("SELECT SUM(age) FROM t", "SELECT AVG(age) FROM t")
    assert verdict("SELECT name FROM t WHERE age > 10", 'SELECT name FROM t WHERE age > "10"')


@pytest.mark.parametrize("gold", ["SELECT id FROM t WHERE name IS NOT NULL", "SELECT id FROM t WHERE NOT age IS NULL"])
def test_a_dropped_condition_on_null_shows(gold: str) -> None:
    assert verdict(gold, gold.replace("NOT age IS NULL", "age IS NOT NULL"))
    assert not verdict(gold, "SELECT id FROM t")


@pytest.mark.parametrize(
    "context",
    [
        "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT NOT NULL)",
        "CREATE TABLE t (id INTEGER, name TEXT NOT NULL, CONSTRAINT k PRIMARY KEY (id))",
    ],
)
def test_databases_keep_the_constraints_of_the_context(context: str) -> None:
    assert verdict("SELECT COUNT(*) FROM t", "SELECT COUNT(id) FROM t", context)
    assert verdict("SELECT COUNT(*) FROM t", "SELECT COUNT(name) FROM t", context)
    assert verdict("SELECT COUNT(id) FROM t", "SELECT COUNT(DISTINCT id) FROM t", context)
    assert not verdict("SELECT COUNT(name) FROM t", "SELECT COUNT(DISTINCT name) FROM t", context)
    assert not verdict("SELECT COUNT(*) FROM t", "SELECT COUNT(name) FROM t", CONTEXT)


def test_constraints_are_no_part_of_a_type() -> None:
    schema = read_schema(
        "CREATE TABLE t (a TEXT CONSTRAINT c NOT NULL, b TEXT REFERENCES points (a), n BIGINT NOT NULL)"
    )
    assert [schema.is_numeric("t", column) for column in "abn"] == [False, False, True]


@pytest.mark.parametrize(
    ("gold", "answer", "match"),
    [
        ("SELECT name FROM t ORDER BY age", "SELECT name FROM t ORDER BY age, name", True),
        ("SELECT name FROM t ORDER BY age", "SELECT name FROM t ORDER BY age, name DESC", True),
        ("SELECT name FROM t ORDER BY age, name", "SELECT name FROM t ORDER BY age", False),
        ("SELECT name FROM t ORDER BY age LIMIT 2", "SELECT name FROM t ORDER BY age, id LIMIT 2", True),
        ("SELECT name FROM t ORDER BY age LIMIT 2", "SELECT name FROM t ORDER BY name LIMIT 2", False),
        ("SELECT name FROM t ORDER BY age LIMIT 2 OFFSET 1", "SELECT name FROM t ORDER BY age, id LIMIT 1, 2", True),
        ("SELECT name FROM t ORDER BY age LIMIT 2 OFFSET 1", "SELECT name FROM t ORDER BY age LIMIT 2", False),
        ("SELECT name FROM t", "SELECT name FROM t ORDER BY age", True),
        ("SELECT name FROM t", "SELECT name FROM t UNION ALL SELECT name FROM t", False),
        ("SELECT name, age FROM t ORDER BY 2", "SELECT name, age FROM t ORDER BY age", True),
        ("SELECT DISTINCT name FROM t ORDER BY name", "SELECT name FROM t GROUP BY name ORDER BY name", True),
        ("SELECT name FROM t UNION SELECT id FROM t ORDER BY name",
             "SELECT id FROM t UNION SELECT name FROM t ORDER BY 1", True),
        ("SELECT name FROM t UNION SELECT id FROM t ORDER BY name",
             "SELECT name FROM t UNION SELECT id FROM t ORDER BY name DESC", False),
    ],
)  # fmt: skip
def test_order(gold: str, answer: str, match: bool) -> None:
    assert verdict(gold, answer) is match


def test_rows_are_multisets_in_groups() -> None:
    expected = Expected(((((1,), (2,), (2,)), 3), (((5,), (6,)), 1)), 4)
    assert same_rows(expected, [(2,), (1,), (2,), (6,)])
    assert same_rows(expected, [(2,), (2.0,), (1,), (5,)])
    assert not same_rows(expected, [(1,), (1,), (2,), (5,)])
    assert not same_rows(expected, [(5,), (1,), (2,), (2,)])
    assert not same_rows(expected, [(1,), (2,), (2,)])
    assert not same_rows(expected, [("2",), (1,), (2,), (6,)])


def test_numbers_are_compared_by_value() -> None:
    assert normal_row((3.0, 0.1 + 0.2, None, "3", 10**20)) == (3, 0.3, None, "3", 10**20)


def test_literals_of_the_answer_get_databases_of_their_own() -> None:
    assert not verdict('SELECT name FROM t WHERE id = "a"', 'SELECT name FROM t WHERE id = "a" OR id = "zebra"')
    assert not verdict("SELECT name FROM t", "SELECT name FROM t WHERE age <> 777")


@pytest.mark.parametrize(
    ("context", "tables"),
    [
        ("CREATE TABLE t (a VARCHAR, b INTEGER)", {"t": {"a": "VARCHAR", "b": "INTEGER"}}),
        ("create table T(A int);", {"t": {"a": "INT"}}),
        ("CREATE TABLE t (2007 VARCHAR, from INTEGER, group VARCHAR)", {"t": {"2007": "VARCHAR", "from": "INTEGER",
             "group": "VARCHAR"}}),
        ('CREATE TABLE "my t" ("a b" DECIMAL(10, 2), `c` TEXT, [d e] REAL)', {"my t": {"a b": "DECIMAL(10, 2)", "c":
             "TEXT", "d e": "REAL"}}),
        ("CREATE TABLE a (x VARCHAR); CREATE TABLE b (y VARCHAR)", {"a": {"x": "VARCHAR"}, "b": {"y": "VARCHAR"}}),
        ("CREATE TABLE IF NOT EXISTS s.t (id INT PRIMARY KEY, key VARCHAR, PRIMARY KEY (id), "
         "FOREIGN KEY (id) REFERENCES u (id))",
         {"t": {"id": "INT PRIMARY KEY", "key": "VARCHAR"}}),
        ("CREATE TABLE t (a", {"t": {"a": "VARCHAR"}}),
        ("no table", {}),
    ],
)  # fmt: skip
def test_schema(context: str, tables: dict[str, dict[str, str]]) -> None:
    assert read_schema(context).tables == tables


# --- the bundled records


@pytest.mark.parametrize(
    ("split", "pinned"), [("train", "e9d2d187eb1c995f"), ("valid", "f4b363128d52f3f2"), ("test", "075250845d8641a4")]
)
def test_bundled_rows_are_the_same_on_every_machine(split: str, pinned: str) -> None:
    assert hashlib.sha256(json.dumps(generate(split)).encode()).hexdigest()[:16] == pinned


def test_bundled_splits_share_no_context_and_no_question() -> None:
    rows = {split: generate(split) for split in SPLITS}
    assert {split: len(rows[split]) for split in SPLITS} == SIZES
    for column in ("context", "question"):
        parts = [{row[column] for row in rows[split]} for split in SPLITS]
        assert sum(map(len, parts)) == len(set().union(*parts))


def test_bundled_rows_are_quick_to_make() -> None:
    start = time.process_time()
    assert len(bundled._all_splits.__wrapped__()) == len(SPLITS)
    assert time.process_time() - start < 2
