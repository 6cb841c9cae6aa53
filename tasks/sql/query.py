"""Reads a text as one SQL query and resolves its tables and columns against a schema.

Used after `tasks.sql.extraction`, for the reference and for the answer alike. The dialect is that of
sql-create-context: MySQL's grammar, in which double quotes hold strings, with names that ignore letter case. Three of
MySQL's rules are not the corpus's and are undone: `||` joins strings, and a double-quoted or bare word that is the name
of a column of the schema is that column where only a column makes sense (`SELECT "2006"`, `WHERE group = "a"`).

sqlglot has no time limit, so texts that could keep it busy are refused by size before it sees them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from sqlglot import exp
from sqlglot.dialects.dialect import NormalizationStrategy
from sqlglot.dialects.mysql import MySQL
from sqlglot.dialects.sqlite import SQLite
from sqlglot.errors import ErrorLevel, SqlglotError
from sqlglot.optimizer.qualify import qualify
from sqlglot.parsers.mysql import MySQLParser
from sqlglot.schema import MappingSchema
from sqlglot.tokenizer_core import Token, TokenType

from tasks.sql.schema import Schema, read_schema

# it warns of every text that it can only take for a command, with the text; such an answer is refused here anyway
logging.getLogger("sqlglot").setLevel(logging.ERROR)

Read = TypeVar("Read")

MAX_CHARACTERS = 20_000
MAX_TOKENS = 2_500
MAX_DEPTH = 20
MAX_EXPANDED_TABLES = 64
MAX_STARS = 8


class _CreateContext(MySQL):
    """`mysql, normalization_strategy=case_insensitive`, with `||` as concatenation and [names] as SQLite takes them."""

    NORMALIZATION_STRATEGY = NormalizationStrategy.CASE_INSENSITIVE

    class Tokenizer(MySQL.Tokenizer):
        IDENTIFIERS = ["`", ("[", "]")]

    class Parser(MySQLParser):
        DISJUNCTION = {kind: node for kind, node in MySQLParser.DISJUNCTION.items() if kind != TokenType.DPIPE}
        TERM = {**MySQLParser.TERM, TokenType.DPIPE: exp.DPipe}


class _BacktickSQLite(SQLite):
    """SQLite text with names in backticks: unlike an unknown "name", an unknown `name` does not become a string."""

    class Tokenizer(SQLite.Tokenizer):
        IDENTIFIERS = ["`"]


DIALECT = _CreateContext()
_ENGINE = _BacktickSQLite()

_COMPARISONS = {
    TokenType.EQ,
    TokenType.NEQ,
    TokenType.GT,
    TokenType.GTE,
    TokenType.LT,
    TokenType.LTE,
    TokenType.LIKE,
    TokenType.IN,
    TokenType.BETWEEN,
    TokenType.IS,
}
_BEFORE_VALUE = _COMPARISONS | {TokenType.LIMIT, TokenType.OFFSET, TokenType.COMMA, TokenType.AND, TokenType.L_PAREN}
_SELECT_WORDS = {TokenType.SELECT, TokenType.DISTINCT, TokenType.GROUP_BY, TokenType.ORDER_BY}
_AGGREGATES = {"count", "sum", "avg", "min", "max", "total"}
_WRITES: tuple[type[exp.Expr], ...] = (
    exp.Insert, exp.Update, exp.Delete, exp.Drop, exp.Create, exp.Alter, exp.Command, exp.Merge, exp.Set, exp.Use,
    exp.Pragma, exp.Attach, exp.Detach, exp.Transaction, exp.Commit, exp.Rollback, exp.TruncateTable, exp.Grant,
    exp.Describe, exp.Show, exp.Analyze, exp.LoadData, exp.Kill, exp.Into, exp.Copy,
)  # fmt: skip
# What sqlglot makes of English that begins with Show, Use, Set, Explain ...
_PROSE = (exp.Command, exp.Show, exp.Use, exp.Set, exp.Describe, exp.Analyze, exp.Kill)
# How statements other than queries begin; also for those that sqlglot does not know or takes for an expression.
WRITE_START = re.compile(
    r"[\s(]*(?:(?:insert|replace)\s+(?:or\s+\w+\s+)?into\b|delete\s+from\b|update\s+\S+\s+set\b|merge\s+into\b|"
    r"drop\s+(?:table|view|index|trigger|database|column)\b|truncate\s|alter\s+table\b|pragma\s|vacuum\b|reindex\b|"
    r"create\s+(?:or\s+replace\s+)?(?:unique\s+)?(?:temp\w*\s+)?(?:table|view|index|trigger|virtual|database)\b|"
    r"(?:attach|detach)\s+(?:database\b|['\"])|explain\s+(?:query\s+plan\s+)?(?:select|with)\b|savepoint\s|"
    r"begin\s*(?:;|\Z|transaction|exclusive|immediate|deferred)|(?:grant|revoke)\s.{1,80}\son\s)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a text is not a usable query: an error category of the task and a sentence."""

    category: str
    why: str


