"""How well `execution_match` tells right queries from wrong ones: mutants and rewrites of real gold queries.

    FULLTUNE_DATA=... python -m benchmarks.sql_mutations [--queries 2000] [--databases 200] [--show 10]

Takes gold queries of spider_train and wikisql_dev, changes each in every way that applies (comparison, MIN/MAX, AND/OR,
a dropped condition or DISTINCT, ORDER direction, LIMIT, another column, a changed literal, a wrong join key), and keeps
those mutants for which some database of a reference search gives another result. The search shares no code with the
evaluator's databases: it fills tables at random from values in the two query texts (found by a regular expression) and
from small numbers and words. Mutants must score `execution_match` 0, and `ast_match` must never be 1. Rewrites that
keep the meaning must score 1. `caught_beyond_search` counts mutants that score 0 though the search finds no difference
(it is the weaker there, or the mutant does not run); they are left out of the share. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import json
import os
import random
import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlglot
from sqlglot import exp

from tasks.base import Completion, Record
from tasks.sql_create_context import TASK

DIALECT = "sqlite"
_FLIP = {exp.GT: exp.GTE, exp.GTE: exp.GT, exp.LT: exp.LTE, exp.LTE: exp.LT, exp.EQ: exp.NEQ, exp.NEQ: exp.EQ}
_TURN = {exp.Max: exp.Min, exp.Min: exp.Max, exp.Avg: exp.Sum, exp.Sum: exp.Avg}


def mutants(sql: str, columns: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    """(kind, query) of each change; one change a mutant."""
    tree = sqlglot.parse_one(sql, read=DIALECT)
    for index, node in enumerate(tree.walk()):
        for kind, change in _changes(node, columns):
            copy = tree.copy()
            target = list(copy.walk())[index]
            new = change(target)
            yield kind, (new or copy).sql(dialect=DIALECT)


def _changes(node: exp.Expr, columns: dict[str, list[str]]) -> Iterator[tuple[str, Any]]:
    if type(node) in _FLIP and not isinstance(node.parent, exp.Join):
        yield "comparison", lambda n: _swap(n, _FLIP[type(n)])
    if type(node) in _TURN:
        yield "aggregate", lambda n: _swap(n, _TURN[type(n)])
    if isinstance(node, exp.Connector) and not node.find_ancestor(exp.Join):
        other = exp.Or if isinstance(node, exp.And) else exp.And
        yield "and/or", lambda n: _swap(n, other)
        yield "dropped condition", lambda n: _keep(n, "this")
        yield "dropped condition", lambda n: _keep(n, "expression")
    if isinstance(node, exp.Where) and not isinstance(node.this, exp.Connector):
        yield "dropped condition", lambda n: n.parent.set("where", None)
    if isinstance(node, exp.Distinct):
        yield "dropped DISTINCT", _drop_distinct
    if isinstance(node, exp.Ordered):
        yield "ORDER direction", lambda n: n.set("desc", not n.args.get("desc"))
    if isinstance(node, exp.Limit):
        yield "LIMIT", lambda n: n.set("expression", exp.Literal.number(int(n.expression.this) + 1))
    if isinstance(node, exp.Literal) and not isinstance(node.parent, exp.Limit):
        yield "literal", _other_literal
    if isinstance(node, exp.Column):
        for name in _others(node, columns):
            kind = "join key" if node.find_ancestor(exp.Join) else "other column"
            yield kind, lambda n, name=name: n.set("this", exp.to_identifier(name, quoted=True))


def _swap(node: exp.Expr, kind: type[exp.Expr]) -> None:
    node.replace(kind(**{key: value for key, value in node.args.items() if key in ("this", "expression")}))


def _keep(node: exp.Expr, side: str) -> None:
    node.replace(node.args[side].copy())


def _drop_distinct(node: exp.Expr) -> None:
    if isinstance(node.parent, exp.Select):
        node.parent.set("distinct", None)
    else:
        node.replace(node.expressions[0].copy())


def _other_literal(node: exp.Expr) -> None:
    text = node.this
    node.set("this", f"{text}x" if node.args.get("is_string") else f"{float(text) + 1:g}")


def _others(node: exp.Column, columns: dict[str, list[str]]) -> list[str]:
    """One other column of a table that has this one."""
    for names in columns.values():
        rest = [name for name in names if name.lower() != node.name.lower()]
        if len(rest) < len(names) and rest:
            return rest[:1]
    return []


def rewrites(sql: str) -> Iterator[tuple[str, bool, str]]:
    """(kind, whether the normal form covers it, query) of ways to write the same query."""
    yield "case", True, re.sub(r"('[^']*'|\"[^\"]*\")|([^'\"]+)", lambda m: m[1] or m[2].lower(), sql)
    yield "same", True, sql
    if "<>" in sql:
        yield "!=", True, sql.replace("<>", "!=")
    tree = sqlglot.parse_one(sql, read=DIALECT)
    for kind, covered, change in (
        ("aliases", True, _rename),
        ("parentheses", True, _parenthesise),
        ("reordered AND", True, _reorder),
        ("BETWEEN", False, _unbetween),
        ("JOIN as WHERE", False, _where_join),
        ("qualified", True, _qualify),
    ):
        copy = tree.copy()
        if change(copy):
            yield kind, covered, copy.sql(dialect=DIALECT)


def _rename(tree: exp.Expr) -> bool:
    names: dict[str, str] = {}
    for table in tree.find_all(exp.Table):
        if table.alias:
            names[table.alias.lower()] = f"q{len(names)}"
            table.set("alias", exp.TableAlias(this=exp.to_identifier(names[table.alias.lower()])))
    for column in tree.find_all(exp.Column):
        if column.table.lower() in names:
            column.set("table", exp.to_identifier(names[column.table.lower()]))
    return bool(names) and len(set(names)) == sum(1 for t in tree.find_all(exp.Table) if t.alias)


def _parenthesise(tree: exp.Expr) -> bool:
    found = list(tree.find_all(exp.EQ, exp.GT, exp.LT))
    for node in found:
        if isinstance(node.parent, (exp.Where, exp.And, exp.Or)):
            node.replace(exp.Paren(this=node.copy()))
    return bool(found)


def _reorder(tree: exp.Expr) -> bool:
    found = list(tree.find_all(exp.And))
    for node in found:
        left, right = node.this.copy(), node.expression.copy()
        node.set("this", right if not isinstance(right, exp.Or) else exp.Paren(this=right))
        node.set("expression", exp.Paren(this=left) if isinstance(left, exp.Connector) else left)
    return bool(found)


def _unbetween(tree: exp.Expr) -> bool:
    found = list(tree.find_all(exp.Between))
    for node in found:
        low = exp.GTE(this=node.this.copy(), expression=node.args["low"].copy())
        high = exp.LTE(this=node.this.copy(), expression=node.args["high"].copy())
        node.replace(exp.Paren(this=exp.And(this=low, expression=high)))
    return bool(found)


def _where_join(tree: exp.Expr) -> bool:
    found = False
    for select in tree.find_all(exp.Select):
        for join in select.args.get("joins") or []:
            condition = join.args.get("on")
            if condition is not None and not join.side:
                join.set("on", None)
                join.set("kind", "CROSS")
                where = select.args.get("where")
                kept = exp.Paren(this=where.this.copy()) if where else None
                both = exp.And(this=condition.copy(), expression=kept) if kept else condition.copy()
                select.set("where", exp.Where(this=both))
                found = True
    return found


def _qualify(tree: exp.Expr) -> bool:
    tables = list(tree.find_all(exp.Table))
    if len(tables) != 1 or tables[0].alias:
        return False
    for column in tree.find_all(exp.Column):
        column.set("table", exp.to_identifier(tables[0].name))
    return tree.find(exp.Column) is not None


# --- the reference search: databases made without any code of the evaluator


def columns_of(context: str) -> dict[str, list[tuple[str, str]]]:
    """Columns and declared types by table; plain contexts only."""
    found = re.findall(r"CREATE TABLE (\w+) \(([^()]*)\)", context)
    return {table: [tuple(c.rsplit(" ", 1)) for c in body.split(", ")] for table, body in found}


def differs(gold: str, mutant: str, context: str, databases: int) -> bool:
    """Whether some random database gives the two queries different results (rows as sorted lists)."""
    rng = random.Random(hashlib.sha256(f"{gold}|{mutant}".encode()).digest())
    texts = [
        t.replace("%", "") for pair in re.findall(r"\"([^\"]*)\"|'([^']*)'", f"{gold} {mutant}") for t in pair if t
    ]
    bare = re.sub(r"\"[^\"]*\"|\w*[A-Za-z_]\w*", " ", f"{gold} {mutant}")
    numbers = [float(n) for n in re.findall(r"\d+\.?\d*", bare)]
    tables = columns_of(context)
    numeric = {
        name.lower()
        for names in tables.values()
        for name, kind in names
        if kind == "INTEGER" or re.search(rf"\b{re.escape(name)}\b\)? *(?:[<>=]+|BETWEEN) *-?\d", gold, re.IGNORECASE)
    }
    ordered = "ORDER BY" in gold
    for _ in range(databases):
        connection = sqlite3.connect(":memory:")
        size = rng.choice((2, 3, 5, 8, 12, 20))
        pool = rng.choice((2, 3, 5, 8))
        for table, names in tables.items():
            kinds = ", ".join(f"{n} {'NUMERIC' if n.lower() in numeric else 'TEXT'}" for n, _ in names)
            connection.execute(f"CREATE TABLE {table} ({kinds})")
            rows = [[_any(rng, texts, numbers, pool, n.lower() in numeric) for n, _ in names] for _ in range(size)]
            connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(names))})", rows)
        results = []
        for sql in (gold, mutant):
            with contextlib.suppress(sqlite3.Error):
                rows = connection.execute(sql).fetchmany(3000)
                results.append(rows if ordered else sorted(rows, key=repr))
        connection.close()
        if len(results) == 2 and results[0] != results[1]:
            return True
    return False


def _any(rng: random.Random, texts: list[str], numbers: list[float], pool: int, numeric: bool) -> object:
    if numeric:
        around = [n + d for n in numbers for d in (-1, 0, 1)]
        return rng.choice(around) if around and rng.random() < 0.6 else rng.randint(0, pool)
    if texts and rng.random() < 0.6:
        return rng.choice(texts) + rng.choice(("", "", "", "x"))
    return f"w{rng.randint(0, pool)}"


def study(rows: list[dict[str, Any]], databases: int, show: int) -> dict[str, Any]:
    """Counts by kind: mutants that differ and how many were caught, rewrites and how many were accepted."""
    caught: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0, 0, 0])
    accepted: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0, 0, 0])
    missed: list[Any] = []
    for row in rows:
        gold, context, record = row["answer_std"], row["context"], Record("x", row)
        columns = {table: [n for n, _ in names] for table, names in columns_of(context).items()}
        with contextlib.suppress(sqlglot.errors.ParseError):
            for kind, mutant in mutants(gold, columns):
                metrics = TASK.score(record, Completion(mutant)).metrics
                count = caught[kind]
                if not differs(gold, mutant, context, databases):
                    count[3] += metrics["execution_match"] == 0
                    continue
                count[0] += 1
                count[1] += metrics["execution_match"] == 0
                count[2] += metrics["ast_match"] == 1
                if metrics["execution_match"] == 1 or metrics["ast_match"] == 1:
                    missed.append(("mutant", kind, gold, mutant))
            for kind, covered, text in rewrites(gold):
                score = TASK.score(record, Completion(text))
                count = accepted[kind]
                count[0] += 1
                count[1] += score.metrics["execution_match"] == 1
                count[2] += covered
                count[3] += covered and score.metrics["ast_match"] == 1
                if score.metrics["execution_match"] != 1 or (covered and score.metrics["ast_match"] != 1):
                    missed.append(("rewrite", kind, gold, text, score.why))
    return {
        "queries": len(rows),
        "mutants": {
            k: {"different": d, "caught": c, "ast_match": a, "caught_beyond_search": b}
            for k, (d, c, a, b) in caught.items()
        },
        "caught": sum(c for _, c, *_ in caught.values()) / max(1, sum(d for d, *_ in caught.values())),
        "rewrites": {k: {"n": n, "accepted": a, "covered": v, "ast": m} for k, (n, a, v, m) in accepted.items()},
        "accepted": sum(a for _, a, _, _ in accepted.values()) / max(1, sum(n for n, *_ in accepted.values())),
        "missed": random.Random(0).sample(missed, min(show, len(missed))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--databases", type=int, default=200)
    parser.add_argument("--show", type=int, default=0)
    parser.add_argument("--part", default="0/1", help="k/n: only every n-th query, from the k-th")
    options = parser.parse_args()
    folder = Path(os.environ["FULLTUNE_DATA"]) / "sql_create_context"
    rows = [
        json.loads(line)
        for name, share in (("spider_train", 0.6), ("wikisql_dev", 0.4))
        for line in _picked((folder / f"{name}.jsonl").read_text().splitlines(), round(options.queries * share))
    ]
    part, parts = map(int, options.part.split("/"))
    start = time.monotonic()
    result = study(rows[part::parts], options.databases, options.show)
    print(json.dumps({**result, "seconds": round(time.monotonic() - start, 1)}, indent=1))


def _picked(lines: list[str], count: int) -> list[str]:
    """A fixed sample of the rows that run."""
    usable = [line for line in lines if json.loads(line)["runs_in_sqlite"]]
    return sorted(usable, key=lambda line: hashlib.sha256(line.encode()).digest())[:count]


if __name__ == "__main__":
    main()
