"""SQL create-context: from a question and the CREATE TABLE statements of its tables to a query.

One task file: record, training text, baseline prompt, scorer, published numbers. How a query is found, read, run and
compared is in `tasks.sql`, the records of source `bundled` in `tasks.sql.bundled`.

    context   CREATE TABLE ferries (name VARCHAR, seats INTEGER)
    question  Which ferries have more than 40 seats?
    answer    SELECT name FROM ferries WHERE seats > 40

Data: b-mc2/sql-create-context, made from WikiSQL and Spider. It writes string literals in double quotes, lists only
the columns that the query uses, and guesses their types from the query; it has one split, which is carved here.
Column order counts in `execution_match` (SELECT a, b is not SELECT b, a), column names do not.
The study: Anyscale, "Fine-Tuning Llama-2: A Comprehensive Case Study for Tailoring Models to Unique Applications"
(August 2023). Its check is `execution_blog`; it dropped the rows that use a VARCHAR as a number, which here run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from tasks.base import Completion, HubSource, Metric, Published, Record, Score, Segment, Task
from tasks.sql.blog import execution_blog
from tasks.sql.extraction import Reading, readings
from tasks.sql.normalise import normal_form
from tasks.sql.query import Fault, Query, is_query, read_in_context
from tasks.sql.schema import read_schema
from tasks.sql.suite import Suite, Verdict, compare, suite_of
from tasks.sql.use import Use, merged, use_of
from tasks.sql.values import domains, type_conflict

START_Q, END_Q, START_A, END_A = "<START_Q>", "<END_Q>", "<START_A>", "<END_A>"
START_CTX, END_CTX = "<START_CTX>", "<END_CTX>"

METRICS = (
    Metric("execution_match", "returns what the reference returns on every generated database", headline=True),
    Metric("ast_match", "the same query as the reference once both are in normal form", headline=True),
    Metric("parse_valid", "parses as one statement that only reads"),
    Metric("schema_valid", "every table and column is one of the context"),
    Metric("exact", "the text of the reference, white space and a final semicolon aside"),
    Metric("execution_blog", "the study's check: texts of two results on one table of ten rows; for comparison only"),
    Metric(
        "format_violation", "not one query that only reads, or a query with other text around", higher_is_better=False
    ),
)

# Listed in the order in which they are looked for: the first that applies is the category of an answer.
ERRORS = {
    "empty": "nothing but white space",
    "truncated": "cut off by the token limit before it became a query",
    "too_complex": "too long or too deeply nested to be read safely",
    "not_sql": "holds no text that parses as a query",
    "writes": "a statement that does more than read (INSERT, DROP, PRAGMA, ATTACH ...), alone or among others",
    "several_statements": "more than one statement",
    "unknown_table": "a table that the context does not have",
    "unknown_column": "a column that the context does not have, or that could be of several tables",
    "not_executable": "SQLite refuses it: an unknown or forbidden function, a value too large, a misused aggregate",
    "timeout": "does not end within the time limit",
    "too_many_rows": "returns more rows than any right answer does",
    "wrong_type": "another result, and a column used against its type",
    "wrong_result": "runs, but returns something else than the reference",
}

FORMAT_ERRORS = frozenset({"empty", "truncated", "too_complex", "not_sql", "writes", "several_statements"})


def render(record: Record) -> tuple[Segment, ...]:
    """Training text: context and question, unsupervised, then the query and the stop token, supervised."""
    question = f"{START_Q}{START_CTX}{record['context']}{END_CTX}{record['question']}{END_Q}{START_A}"
    return Segment(question, loss=False), Segment(f"{record['answer']}{END_A}", loss=True)


def reference(record: Record) -> str:
    """The gold query."""
    return str(record["answer"])


_INSTRUCTION = """\
Write one SQL query that answers a question about a database. The CREATE TABLE statements show the tables and columns \
that there are; use no others. The data is not shown.