@dataclass(frozen=True, slots=True)
class Query:
    """A statement that only reads.

    Attributes:
        text: as extracted.
        tree: as parsed.
        qualified: with every column led back to its table; None where a name does not resolve.
        fault: which name does not resolve, and why; None if all do.
        engine_sql: the same query for SQLite.
    """

    text: str
    tree: exp.Query
    qualified: exp.Query | None
    fault: Fault | None
    engine_sql: str


@lru_cache(maxsize=256)
def read_in_context(text: str, context: str) -> Query | Fault:
    """`read_query` with a memory: an answer is often the reference to the letter. Its trees are not to be changed."""
    return read_query(text, read_schema(context))


def is_query(text: str, context: str) -> bool:
    """Whether a text is one query, its names unresolved: a third of the time that `read_query` takes."""
    return not isinstance(_read(text, read_schema(context), _within_bounds), Fault)


def read_query(text: str, schema: Schema) -> Query | Fault:
    """The one query that makes up a text, or the reason why there is none. Never raises."""
    return _read(text, schema, lambda tree: _within_bounds(tree) or _resolved(text, tree, schema))


def _read(text: str, schema: Schema, rest: Callable[[exp.Query], Read]) -> Read | Fault:
    """What `rest` makes of the one query in a text, or the reason why there is none."""
    try:
        tokens = _tokens(text, schema)
        if isinstance(tokens, Fault):
            return tokens
        trees = [tree for tree in DIALECT.parser().parse(tokens, text) if tree is not None]
        fault = _not_one_query(trees, text)
        if fault or not isinstance(trees[0], exp.Query):
            return fault or Fault("not_sql", "not a query")
        return rest(_bare(trees[0]))
    except RecursionError:
        return Fault("too_complex", "the query nests too deeply")
    except (SqlglotError, ValueError, AttributeError, TypeError, IndexError, KeyError, AssertionError) as error:
        if WRITE_START.match(text):
            return Fault("writes", "not a query but a statement of another kind")
        return Fault("not_sql", f"does not parse: {_one_line(error)}")


def _tokens(text: str, schema: Schema) -> list[Token] | Fault:
    if len(text) > MAX_CHARACTERS:
        return Fault("too_complex", f"{len(text)} characters; {MAX_CHARACTERS} are the most that are read")
    if "\x00" in text:
        return Fault("not_sql", "the text holds a null character")
    tokens: list[Token] = DIALECT.tokenize(text)
    if len(tokens) > MAX_TOKENS:
        return Fault("too_complex", f"{len(tokens)} tokens; {MAX_TOKENS} are the most that are read")
    depth = deepest = 0
    for token in tokens:
        depth += (token.token_type == TokenType.L_PAREN) - (token.token_type == TokenType.R_PAREN)
        deepest = max(deepest, depth + (token.token_type == TokenType.CASE))
    if deepest > MAX_DEPTH or sum(token.token_type in (TokenType.CASE, TokenType.NOT) for token in tokens) > 200:
        return Fault("too_complex", f"parentheses nest deeper than {MAX_DEPTH}, or too many CASE or NOT")
    _mark_columns(text, tokens, schema)
    return tokens


