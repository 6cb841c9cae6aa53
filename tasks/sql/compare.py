"""Compares what two queries return on one database (`execution_match`).

Used by `tasks.sql.suite`. Column names do not count and the order of columns does: `SELECT a, b` is not `SELECT b, a`
(strict column order; published Spider systems lose 3 to 4 points by it). Rows are multisets, unless the reference has
an ORDER BY: then they are lists, up to rows that its sort keys do not tell apart. Where a LIMIT cuts through such a
group of ties, any choice from the group is right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sqlglot import exp

from tasks.sql.sandbox import Row


@dataclass(frozen=True, slots=True)
class Expected:
    """The rows of the reference on one database: groups of ties in order, each with how many of its rows are due.

    `size` is the number of rows that an answer must have.
    """

    groups: tuple[tuple[tuple[Row, ...], int], ...]
    size: int


@dataclass(frozen=True, slots=True)
class OrderPlan:
    """How to see the ties of a reference: its query without LIMIT and with `keys` sort keys as last columns."""

    tree: exp.Query
    keys: int
    limit: int | None
    offset: int


def order_plan(tree: exp.Query) -> OrderPlan | None:
    """The plan for a query with ORDER BY or LIMIT at its top; None if there is neither, or no way to add the keys."""
    order = tree.args.get("order")
    limit, offset = _number(tree.args.get("limit"), None), _number(tree.args.get("offset"), 0)
    if order is None and limit is None:
        return None
    if not isinstance(tree, exp.Select) or offset is None or (tree.args.get("distinct") and order is not None):
        return None
    if tree.args.get("limit") is not None and limit is None:
        return None
    plain = tree.copy()
    for part in ("limit", "offset"):
        plain.set(part, None)
    keys = [_key(ordered.this, tree) for ordered in order.expressions] if order is not None else []
    if any(key is None for key in keys):
        return None
    plain.set(
        "expressions", [*plain.expressions, *(exp.alias_(k.copy(), f"sort@{i}") for i, k in enumerate(keys) if k)]
    )
    return OrderPlan(plain, len(keys), limit, offset)


def _key(node: exp.Expr, select: exp.Select) -> exp.Expr | None:
    """What a sort key stands for: an output by number or alias, or itself."""
    if isinstance(node, exp.Literal) and not node.is_string:
        index = int(node.this) - 1 if node.this.isdigit() else -1
        node = select.expressions[index] if 0 <= index < len(select.expressions) else node
    elif isinstance(node, exp.Column) and not node.table:
        node = next((item for item in select.expressions if item.alias.lower() == node.name.lower()), node)
    node = node.this if isinstance(node, exp.Alias) else node
    return None if isinstance(node, exp.Star) else node


def _number(clause: exp.Expr | None, default: int | None) -> int | None:
    if clause is None:
        return default
    value = clause.args.get("expression")
    return int(value.this) if isinstance(value, exp.Literal) and value.this.isdigit() else None


def expected_rows(rows: Sequence[Row], plan: OrderPlan | None, ordered: bool) -> Expected:
    """What an answer has to return, from the rows of the plan's query (of the reference itself if there is no plan)."""
    plain = [normal_row(row) for row in rows]
    if plan is None:
        groups = tuple(((row,), 1) for row in plain) if ordered else ((tuple(plain), len(plain)),)
        return Expected(groups, len(plain))
    ties: list[tuple[Row, list[Row]]] = []
    for row in plain:
        outputs = len(row) - plan.keys
        if not ties or ties[-1][0] != row[outputs:]:
            ties.append((row[outputs:], []))
        ties[-1][1].append(row[:outputs])
    first, last = plan.offset, len(plain) if plan.limit is None else plan.offset + plan.limit
    due: list[tuple[tuple[Row, ...], int]] = []
    at = 0
    for _, rows_of_tie in ties:
        count = min(at + len(rows_of_tie), last) - max(at, first)
        if count > 0:
            due.append((tuple(rows_of_tie), count))
        at += len(rows_of_tie)
    return Expected(tuple(due), sum(count for _, count in due))


def same_rows(expected: Expected, rows: Sequence[Row]) -> bool:
    """Whether the rows of an answer are right."""
    if len(rows) != expected.size:
        return False
    given = [normal_row(row) for row in rows]
    at = 0
    for group, due in expected.groups:
        if Counter(given[at : at + due]) - Counter(group):
            return False
        at += due
    return True


def normal_row(row: Row) -> Row:
    """A row with numbers in one form: 3.0 is 3, and sums differ in the last digits with the order of summands."""
    return tuple(_normal(value) for value in row)


def _normal(value: object) -> object:
    if isinstance(value, float):
        rounded = float(f"{value:.9g}")
        return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
    return value
