"""Makes the databases on which an answer is compared with the reference, and compares them (`execution_match`).

One suite belongs to a context and a reference: about ten small databases whose rows are drawn from the schema and from
the literals of the queries (`tasks.sql.values`). They differ in size, in how often a condition is met, in repeated
rows, NULLs and ties, so that near misses (`>` for `>=`, MIN for MAX, a dropped DISTINCT or condition) differ on at
least one of them. Literals of the answer that the reference does not have get databases of their own.

Everything is drawn from a seed made of the context and the reference: the same suite everywhere.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from tasks.sql.compare import Expected, OrderPlan, expected_rows, order_plan, same_rows
from tasks.sql.query import Fault, Query, engine_text, read_in_context
from tasks.sql.sandbox import Database, Deadline, Row, SandboxError, Table
from tasks.sql.schema import Schema, read_schema
from tasks.sql.use import Column, Use, has_new_literals, merged, use_of
from tasks.sql.values import Domain, affinities, domains

SECONDS = 0.8
_TELLING = 5
_MAX_SIZE = 160


@dataclass(frozen=True, slots=True)
class Plan:
    """How one database is drawn.

    Attributes:
        rows: about how many rows a table has.
        exact: how often a column takes one of the literals.
        repeat: how often a row is a copy of the one before.
        nulls: how often a value is NULL.
        spread: whether values that no query looks at differ in every row (no ties), else they repeat.
        focus: how many of the literals are used, 0 for all: few make several conditions true at once.
        narrow: whether other values are but three, so that a value meets the average of its column.
    """

    rows: int
    exact: float = 0.5
    repeat: float = 0.0
    nulls: float = 0.0
    spread: bool = False
    focus: int = 0
    narrow: bool = False


_PLANS = (
    Plan(8),
    Plan(9, exact=0.7, narrow=True),
    Plan(12, exact=0.65),
    Plan(12, exact=0.8, spread=True),
    Plan(10, exact=0.6, repeat=0.35),
    Plan(14, exact=0.5, nulls=0.15),
    Plan(16, exact=0.35, spread=True),
    Plan(7, exact=0.55, spread=True),
    Plan(6, exact=0.9, repeat=0.2),
    Plan(20, exact=0.6, spread=True),
    Plan(28, exact=0.45, repeat=0.1),
)
_NULL_PLANS = (Plan(12, nulls=0.35), Plan(16, exact=0.7, nulls=0.35))  # where the reference asks for NULL
_MORE_PLANS = (
    Plan(14, exact=0.95, focus=1),
    Plan(18, exact=0.85, spread=True),
    Plan(24, exact=0.9, repeat=0.2, focus=1),
    Plan(40, exact=0.5),
    Plan(40, exact=0.8, focus=1),
    Plan(50, exact=0.35),
    Plan(50, exact=0.6, focus=1),
    Plan(16, exact=1.0),
)
_ANSWER_PLANS = (
    Plan(14, exact=0.7),
    Plan(20, exact=0.5, spread=True),
    Plan(16, exact=0.9),
    Plan(24, exact=0.6, nulls=0.1),
    Plan(36, exact=0.65),
)


@dataclass(frozen=True, slots=True)
class Case:
    """A database and what the reference returns on it; `telling` if that is more than nothing."""

    database: Database
    expected: Expected
    telling: bool


@dataclass(frozen=True, slots=True)
class Suite:
    """The databases of a context and a reference, and what is needed to make more of them.

    `fault` says why the reference itself cannot be run on any; there are no cases then.
    """

    schema: Schema
    reference: Query
    use: Use
    plan: OrderPlan | None
    ordered: bool
    seed: str
    cases: tuple[Case, ...]
    fault: str | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an answer returns what the reference returns; if not, the category and a sentence."""

    match: bool
    category: str | None = None
    why: str = ""