def _mark_columns(text: str, tokens: list[Token], schema: Schema) -> None:
    """Turn words that can only be columns into identifiers: see the head of this file."""
    columns = schema.columns
    padded: list[Token | None] = [None, None, *tokens, None]
    for two_before, before, token, after in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        if token is None or token.token_type in (TokenType.IDENTIFIER, TokenType.VAR):
            continue
        qualified = before is not None and before.token_type == TokenType.DOT
        quoted = token.token_type == TokenType.STRING and text[token.start : token.start + 1] == '"'
        if qualified and (quoted or token.token_type in (TokenType.NUMBER,)):
            token.token_type = TokenType.IDENTIFIER
        elif token.text.lower() not in columns or (token.token_type == TokenType.STRING and not quoted):
            continue
        elif (quoted and not _is_value(before, two_before, tokens)) or _only_a_column(two_before, before, after):
            token.token_type = TokenType.IDENTIFIER


def _is_value(before: Token | None, two_before: Token | None, tokens: list[Token]) -> bool:
    """Whether a string stands where a comparison has its value: `a = "b"`, `IN ("b", "c")`, `BETWEEN "b" AND "c"`."""
    if before is None:
        return False
    if before.token_type in _COMPARISONS:
        return True
    at = next(i for i, token in enumerate(tokens) if token is before)
    while at >= 0 and tokens[at].token_type in (TokenType.COMMA, TokenType.STRING, TokenType.NUMBER):
        at -= 1  # back over the items of a list
    if tokens[at].token_type == TokenType.L_PAREN:
        return at > 0 and tokens[at - 1].token_type in (TokenType.IN, TokenType.VALUES)
    return tokens[at].token_type == TokenType.AND and at > 1 and tokens[at - 2].token_type == TokenType.BETWEEN


def _only_a_column(two_before: Token | None, before: Token | None, after: Token | None) -> bool:
    """Whether a number or keyword stands where a value makes no sense: right after SELECT, or left of a comparison."""
    if before is None or after is None:
        return False
    if before.token_type == TokenType.L_PAREN and two_before is not None and two_before.text.lower() in _AGGREGATES:
        return True
    if before.token_type in _SELECT_WORDS:
        return after.token_type in (TokenType.FROM, TokenType.COMMA, TokenType.ALIAS)
    return after.token_type in _COMPARISONS and before.token_type not in _COMPARISONS


def _not_one_query(trees: list[exp.Expr], text: str) -> Fault | None:
    for tree in trees:
        written = tree.find(*_WRITES)
        if written is not None and not (isinstance(written, _PROSE) and not WRITE_START.match(text)):
            return Fault("writes", f"{type(written).__name__.upper()} is not a statement that only reads")
    if len(trees) > 1:
        queries = sum(isinstance(tree, exp.Query) for tree in trees)
        return Fault("several_statements", f"{len(trees)} statements, {queries} of them queries; wanted one")
    if not trees or not isinstance(trees[0], exp.Query) or isinstance(trees[0].unnest(), exp.Values):
        if WRITE_START.match(text):
            return Fault("writes", "not a query but a statement of another kind")
        return Fault("not_sql", "the text is not a query")
    if any(not select.expressions for select in trees[0].find_all(exp.Select)):
        return Fault("not_sql", "a SELECT that selects nothing")
    return None


def _within_bounds(tree: exp.Query) -> Fault | None:
    nodes = list(tree.find_all(exp.CTE, exp.Table, exp.Star))
    if _expanded_tables(nodes) > MAX_EXPANDED_TABLES:
        return Fault(
            "too_complex", f"reads more than {MAX_EXPANDED_TABLES} tables once its WITH clauses are written out"
        )
    if sum(isinstance(node, exp.Star) and _is_select_star(node) for node in nodes) > MAX_STARS:
        return Fault("too_complex", f"more than {MAX_STARS} times *")
    return None


