"""tasks.sql.normalise: idempotent, and equal for ways of writing that mean the same."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.sql.normalise import normalise
from tasks.sql.schema import read_schema

SCHEMA = read_schema("CREATE TABLE a (x INTEGER, y VARCHAR, id VARCHAR); CREATE TABLE b (x INTEGER, a_id VARCHAR)")

columns = st.sampled_from(["a.x", "y", "a.id", "Y", "`y`"])
values = st.sampled_from(["3", "-4", "2.5", '"s"', "'s'", "NULL", "x + 1", "(x * 2)", "(SELECT MAX(x) FROM b)"])
atoms = st.builds(
    lambda left, op, right, flip: f"{right} {op} {left}" if flip else f"{left} {op} {right}",
    columns,
    st.sampled_from(["=", "<>", "!=", "<", ">", "<=", ">="]),
    values,
    st.booleans(),
) | st.sampled_from(
    ["y LIKE '%s%'", "a.x BETWEEN 1 AND 4", "y IN ('s', 't')", "y NOT IN ('s')", "y IS NULL", "y IS NOT NULL",
     "id IN (SELECT a_id FROM b AS q WHERE q.x > 1)", "EXISTS (SELECT 1 FROM b WHERE b.a_id = a.id)"]
)  # fmt: skip
conditions = st.recursive(
    atoms,
    lambda inner: (
        st.builds("({} AND {})".format, inner, inner)
        | st.builds("({} OR {})".format, inner, inner)
        | st.builds("NOT ({})".format, inner)
        | st.builds("(({}))".format, inner)
    ),
    max_leaves=6,
)
outputs = st.sampled_from(["y", "a.y AS z, COUNT(*)", "DISTINCT y", "MAX(x) AS m", "*", "y, x + 1 AS n"])
tails = st.sampled_from(
    ["", " GROUP BY y", " ORDER BY y", " ORDER BY x DESC, y ASC", " LIMIT 3", " GROUP BY y HAVING COUNT(*) > 2"]
)
queries = st.builds("SELECT {} FROM a WHERE {}{}".format, outputs, conditions, tails)


@settings(max_examples=150, deadline=None)
@given(queries)
def test_normalising_twice_changes_nothing(query: str) -> None:
    once = normalise(query, SCHEMA)
    assert once is not None
    assert normalise(once, SCHEMA) == once


@settings(max_examples=80, deadline=None)
@given(conditions, conditions, st.sampled_from(["AND", "OR"]))
def test_operands_may_change_places(left: str, right: str, word: str) -> None:
    one = normalise(f"SELECT y FROM a WHERE {left} {word} {right}", SCHEMA)
    assert one == normalise(f"select A.Y from A where ({right}) {word.lower()} (({left}))", SCHEMA)


@settings(max_examples=80, deadline=None)
@given(conditions, conditions)
def test_and_is_not_or(left: str, right: str) -> None:
    both = normalise(f"SELECT y FROM a WHERE {left} AND {right}", SCHEMA)
    assert both != normalise(f"SELECT y FROM a WHERE {left} OR {right}", SCHEMA)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("SELECT (x + 1) * 2 FROM a", "SELECT x + 1 * 2 FROM a"),
        ("SELECT y FROM a WHERE x = 1 AND (x = 2 OR x = 3)", "SELECT y FROM a WHERE x = 1 AND x = 2 OR x = 3"),
        ("SELECT y FROM a WHERE NOT (x = 1 AND x = 2)", "SELECT y FROM a WHERE NOT x = 1 AND x = 2"),
        ("SELECT y FROM a WHERE x < 3", "SELECT y FROM a WHERE 3 < x"),
        ("SELECT x - 1 FROM a", "SELECT 1 - x FROM a"),
        ("SELECT p.y FROM a AS p JOIN a AS q ON p.x = q.id", "SELECT q.y FROM a AS p JOIN a AS q ON p.x = q.id"),
        ("SELECT y FROM a WHERE y = 's'", "SELECT y FROM a WHERE y = 'S'"),
        ("SELECT y FROM a ORDER BY x", "SELECT y FROM a ORDER BY x DESC"),
        ("SELECT y FROM a JOIN b ON a.id = a_id", "SELECT y FROM a LEFT JOIN b ON a.id = a_id"),
        ("SELECT y FROM a UNION SELECT a_id FROM b", "SELECT y FROM a UNION ALL SELECT a_id FROM b"),
        ("SELECT COUNT(y) FROM a", "SELECT COUNT(DISTINCT y) FROM a"),
        ("SELECT x, y FROM a", "SELECT y, x FROM a"),
        ("SELECT y FROM a WHERE x = 3", "SELECT y FROM a WHERE x = '3'"),
    ],
)
def test_different_queries_stay_different(one: str, other: str) -> None:
    assert normalise(one, SCHEMA) != normalise(other, SCHEMA)


def test_what_is_not_a_query_has_no_normal_form() -> None:
    assert normalise("DROP TABLE a", SCHEMA) is None
    assert normalise("SELECT nowhere FROM a", SCHEMA) == normalise("select NOWHERE from A", SCHEMA)