@lru_cache(maxsize=64)
def suite_of(context: str, answer: str) -> Suite | Fault:
    """The suite of a context and a reference; a fault if the reference is not a query."""
    schema = read_schema(context)
    reference = read_in_context(answer, context)
    if isinstance(reference, Fault):
        return reference
    tree = reference.qualified or reference.tree
    plan = order_plan(reference.tree)
    suite = Suite(
        schema=schema,
        reference=reference,
        use=use_of(tree, schema),
        plan=plan,
        ordered=reference.tree.args.get("order") is not None,
        seed=f"{context}\n{answer}",
        cases=(),
        fault=None,
    )
    return _filled(suite)


def _filled(suite: Suite) -> Suite:
    deadline = Deadline(SECONDS)
    cases: list[Case] = []
    fault = "the reference runs on no database"
    try:
        drawing = _Drawing.of(suite, suite.use)
        for case in drawing.cases(_base_plans(suite.use), "base", deadline):
            cases.append(case)
        for plan in _MORE_PLANS:
            if sum(case.telling for case in cases) >= _TELLING:
                break
            cases.extend(drawing.cases((plan,), "more", deadline))
    except SandboxError as error:
        fault = f"the reference does not run: {error}"
    return Suite(
        suite.schema,
        suite.reference,
        suite.use,
        suite.plan,
        suite.ordered,
        suite.seed,
        tuple(cases),
        None if cases else fault,
    )


def _base_plans(use: Use) -> tuple[Plan, ...]:
    return (*_PLANS, _counting(use), *(_NULL_PLANS if use.nulls else ()))


def _counting(use: Use) -> Plan:
    """A plan with rows enough for the numbers that counts and LIMITs are compared with."""
    most = max(use.counts, default=1)
    return Plan(min(_MAX_SIZE, max(10, 3 * most + 4)), exact=0.7)


@dataclass(frozen=True, slots=True)
class _Drawing:
    """What all databases of a suite have in common: the columns of each table with their domains, and the query."""

    suite: Suite
    columns: dict[str, list[tuple[Column, Domain]]]
    kinds: dict[str, dict[str, str]]
    unique: set[Column]
    required: set[Column]
    sql: str

    @classmethod
    def of(cls, suite: Suite, use: Use) -> _Drawing:
        """For columns that are used so: by the reference, or by the reference and an answer."""
        found = domains(suite.schema, use)
        kinds = affinities(suite.schema, found)
        columns = {table: [item for item in found.items() if item[0][0] == table] for table in kinds}
        sql = engine_text(suite.plan.tree) if suite.plan else suite.reference.engine_sql
        unique = _unique_keys(use) | {column for column in found if suite.schema.is_unique(*column)}
        required = {column for column in found if suite.schema.is_required(*column)}
        return cls(suite, columns, kinds, unique, required, sql)

    def cases(self, plans: Iterable[Plan], kind: str, deadline: Deadline) -> Iterator[Case]:
        """One database per plan, with what the reference returns on it; none where that takes too long or too much."""
        for number, plan in enumerate(plans):
            rng = random.Random(hashlib.sha256(f"{kind} {number} {plan} {self.suite.seed}".encode()).digest())
            rows_of = {table: _rows(rng, plan, columns, self) for table, columns in self.columns.items()}
            database = Database({table: Table(self.kinds[table], rows) for table, rows in rows_of.items()})
            try:
                rows = database.run(self.sql, deadline)
            except SandboxError as error:
                if error.category == "not_executable":
                    raise
                if error.category == "timeout":
                    return
                continue
            yield Case(database, expected_rows(rows, self.suite.plan, self.suite.ordered), _is_telling(rows))


def _is_telling(rows: list[Row]) -> bool:
    return any(value not in (None, 0, "") for row in rows for value in row)


def _unique_keys(use: Use) -> set[Column]:
    """Keys that hold each value once, so that a grouped join has one value for each column that is not grouped.

    `SELECT a.name, COUNT(*) FROM a JOIN b ON a.id = b.a_id GROUP BY a.id` is well defined only if `a.id` is a key.
    """
    if not use.joined:
        return set()
    tables = {table for table, _ in use.loose}
    near = set(use.grouped)
    for left, right in use.links:
        if left in use.grouped:
            near.add(right)
        if right in use.grouped:
            near.add(left)
    return {column for column in near if column[0] in tables}


