"""Brings a query into a normal form, so that two ways of writing the same query give the same text (`ast_match`).

Used after `tasks.sql.query`, whose qualified tree it takes. The normal form has

- every column with its table, names in lower case,
- tables called by their own names, numbered where one is read several times, and no output aliases,
- the operands of AND, OR, = and <> sorted, and a chain of ANDs or ORs flat,
- no parentheses but those that an operand needs,
- comparisons with the value on the right (`5 < a` is `a > 5`), INNER JOIN as JOIN, ASC left out.

What it does not do: move conditions between ON and WHERE, rewrite BETWEEN, or reorder joins; those are for execution.
Normalising a normal form changes nothing.
"""

from __future__ import annotations

from collections import Counter

from sqlglot import exp
from sqlglot.optimizer.normalize_identifiers import normalize_identifiers

from tasks.sql.query import DIALECT, Fault, Query, read_query
from tasks.sql.schema import Schema

_FLIPPED: dict[type[exp.Expr], type[exp.Binary]] = {
    exp.EQ: exp.EQ,
    exp.NEQ: exp.NEQ,
    exp.LT: exp.GT,
    exp.LTE: exp.GTE,
    exp.GT: exp.LT,
    exp.GTE: exp.LTE,
}
_OPERATIONS = (exp.Binary, exp.Not, exp.Between, exp.In, exp.Neg)


def normalise(sql: str, schema: Schema) -> str | None:
    """The normal form of a text, None if it is not one query."""
    query = read_query(sql, schema)
    return None if isinstance(query, Fault) else normal_form(query)


def normal_form(query: Query) -> str:
    """The normal form of a query. One whose names do not resolve is brought as far as is possible without."""
    if query.qualified is not None:
        tree: exp.Expr = query.qualified.copy()
    else:
        tree = normalize_identifiers(query.tree.copy(), dialect=DIALECT)
    tree = _without_parentheses(tree)
    for select in list(tree.find_all(exp.Select)):
        _plain_order(select)
    _plain_names(tree)
    _plain_joins(tree)
    for ordered in list(tree.find_all(exp.Ordered)):
        ordered.set("desc", bool(ordered.args.get("desc")) or None)
        ordered.set("nulls_first", not ordered.args.get("desc"))  # the dialect's default, which is not written out
    for node in reversed(list(tree.find_all(*_FLIPPED, exp.And, exp.Or))):
        _sorted_operands(node)
    _with_parentheses(tree)
    return _text(tree, copy=False)  # the tree is this function's own


def _text(node: exp.Expr, *, copy: bool = True) -> str:
    return DIALECT.generate(node, copy=copy, comments=False, identify=True)


def _without_parentheses(tree: exp.Expr) -> exp.Expr:
    while isinstance(tree, (exp.Paren, exp.Subquery)) and not _carries_more(tree):
        tree = tree.this
        tree.parent = None
    for paren in list(tree.find_all(exp.Paren)):
        paren.replace(paren.this)
    return tree


def _carries_more(node: exp.Expr) -> bool:
    """Whether a query in parentheses has an ORDER BY, LIMIT or alias of its own outside of them."""
    return any(value for key, value in node.args.items() if key != "this")


def _plain_order(select: exp.Select) -> None:
    """ORDER BY, GROUP BY and HAVING without the output aliases, then the outputs without them."""
    named = {item.alias: item.this for item in select.expressions if isinstance(item, exp.Alias)}
    for clause in ("order", "group", "having"):
        part = select.args.get(clause)
        for column in list(part.find_all(exp.Column)) if part else ():
            if not column.table and column.name in named and column.find_ancestor(exp.Select) is select:
                column.replace(named[column.name].copy())
    if not isinstance(_holder(select), (exp.CTE, exp.From, exp.Join, exp.Table)):
        select.set("expressions", [item.this if isinstance(item, exp.Alias) else item for item in select.expressions])


def _holder(select: exp.Expr) -> exp.Expr | None:
    """What a select stands in, set operations and parentheses aside: a derived table keeps its column names."""
    parent = select.parent
    while isinstance(parent, (exp.SetOperation, exp.Subquery)):
        parent = parent.parent
    return parent