def _resolved(text: str, tree: exp.Query, schema: Schema) -> Query:
    engine_sql = engine_text(tree)
    fault = _unknown_table(tree, schema)
    qualified = None
    if fault is None:
        try:
            qualified = qualify(tree.copy(), schema=_mapping(schema), dialect=DIALECT, quote_identifiers=False)
        except (SqlglotError, ValueError, AttributeError, TypeError, KeyError) as error:
            fault = _unknown_column(tree, schema, error)
    return Query(text, tree, qualified if isinstance(qualified, exp.Query) else None, fault, engine_sql)


def _bare(tree: exp.Query) -> exp.Query:
    """The query without parentheses around all of it, which SQLite does not take."""
    while isinstance(tree, exp.Subquery) and not any(value for key, value in tree.args.items() if key != "this"):
        tree = tree.this
        tree.parent = None
    return tree


def engine_text(tree: exp.Query) -> str:
    """A query as SQLite is given it: no comments, every name in backticks, every string in single quotes."""
    return _ENGINE.generate(tree, identify=True, comments=False, unsupported_level=ErrorLevel.IGNORE)


def _mapping(schema: Schema) -> MappingSchema:
    return _mapping_of(tuple((table, tuple(columns.items())) for table, columns in schema.tables.items()))


@lru_cache(maxsize=256)
def _mapping_of(tables: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]) -> MappingSchema:
    """The schema as sqlglot takes it, which is slow to make; its names are in lower case already."""
    return MappingSchema({table: dict(columns) for table, columns in tables}, dialect=DIALECT, normalize=False)


def _unknown_table(tree: exp.Query, schema: Schema) -> Fault | None:
    with_names = {cte.alias.lower() for cte in tree.find_all(exp.CTE)}
    for table in tree.find_all(exp.Table):
        plain = isinstance(table.this, exp.Identifier) and not table.args.get("db")
        if not plain or (table.name.lower() not in schema.tables and table.name.lower() not in with_names):
            known = ", ".join(schema.tables)
            return Fault("unknown_table", f"there is no table {_short(table.sql())}; the context has {_short(known)}")
    return None


def _unknown_column(tree: exp.Query, schema: Schema, error: Exception) -> Fault:
    named = {alias.alias.lower() for alias in tree.find_all(exp.Alias)} | schema.columns
    for column in tree.find_all(exp.Column):
        if not isinstance(column.this, exp.Star) and column.name.lower() not in named:
            return Fault("unknown_column", f"there is no column {_short(column.sql())} in the context")
    return Fault("unknown_column", f"a column does not resolve to one table: {_one_line(error)}")


def _is_select_star(star: exp.Star) -> bool:
    return isinstance(star.parent, (exp.Select, exp.Column))


def _expanded_tables(nodes: Sequence[exp.Expr]) -> int:
    """Tables read once every WITH clause is written out where it is used: a chain of them can double at each link.

    SQLite 3.40 writes them out while it prepares a statement, where no time limit reaches.
    """
    clauses = {node.alias.lower(): node for node in nodes if isinstance(node, exp.CTE)}
    sizes: dict[str, int] = {}

    def size(name: str) -> int:
        if name in clauses and name not in sizes:
            sizes[name] = 1  # what a clause that names itself counts for
            below = [table.name.lower() for table in clauses[name].find_all(exp.Table)]
            sizes[name] = min(max(1, sum(map(size, below))), MAX_EXPANDED_TABLES + 1)
        return sizes.get(name, 1)

    return sum(size(node.name.lower()) for node in nodes if isinstance(node, exp.Table))


def _one_line(error: BaseException) -> str:
    text = re.sub(r"\x1b\[\d*m", "", str(error))
    return _short(" ".join(text.split()), 160)


def _short(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[:most]}..."