def _rows(rng: random.Random, plan: Plan, columns: list[tuple[Column, Domain]], drawing: _Drawing) -> list[Row]:
    size = max(2, round(plan.rows * (0.6 + 0.8 * rng.random())))
    keys = {column: _key_values(rng, domain, size) for column, domain in columns if column in drawing.unique}
    full = replace(plan, nulls=0.0)
    rows: list[Row] = []
    for at in range(size):
        if rows and not keys and rng.random() < plan.repeat:
            rows.append(rows[-1])
            continue
        rows.append(
            tuple(
                keys[column][at]
                if column in keys
                else _value(rng, full if column in drawing.required else plan, domain, at)
                for column, domain in columns
            )
        )
    rng.shuffle(rows)
    return rows


def _key_values(rng: random.Random, domain: Domain, size: int) -> list[object]:
    """`size` different values: those of the domain first, for they are what other tables refer to."""
    values = [*domain.exact, *domain.near, *domain.plain]
    rng.shuffle(values)
    extra = range(1000, 1000 + max(0, size - len(values)))
    return [*values, *(number if domain.numeric else f"key {number}" for number in extra)][:size]


def _value(rng: random.Random, plan: Plan, domain: Domain, at: int) -> object:
    if plan.nulls and rng.random() < plan.nulls:
        return None
    if domain.exact and rng.random() < plan.exact * (0.4 if domain.ranked else 1.0):
        return _skewed(rng, domain.exact[: plan.focus] if plan.focus else domain.exact, even=True)
    if not domain.exact and plan.spread:
        number = int(rng.random() * 40) * 100 + at * 2
        return number if domain.numeric else f"{_skewed(rng, domain.plain, even=True)} {at}"
    if domain.near and rng.random() < 0.7:
        return _skewed(rng, domain.near, even=True)
    values = domain.plain or domain.exact
    return _skewed(rng, values[:3] if plan.narrow else values, even=plan.narrow)


def _skewed(rng: random.Random, values: tuple[object, ...], *, even: bool) -> object:
    """One of the values; the first ones more often unless `even`, so that groups are of different sizes."""
    return values[int(len(values) * rng.random() ** (1 if even else 1.8))]


def compare(suite: Suite, answer: Query, use: Use) -> Verdict:
    """Run an answer, which uses its columns so, on the databases of a suite until one shows a difference."""
    deadline = Deadline(SECONDS)
    for case in suite.cases:
        difference = _difference(case, answer, deadline)
        if difference is not None:
            return difference
    if has_new_literals(suite.use, use):
        drawing, reference_deadline = _Drawing.of(suite, merged(suite.use, use)), Deadline(SECONDS)
        try:
            for case in drawing.cases(_ANSWER_PLANS, "answer", reference_deadline):
                difference = _difference(case, answer, deadline)
                if difference is not None:
                    return difference
        except SandboxError:
            return Verdict(True)
    return Verdict(True)


def _difference(case: Case, answer: Query, deadline: Deadline) -> Verdict | None:
    try:
        rows = case.database.run(answer.engine_sql, deadline)
    except SandboxError as error:
        return Verdict(False, error.category, str(error))
    if same_rows(case.expected, rows):
        return None
    return Verdict(
        False, "wrong_result", f"the query runs but returns {_told(rows)}, the reference {_due(case.expected)}"
    )


def _told(rows: list[Row]) -> str:
    first = f", first {_shortened(rows[0])}" if rows else ""
    return f"{len(rows)} row{'s' * (len(rows) != 1)}{first}"


def _due(expected: Expected) -> str:
    first = f", first {_shortened(expected.groups[0][0][0])}" if expected.groups and expected.size else ""
    return f"{expected.size} row{'s' * (expected.size != 1)}{first}"


def _shortened(row: Row) -> str:
    text = ", ".join(str(value)[:40] for value in row[:6])
    return f"({text})"