def _plain_names(tree: exp.Expr) -> None:
    """Call the tables of each select by their own names and the depth at which they stand; number those read twice."""
    selects = list(tree.find_all(exp.Select))
    names = {id(select): _names(select) for select in selects}
    owners = [(column, _owner(column, names)) for column in tree.find_all(exp.Column) if column.table]
    for column, owner in owners:
        if owner is not None:
            column.set("table", exp.to_identifier(owner[column.table], quoted=True))
    for select in selects:
        for source in _sources(select):
            name = names[id(select)][source.alias_or_name]
            source.set("alias", exp.TableAlias(this=exp.to_identifier(name, quoted=True)))


def _names(select: exp.Select) -> dict[str, str]:
    depth = 0
    outer = select.parent_select
    while outer is not None:
        depth, outer = depth + 1, outer.parent_select
    seen: Counter[str] = Counter()
    names: dict[str, str] = {}
    for source in _sources(select):
        own = source.name if isinstance(source, exp.Table) else "query"
        seen[own] += 1
        names[source.alias_or_name] = f"{own}@{depth}" + (f"#{seen[own]}" if seen[own] > 1 else "")
    return names


def _owner(column: exp.Column, names: dict[int, dict[str, str]]) -> dict[str, str] | None:
    """The names of the innermost select around a column that reads a table of the column's prefix."""
    select = column.find_ancestor(exp.Select)
    while select is not None:
        if column.table in names[id(select)]:
            return names[id(select)]
        select = select.find_ancestor(exp.Select)
    return None


def _sources(select: exp.Select) -> list[exp.Table | exp.Subquery]:
    parts = [select.args.get("from_") or select.args.get("from"), *(select.args.get("joins") or ())]
    return [part.this for part in parts if part is not None and isinstance(part.this, (exp.Table, exp.Subquery))]


def _plain_joins(tree: exp.Expr) -> None:
    for join in tree.find_all(exp.Join):
        if (join.kind or "").upper() in ("INNER", "CROSS") and not join.side:
            join.set("kind", None)


def _sorted_operands(node: exp.Expr) -> None:
    """Sort the operands of a commutative node; its descendants have been sorted before."""
    if isinstance(node, tuple(_FLIPPED)):
        if _rank(node.this) > _rank(node.args["expression"]):
            node.replace(_FLIPPED[type(node)](this=node.args["expression"].copy(), expression=node.this.copy()))
    elif isinstance(node, (exp.And, exp.Or)) and type(node.parent) is not type(node):
        operands = sorted(_flat(node, type(node)), key=_text)
        chain = operands[0].copy()
        for operand in operands[1:]:
            chain = type(node)(this=chain, expression=operand.copy())
        if node.parent is None:
            node.set("this", chain.this)
            node.set("expression", chain.expression)
        else:
            node.replace(chain)


def _rank(node: exp.Expr) -> tuple[bool, str]:
    """Columns before values, then by text."""
    return isinstance(node, (exp.Literal, exp.Neg, exp.Null, exp.Boolean)), _text(node)


def _flat(node: exp.Expr, kind: type[exp.Expr]) -> list[exp.Expr]:
    found, open_ = [], [node]
    while open_:
        top = open_.pop()
        if type(top) is kind:
            open_.extend((top.args["expression"], top.this))
        else:
            found.append(top)
    return found


def _with_parentheses(tree: exp.Expr) -> None:
    """Parentheses around each operation that is an operand, but for chains of the same AND or OR."""
    for node in reversed(list(tree.find_all(*_OPERATIONS))):  # inner ones first: an outer one is copied with them
        parent = node.parent
        if not isinstance(parent, (*_OPERATIONS, exp.Is)) or isinstance(node, exp.Dot) or isinstance(parent, exp.Dot):
            continue
        if isinstance(node, exp.Connector) and type(node) is type(parent):
            continue
        if isinstance(node, exp.Neg) and isinstance(node.this, exp.Literal):
            continue
        node.replace(exp.Paren(this=node.copy()))
