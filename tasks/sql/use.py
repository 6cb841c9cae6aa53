"""What a query does with the columns of its tables: the literals they are compared with, and which belong together.

Used by `tasks.sql.suite` to make databases on which near misses of a query show, and by the scorer to name a wrong
type. The declared types of sql-create-context are guesses (a VARCHAR may well be compared with numbers), so the type of
a column is taken from its use as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from sqlglot import exp

from tasks.sql.schema import Schema

Column = tuple[str, str]  # table, column
_PREDICATES = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Like, exp.In, exp.Between)
_RANKING = (exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Between)
_ARITHMETIC = (exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Mod, exp.Neg)
_MAX_LITERAL = 120


@dataclass(slots=True)
class ColumnUse:
    """How one column is used: literals it is compared with, LIKE patterns; whether by < or > (`ranked`), and whether
    it is reckoned with.
    """

    numbers: set[float] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)
    patterns: set[str] = field(default_factory=set)
    reckoned: bool = False
    ranked: bool = False


@dataclass(slots=True)
class Use:
    """How the columns of a schema are used by one or more queries.

    Attributes:
        columns: by (table, column), lower case.
        links: pairs of columns whose values are compared with each other.
        counts: numbers that a COUNT is compared with, and LIMITs.
        loose: columns that stand in the output of a grouped query without being grouped or aggregated.
        grouped: columns of GROUP BY.
        missing: columns that a reference reads from a table which does not list them.
        nulls: columns that are asked whether they are NULL.
        joined: whether some SELECT reads two tables or more.
    """

    columns: dict[Column, ColumnUse] = field(default_factory=dict)
    links: set[tuple[Column, Column]] = field(default_factory=set)
    counts: set[int] = field(default_factory=set)
    loose: set[Column] = field(default_factory=set)
    grouped: set[Column] = field(default_factory=set)
    missing: set[Column] = field(default_factory=set)
    nulls: set[Column] = field(default_factory=set)
    joined: bool = False

    def of(self, column: Column) -> ColumnUse:
        """The use of a column, made on demand."""
        return self.columns.setdefault(column, ColumnUse())


def use_of(tree: exp.Query, schema: Schema) -> Use:
    """How a query uses the columns of a schema."""
    use = Use()
    reader = _Reader(schema, use, {})
    for node in tree.walk():
        if isinstance(node, _PREDICATES):
            _read_predicate(node, reader)
        elif isinstance(node, exp.Is) and isinstance(node.expression, exp.Null):
            use.nulls.update(reader.columns(node))
        elif isinstance(node, (exp.Sum, exp.Avg, *_ARITHMETIC)):
            for column in reader.columns(node):
                use.of(column).reckoned = True
        elif isinstance(node, exp.Select):
            _read_select(node, reader)
        elif isinstance(node, exp.SetOperation):
            _link(reader, _outputs(node.left), _outputs(node.right))
        elif isinstance(node, (exp.Limit, exp.Offset)) and isinstance(node.expression, exp.Literal):
            use.counts.update(_counts(node.expression))
    return use


def has_new_literals(use: Use, other: Use) -> bool:
    """Whether `other` compares columns with literals that `use` does not know, or reads other columns."""
    for column, theirs in other.columns.items():
        mine = use.columns.get(column, ColumnUse())
        if theirs.numbers - mine.numbers or theirs.texts - mine.texts or theirs.patterns - mine.patterns:
            return True
    return bool(other.counts - use.counts)


def merged(use: Use, other: Use) -> Use:
    """Both uses in one; types and keys stay those of the first."""
    both = Use(links=set(use.links), counts=use.counts | other.counts, joined=use.joined)
    both.loose, both.grouped, both.missing, both.nulls = use.loose, use.grouped, use.missing, use.nulls
    for column in {**use.columns, **other.columns}:
        mine, theirs = use.columns.get(column, ColumnUse()), other.columns.get(column, ColumnUse())
        both.columns[column] = ColumnUse(
            mine.numbers | theirs.numbers,
            mine.texts | theirs.texts,
            mine.patterns | theirs.patterns,
            mine.reckoned,
            mine.ranked or theirs.ranked,
        )
    return both


@dataclass(frozen=True, slots=True)
class _Reader:
    """Leads columns of a tree back to tables of the schema."""

    schema: Schema
    use: Use
    cache: dict[int, dict[str, exp.Expr]]

    def columns(self, node: exp.Expr) -> list[Column]:
        """The columns below a node, those of nested queries aside."""
        parts = [part for part in _direct(node) if isinstance(part, exp.Column)]
        found = [self.resolve(part) for part in parts]
        return [column for column in found if column is not None]

    def resolve(self, column: exp.Column, depth: int = 0) -> Column | None:
        name, prefix = column.name.lower(), column.table.lower()
        select = column.find_ancestor(exp.Select)
        while select is not None:
            sources = self.sources(select)
            for alias, source in sources.items():
                if prefix and alias != prefix:
                    continue
                found = self._in_source(source, name, depth, sure=bool(prefix))
                if found:
                    return found
            select = select.find_ancestor(exp.Select)
        return None

    def sources(self, select: exp.Select) -> dict[str, exp.Expr]:
        if id(select) not in self.cache:
            parts = [select.args.get("from_") or select.args.get("from"), *(select.args.get("joins") or ())]
            found = [part.this for part in parts if part is not None]
            self.cache[id(select)] = {source.alias_or_name.lower(): source for source in found}
        return self.cache[id(select)]

    def _in_source(self, source: exp.Expr, name: str, depth: int, sure: bool) -> Column | None:
        table = source.name.lower()
        if isinstance(source, exp.Table) and table in self.schema.tables:
            if name in self.schema.tables[table]:
                return table, name
            if sure:
                self.use.missing.add((table, name))
                return table, name
            return None
        inner = source.this if isinstance(source, exp.Subquery) else _with_clause(source, table)
        if depth > 5 or not isinstance(inner, exp.Query):
            return None
        for item in _outputs(inner):
            plain = item.unalias()
            if item.alias_or_name.lower() == name and isinstance(plain, exp.Column):
                return self.resolve(plain, depth + 1)
        return None


def _with_clause(source: exp.Expr, name: str) -> exp.Expr | None:
    root = source.root()
    return next((cte.this for cte in root.find_all(exp.CTE) if cte.alias.lower() == name), None)


def _direct(node: exp.Expr) -> Iterator[exp.Expr]:
    """The nodes below a node, without descending into nested queries (which are given themselves)."""
    open_ = list(node.iter_expressions())
    while open_:
        part = open_.pop()
        yield part
        if not isinstance(part, exp.Query):
            open_.extend(part.iter_expressions())


def _read_predicate(node: exp.Expr, reader: _Reader) -> None:
    parts = list(_direct(node))
    literals = [part for part in parts if isinstance(part, exp.Literal)]
    if any(isinstance(part, exp.Count) for part in parts):
        for literal in literals:
            reader.use.counts.update(_counts(literal))
        return
    columns = reader.columns(node)
    totals = any(isinstance(part, exp.Sum) for part in parts)
    for column in columns:
        use = reader.use.of(column)
        use.ranked |= isinstance(node, _RANKING)
        for literal in literals:
            _note(use, literal, pattern=isinstance(node, exp.Like), total=totals)
    inner = [output for part in parts if isinstance(part, exp.Query) for output in _outputs(part)]
    for output in inner:
        if not output.find(exp.Count):
            columns.extend(_output_columns(reader, output))
    for left, right in zip(columns, columns[1:], strict=False):
        if left != right:
            reader.use.links.add((left, right))


def _output_columns(reader: _Reader, output: exp.Expr) -> list[Column]:
    """The columns of an output, which may be a column itself."""
    plain = output.unalias()
    own = [plain] if isinstance(plain, exp.Column) else [c for c in _direct(plain) if isinstance(c, exp.Column)]
    return [found for column in own if (found := reader.resolve(column)) is not None]


def _note(use: ColumnUse, literal: exp.Literal, pattern: bool, total: bool) -> None:
    if literal.is_string:
        (use.patterns if pattern else use.texts).add(literal.this[:_MAX_LITERAL])
        return
    value = _number(literal)
    if value is not None:
        use.numbers.add(value)
        if total:
            use.numbers.update((round(value / 2), round(value / 3)))


def _number(literal: exp.Literal) -> float | None:
    try:
        value = float(literal.this)
    except ValueError:
        return None
    if not abs(value) < 1e15:
        return None
    value = -value if isinstance(literal.parent, exp.Neg) else value
    return int(value) if value.is_integer() else value


def _counts(literal: exp.Literal) -> set[int]:
    value = None if literal.is_string else _number(literal)
    return {int(value)} if value is not None and 0 <= value <= 100 else set()


def _read_select(select: exp.Select, reader: _Reader) -> None:
    reader.use.joined |= len(reader.sources(select)) > 1
    group = select.args.get("group")
    aggregated = group is not None or any(item.find(exp.AggFunc) for item in select.expressions)
    if not aggregated:
        return
    keys = set(reader.columns(group)) if group is not None else set()
    reader.use.grouped |= keys
    for item in [*select.expressions, *filter(None, [select.args.get("order")])]:
        for column in item.find_all(exp.Column):
            if column.find_ancestor(exp.Select) is select and column.find_ancestor(exp.AggFunc) is None:
                found = reader.resolve(column)
                if found is not None and found not in keys:
                    reader.use.loose.add(found)


def _outputs(query: exp.Expr | None) -> list[exp.Expr]:
    while isinstance(query, (exp.SetOperation, exp.Subquery)):
        query = query.this
    return list(query.expressions) if isinstance(query, exp.Select) else []


def _link(reader: _Reader, left: list[exp.Expr], right: list[exp.Expr]) -> None:
    for one, other in zip(left, right, strict=False):
        for a in _output_columns(reader, one):
            for b in _output_columns(reader, other):
                if a != b:
                    reader.use.links.add((a, b))