Use a single SELECT statement that SQLite can run. Select exactly what the question asks for, in the order in which it \
asks. Write the query between <SQL> and </SQL>, and nothing else."""


def baseline_prompt(record: Record, shots: Sequence[Record] = ()) -> str:
    """The task in words for models that were not tuned: rules, then worked examples, then tables and question."""
    examples = (f"{_asked(shot)}\nQuery: <SQL>{shot['answer']}</SQL>" for shot in shots)
    return "\n\n".join((_INSTRUCTION, *examples, f"{_asked(record)}\nQuery:"))


def _asked(record: Record) -> str:
    return f"Tables: {record['context']}\nQuestion: {record['question']}"


def score(record: Record, completion: Completion) -> Score:
    """Judge one completion; see `METRICS` and `ERRORS`. Never raises; a hostile query costs only its own score."""
    text = completion.text.encode("utf-8", errors="replace").decode("utf-8")
    context, gold = str(record["context"]), reference(record)
    if not text.strip():
        return _refused(Reading("", False), Fault("empty", "the answer is empty"), gold)
    reading, query = _first_query(text, context)
    if isinstance(query, Fault):
        if completion.truncated and query.category == "not_sql":
            query = Fault("truncated", f"cut off by the token limit: {query.why}")
        return _refused(reading, query, gold)
    return _judged(reading, query, context, gold)


def _first_query(text: str, context: str) -> tuple[Reading, Query | Fault]:
    """The first reading of a text that is a query whose names resolve; else the first query; else the first fault."""
    first: tuple[Reading, Query | Fault] | None = None
    for reading in readings(text):
        query = read_in_context(reading.sql, context)
        if isinstance(query, Query) and query.fault is None:
            return reading, query
        if first is None or (isinstance(first[1], Fault) and isinstance(query, Query)):
            first = reading, query
        if isinstance(query, Fault) and query.category in ("too_complex", "writes", "several_statements"):
            break
    return first or (Reading("", False), Fault("not_sql", "the answer holds no text that could be a query"))


def _refused(reading: Reading, fault: Fault, gold: str) -> Score:
    parsed = {"sql": _short(reading.sql, 2000)} if reading.sql else None
    metrics = _metrics(exact=bool(reading.sql) and _squeezed(reading.sql) == _squeezed(gold), format_violation=True)
    return Score(metrics, parsed, fault.category, _short(fault.why))


def _judged(reading: Reading, query: Query, context: str, gold: str) -> Score:
    exact = _squeezed(reading.sql) == _squeezed(gold)
    suite = suite_of(context, gold)
    if isinstance(suite, Fault):  # `accepts` keeps such records out; a caller may still have made one
        return _against_text(reading, query, exact, suite.why)
    same = _normal(query.text, context) == _normal(gold, context)
    use = use_of(query.qualified or query.tree, suite.schema)
    if suite.fault is not None:
        verdict = Verdict(same, "wrong_result", f"not the query of the reference, which cannot be run: {suite.fault}")
    else:
        verdict = compare(suite, query, use)
    metrics = _metrics(
        parse_valid=True,
        schema_valid=query.fault is None,
        ast_match=same,
        execution_match=verdict.match,
        exact=exact,
        execution_blog=execution_blog(suite.reference, query, suite.schema, merged(suite.use, use)),
        format_violation=not reading.clean,
    )
    error, why = _explained(query, verdict, suite, use)
    return Score(metrics, {"sql": _short(reading.sql, 2000)}, error, _short(why))


def _against_text(reading: Reading, query: Query, exact: bool, why: str) -> Score:
    metrics = _metrics(
        parse_valid=True,
        schema_valid=query.fault is None,
        ast_match=exact,
        execution_match=exact,
        exact=exact,
        format_violation=not reading.clean,
    )
    error = None if exact else "wrong_result"
    return Score(metrics, {"sql": _short(reading.sql, 2000)}, error, _short(f"the reference is no query: {why}"))


def _explained(query: Query, verdict: Verdict, suite: Suite, use: Use) -> tuple[str | None, str]:
    if verdict.match:
        if suite.fault is not None:
            return None, f"the same query as the reference, which cannot be run: {suite.fault}"
        return None, f"returns what the reference returns on {len(suite.cases)} databases"
    if query.fault is not None:
        return query.fault.category, query.fault.why
    if verdict.category == "wrong_result":
        conflict = type_conflict(domains(suite.schema, suite.use), use, suite.use)
        if conflict is not None:
            return "wrong_type", f"{conflict}; {verdict.why}"
    return verdict.category, verdict.why


@lru_cache(maxsize=256)
def _normal(text: str, context: str) -> str | None:
    query = read_in_context(text, context)
    return None if isinstance(query, Fault) else normal_form(query)


def _metrics(**values: float) -> dict[str, float]:
    return {metric.name: float(values.get(metric.name, 0.0)) for metric in METRICS}


def _squeezed(sql: str) -> str:
    """One space for any white space, no semicolon at the end."""
    return " ".join(sql.split()).rstrip("; ")


def _short(text: str, most: int = 500) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def accepts(record: Record) -> bool:
    """Whether the reference of this row is a query: a row without one is of no use for scoring."""
    return is_query(reference(record), str(record["context"]))


def label(record: Record) -> str:
    """How many tables the context has."""
    tables = len(read_schema(str(record["context"])).tables)
    return f"{tables} table" + "s" * (tables != 1)


def carve(fields: Mapping[str, Any]) -> str:
    """The split of a row, by a hash of its context: 90 % train, 5 % valid, 5 % test, and no context in two of them."""
    context = " ".join(str(fields["context"]).split())
    percent = int.from_bytes(hashlib.sha256(context.encode("utf-8", errors="replace")).digest()[:8], "big") % 100
    return "train" if percent < 90 else "valid" if percent < 95 else "test"


def generate(split: str) -> Iterable[Mapping[str, Any]]:
    """Rows of source `bundled`: made by our own code, in the form of the corpus."""
    from tasks.sql.bundled import generate as generate_rows

    return generate_rows(split)


_STUDY = "Anyscale, Fine-Tuning Llama-2: A Comprehensive Case Study, August 2023"
_TUNED = "full-parameter tuned, special tokens"

# The study's figures are its own check on the rows that it kept, about 45,000 of 78,577.
PUBLISHED = (
    Published("Llama-2-13B-chat", "prompt, not tuned", "execution_blog", 0.42, f"{_STUDY}, text"),
    Published("Llama-2-13B", _TUNED, "execution_blog", 0.89, f"{_STUDY}, text"),
    Published("Llama-2-7B", _TUNED, "execution_blog", 0.90, f"{_STUDY}, caption (about)", approximate=True),
    Published("Llama-2-13B", _TUNED, "execution_blog", 0.90, f"{_STUDY}, caption (about)", approximate=True),
)

TASK = Task(
    name="sql_create_context",
    version="1",
    description="question and CREATE TABLE statements -> SQL query, judged by what it returns",
    columns=("question", "context", "answer"),
    special_tokens=(START_Q, END_Q, START_A, END_A, START_CTX, END_CTX),
    token_descriptions={
        START_Q: "question:",
        END_Q: "end of question",
        START_CTX: "tables:",
        END_CTX: "end of tables",
        START_A: "query:",
        END_A: "end of text",
    },
    stop=END_A,
    max_new_tokens=256,  # the longest of 16,224 real queries has 557 characters, about 200 Llama-2 tokens
    render=render,
    reference=reference,
    baseline_prompt=baseline_prompt,
    baseline_stop=("</SQL>", "\nTables:", "\nQuestion:"),
    score=score,
    metrics=METRICS,
    errors=ERRORS,
    format_errors=FORMAT_ERRORS,
    hub=HubSource(
        "b-mc2/sql-create-context",
        splits={"train": "train", "valid": "train", "test": "train"},
        licence="CC-BY-4.0",
    ),
    generate=generate,
    carve=carve,
    accepts=accepts,
    label=label,
    published=PUBLISHED,
    language="en",
)
