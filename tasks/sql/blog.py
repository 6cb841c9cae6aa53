"""The check of the Llama-2 study (`execution_blog`): one generated table of ten rows, the two results compared as text.

Beside `tasks.sql.suite`, for comparison with the study's numbers only. The study had GPT-3.5 write a table of ten rows,
put the model's query into lower case, ran both queries with sqlglot's executor and compared the texts of the results.
That text shows at most eleven rows and cuts every cell to the width of its column's name, hence

- false positives: 'mayor of Paris' and 'machinist' are both `ma` in a column `id`; 30 rows and 29 rows look alike;
- false negatives: aliases and the order of rows count, and lower case turns 'Paris' into 'paris'.

Here the tables are drawn by our own code, the literals of both queries among their values, and both queries run in the
sandbox; the text follows the study's rule. Like the study, a table on which the reference returns nothing or all of its
rows is set aside, as long as there is another to try.

Source: Anyscale, "Fine-Tuning Llama-2: A Comprehensive Case Study for Tailoring Models to Unique Applications", 2023.
"""

from __future__ import annotations

import hashlib
import random

from sqlglot import exp

from tasks.sql.query import Query
from tasks.sql.sandbox import Database, Deadline, Row, SandboxError, Table
from tasks.sql.schema import Schema
from tasks.sql.use import Use
from tasks.sql.values import Domain, affinities, domains

ROWS = 10
_SHOWN = 11
_TRIES = 3
_SECONDS = 0.3


def execution_blog(reference: Query, answer: Query, schema: Schema, use: Use) -> bool:
    """Whether the study's check passes the answer; `use` is how the two use the columns of the schema."""
    deadline = Deadline(_SECONDS)
    same = False
    for attempt in range(_TRIES):
        database = Database(_tables(schema, use, f"{attempt} {reference.text}"))
        try:
            wanted = database.run(reference.engine_sql, deadline)
            given = database.run(answer.engine_sql.lower(), deadline)
        except SandboxError:
            return False
        same = as_text(_names(reference), wanted) == as_text(_names(answer), given)
        if 0 < len(wanted) < ROWS:
            break
    return same


def as_text(names: list[str], rows: list[Row]) -> str:
    """A result as sqlglot's executor prints it: eleven rows at most, each cell as wide as the name of its column."""
    lines = [" ".join(names)]
    for row in rows[:_SHOWN]:
        lines.append(
            " ".join(str(value).rjust(len(name))[: len(name)] for name, value in zip(names, row, strict=False))
        )
    return "\n".join(lines)


def _names(query: Query) -> list[str]:
    """Output names as sqlglot gives them: the alias, the column's name, or a number."""
    select: exp.Expr = query.qualified or query.tree
    while isinstance(select, (exp.SetOperation, exp.Subquery)):
        select = select.this
    return [item.alias_or_name.lower() or f"_col_{i}" for i, item in enumerate(select.expressions)]


def _tables(schema: Schema, use: Use, seed: str) -> dict[str, Table]:
    rng = random.Random(hashlib.sha256(f"blog {seed}".encode()).digest())
    found = domains(schema, use)
    kinds = affinities(schema, found)
    tables = {}
    for table, columns in kinds.items():
        drawn = [_values(rng, found[(table, column)]) for column in columns]
        tables[table] = Table(columns, list(zip(*drawn, strict=True)))
    return tables


def _values(rng: random.Random, domain: Domain) -> list[object]:
    """Ten values of a column: each literal once, as far as there is room, then others."""
    others = [*domain.near, *domain.plain]
    values = list(domain.exact[: ROWS - 2])
    values += [others[int(rng.random() * len(others))] for _ in range(ROWS - len(values))]
    rng.shuffle(values)
    return values
