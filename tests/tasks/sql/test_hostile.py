"""Hostile answers: each costs its own score, within two seconds, without a trace on disk or in later scores."""

from __future__ import annotations

import gc
import os
import resource
import time
from pathlib import Path

import pytest

from tasks.base import Completion, Record
from tasks.sql.sandbox import Database, Deadline, SandboxError, Table, glob, like
from tasks.sql_create_context import FORMAT_ERRORS, TASK

SECONDS = 2.0
RECORD = Record(
    "x",
    {
        "question": "Which names are older than 30?",
        "context": "CREATE TABLE people (name VARCHAR, age INTEGER, id VARCHAR)",
        "answer": "SELECT name FROM people WHERE age > 30",
    },
)
ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) "
CROSS = ", ".join(f"people AS p{i}" for i in range(12))
CHAIN = ", ".join(f"c{i} AS (SELECT a.x FROM c{i - 1} AS a, c{i - 1} AS b)" for i in range(1, 25))
STARS = "SELECT *, * FROM (" * 20 + "SELECT * FROM people" + ") AS q" * 20
LIKE = "%a" * 60 + "b"

# name: (text, category; None where the answer is only wrong or may be of several categories)
CASES: dict[str, tuple[str, str | None]] = {
    "endless recursion": (ENDLESS + "SELECT x FROM c", None),
    "endless recursion, counted": (ENDLESS + "SELECT COUNT(*) FROM c", "timeout"),
    "endless recursion, filtered": (ENDLESS + "SELECT x FROM c WHERE x < 0", "timeout"),
    "endless recursion, sorted": (ENDLESS + "SELECT x FROM c ORDER BY x DESC LIMIT 1", "timeout"),
    "endless recursion of growing texts": (
        "WITH RECURSIVE c(x) AS (SELECT 'a' UNION ALL SELECT x || x FROM c) SELECT MAX(LENGTH(x)) FROM c",
        "not_executable",
    ),
    "recursion of long texts": (
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) "
        "SELECT COUNT(DISTINCT PRINTF('%040000d', x)) FROM c",
        None,
    ),
    "recursion that doubles": (
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c UNION ALL SELECT x FROM c) "
        "SELECT SUM(x) FROM c",
        None,
    ),
    "cross join": (f"SELECT COUNT(*) FROM {CROSS}", "timeout"),
    "cross join, rows": (f"SELECT p0.name FROM {CROSS}", "too_many_rows"),
    "cross join, sorted": (f"SELECT p0.name FROM {CROSS} ORDER BY p1.age * p2.age, p3.name", "timeout"),
    "cross join, distinct": (f"SELECT COUNT(DISTINCT p0.name || p1.name || p2.name) FROM {CROSS}", "timeout"),
    "cross join, grouped": (f"SELECT p0.name || p1.name || p2.name || p3.name, COUNT(*) FROM {CROSS} GROUP BY 1",
         "timeout"),
    "cross join of 63 tables": ("SELECT 1 FROM " + ", ".join(f"people AS p{i}" for i in range(63)), None),
    "cross join of 2,000 tables": ("SELECT 1 FROM " + ", ".join(f"people p{i}" for i in range(600)), "too_complex"),
    "WITH clauses that double": (f"WITH c0 AS (SELECT 1 AS x), {CHAIN} SELECT COUNT(*) FROM c24", "too_complex"),
    "stars that double": (STARS, "too_complex"),
    "nested correlated subqueries": (
        f"SELECT name FROM people AS a WHERE age > (SELECT COUNT(*) FROM {CROSS} WHERE p3.age > a.age)",
        "timeout",
    ),
    "window over a cross join": (f"SELECT ROW_NUMBER() OVER (ORDER BY p0.name) FROM {CROSS} LIMIT 1", "timeout"),
    "zeroblob": ("SELECT ZEROBLOB(1000000000)", "not_executable"),
    "zeroblob in a sort": ("SELECT name FROM people ORDER BY ZEROBLOB(900000000)", "not_executable"),
    "randomblob": ("SELECT HEX(RANDOMBLOB(1000000000))", "not_executable"),
    "random": ("SELECT RANDOM() FROM people", "not_executable"),
    "printf": ("SELECT PRINTF('%1000000000d', 1)", "not_executable"),
    "printf per row": ("SELECT PRINTF('%.*c', 1000000000, 'x') FROM people", "not_executable"),
    "replace bomb": (
        "SELECT REPLACE(REPLACE(HEX('aaaaaaaaaa'), '6', '" + "x" * 3000 + "'), 'x', '" + "y" * 3000 + "')",
        "not_executable",
    ),
    "group_concat bomb": (f"SELECT GROUP_CONCAT(p0.name || p1.name) FROM {CROSS}", None),
    "hex chain": ("SELECT " + "HEX(" * 17 + "'a'" + ")" * 17, "not_executable"),
    "LIKE that backtracks": (f"SELECT '{'a' * 4000}' LIKE '{LIKE}' FROM people", None),
    "LIKE that backtracks, short": (f"SELECT '{'a' * 1900}' LIKE '{LIKE}' FROM people", None),
    "NOT LIKE on a built text": (f"SELECT name FROM people WHERE HEX(HEX(HEX(name))) NOT LIKE '{'%3_' * 40}'", None),
    "GLOB that backtracks": (f"SELECT name FROM people WHERE GLOB('{'*a' * 90}b', '{'a' * 1900}')", None),
    "REGEXP": ("SELECT name FROM people WHERE name REGEXP '(a+)+$'", "not_executable"),
    "MATCH": ("SELECT name FROM people WHERE MATCH(name) AGAINST('x')", None),
    "load_extension": ("SELECT LOAD_EXTENSION('/tmp/evil.so')", "not_executable"),
    "load_file": ("SELECT LOAD_FILE('/etc/passwd')", "not_executable"),
    "readfile": ("SELECT READFILE('/etc/passwd')", "not_executable"),
    "writefile": ("SELECT WRITEFILE('{tmp}/written', 'x')", "not_executable"),
    "edit": ("SELECT EDIT('x', 'touch {tmp}/written')", "not_executable"),
    "fts3_tokenizer": ("SELECT FTS3_TOKENIZER('simple', X'4141414142424242')", "not_executable"),
    "sqlite_version": ("SELECT SQLITE_VERSION()", "not_executable"),
    "sqlite_compileoption": ("SELECT SQLITE_COMPILEOPTION_GET(1)", "not_executable"),
    "sqlite_master": ("SELECT sql FROM sqlite_master", "unknown_table"),
    "sqlite_schema in a subquery": ("SELECT name FROM people WHERE name IN (SELECT name FROM sqlite_schema)",
         "unknown_table"),
    "sqlite_dbpage": ("SELECT data FROM sqlite_dbpage", "unknown_table"),
    "table called pragma": ("SELECT name FROM pragma_table_info('people')", "unknown_table"),
    "pragma_database_list": ("SELECT file FROM pragma_database_list", "unknown_table"),
    "generate_series": ("SELECT value FROM generate_series(1, 1000000000)", "unknown_table"),
    "json_each": ("SELECT value FROM json_each('[1,2]')", "unknown_table"),
    "another database": ("SELECT name FROM temp.people", "unknown_table"),
    "information_schema": ("SELECT table_name FROM information_schema.tables", "unknown_table"),
    "ATTACH": ("ATTACH DATABASE '{tmp}/written' AS w", "writes"),
    "ATTACH without AS": ("ATTACH '{tmp}/written'", "writes"),
    "DETACH": ("DETACH DATABASE main", "writes"),
    "PRAGMA": ("PRAGMA writable_schema = 1", "writes"),
    "PRAGMA journal": ("PRAGMA journal_mode = WAL", "writes"),
    "VACUUM INTO": ("VACUUM INTO '{tmp}/written'", "writes"),
    "writable schema": ("UPDATE sqlite_master SET sql = 'x'", "writes"),
    "INSERT": ("INSERT INTO people VALUES ('a', 1, 'b')", "writes"),
    "INSERT SELECT": ("INSERT INTO people SELECT * FROM people", "writes"),
    "REPLACE": ("REPLACE INTO people VALUES ('a', 1, 'b')", "writes"),
    "UPDATE": ("UPDATE people SET age = 0", "writes"),
    "DELETE": ("DELETE FROM people", "writes"),
    "DROP": ("DROP TABLE people", "writes"),
    "ALTER": ("ALTER TABLE people RENAME TO others", "writes"),
    "CREATE": ("CREATE TABLE t AS SELECT 1", "writes"),
    "CREATE TRIGGER": ("CREATE TRIGGER t AFTER INSERT ON people BEGIN DELETE FROM people; END", "writes"),
    "CREATE VIRTUAL TABLE": ("CREATE VIRTUAL TABLE t USING fts3(x)", "writes"),
    "BEGIN": ("BEGIN EXCLUSIVE", "writes"),
    "EXPLAIN": ("EXPLAIN SELECT name FROM people", "writes"),
    "REINDEX": ("REINDEX people", "writes"),
    "write in a WITH clause": ("WITH d AS (DELETE FROM people RETURNING name) SELECT name FROM d", "writes"),
    "SELECT INTO": ("SELECT name INTO others FROM people", "writes"),
    "INTO OUTFILE": ("SELECT name FROM people INTO OUTFILE '{tmp}/written'", None),
    "INTO DUMPFILE": ("SELECT 'x' INTO DUMPFILE '{tmp}/written'", None),
    "second statement writes": ("SELECT name FROM people; DROP TABLE people", "writes"),
    "second statement writes, after a line": ("SELECT name FROM people;\n\nDELETE FROM people;", "writes"),
    "first statement writes": ("DROP TABLE people; SELECT name FROM people WHERE age > 30", "writes"),
    "two queries": ("SELECT name FROM people; SELECT age FROM people", "several_statements"),
    "a thousand queries": ("SELECT 1;" * 400, "several_statements"),
    "comment that hides a write":
         ("SELECT name FROM people WHERE age > 30 /* ; */ ; /* x */ DROP TABLE people -- SELECT", "writes"),
    "version comment": ("SELECT name FROM people WHERE age > 99 /*! UNION SELECT LOAD_FILE('/etc/passwd') */",
         "wrong_result"),
    "line comment": ("SELECT name FROM people -- ; DROP TABLE people", "wrong_result"),
    "open comment": ("SELECT name FROM people /* DROP TABLE people", None),
    "quote that never closes": ("SELECT name FROM people WHERE name = 'x", None),
    "megabyte of text": ("SELECT '" + "x" * 1_000_000 + "'", None),
    "megabyte of conditions": ("SELECT name FROM people WHERE " + " OR ".join(["age > 30"] * 100_000), "too_complex"),
    "long list": ("SELECT name FROM people WHERE age IN (" + ",".join(["1"] * 2_000) + ")", "too_complex"),
    "many columns": ("SELECT " + ", ".join(["name"] * 900) + " FROM people", None),
    "long union": (" UNION ALL ".join(["SELECT name FROM people"] * 60), None),
    "deep parentheses": ("SELECT " + "(" * 5_000 + "1" + ")" * 5_000, "too_complex"),
    "parentheses just allowed": ("SELECT " + "(" * 15 + "1" + ")" * 15 + " FROM people", "wrong_result"),
    "deep subqueries": ("SELECT * FROM (" * 12 + "SELECT name FROM people" + ") AS q" * 12, "too_complex"),
    "deep functions": ("SELECT " + "ABS(" * 12 + "age" + ")" * 12 + " FROM people", "wrong_result"),
    "deep NOT": ("SELECT name FROM people WHERE " + "NOT " * 1_000 + "age > 30", "too_complex"),
    "deep minus": ("SELECT " + "- " * 2_000 + "1", None),
    "deep CASE": ("SELECT " + "CASE WHEN 1 THEN " * 300 + "1" + " END" * 300, "too_complex"),
    "long AND": ("SELECT name FROM people WHERE " + " AND ".join(["age > 30"] * 400), None),
    "null character": ("SELECT name FROM people\x00; DROP TABLE people", "not_sql"),
    "invalid UTF-8": (b"SELECT name FROM people WHERE name = '\xff\xfe'".decode("utf-8", "surrogateescape"),
         "wrong_result"),
    "lone surrogate": ("SELECT '\ud800' FROM people", "wrong_result"),
    "huge number": ("SELECT " + "9" * 5_000 + " FROM people", None),
    "huge exponent": ("SELECT name FROM people WHERE age > 1e999999999", "wrong_result"),
    "huge LIMIT": ("SELECT name FROM people LIMIT 99999999999999999999999", None),
    "huge OFFSET": ("SELECT name FROM people LIMIT 5 OFFSET 9223372036854775807", "wrong_result"),
    "smallest integer": ("SELECT ABS(-9223372036854775808) FROM people", None),
    "parameter": ("SELECT name FROM people WHERE age > ?", None),
    "named parameter": ("SELECT name FROM people WHERE age > :age", None),
    "system variable": ("SELECT @@version FROM people", None),
    "quoted name with a quote": ("SELECT `na``me\"; DROP TABLE people; --` FROM people", "unknown_column"),
    "alias with a quote": ("SELECT name AS `x\"; DROP TABLE people; --` FROM people", "wrong_result"),
}  # fmt: skip


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize("name", CASES)
def test_hostile_answer(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, category = CASES[name]
    TASK.score(RECORD, Completion(TASK.reference(RECORD)))  # the suite is there: what is timed is the answer
    start = time.process_time()
    score = TASK.score(RECORD, Completion(text.replace("{tmp}", str(tmp_path))))
    assert time.process_time() - start < SECONDS  # of this process: other load on the machine is not the query's
    assert score.metrics["execution_match"] == 0 or name == "long AND"
    assert score.error in TASK.errors or name == "long AND"
    if category is not None:
        assert score.error == category, score
    assert score.metrics["format_violation"] == (score.error in FORMAT_ERRORS) or not score.metrics["exact"]
    assert not os.listdir(tmp_path)
    right = TASK.score(RECORD, Completion(TASK.reference(RECORD)))
    assert right.metrics["execution_match"] == 1


def test_memory_stays_bounded() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, (text, _) in CASES.items():
        if "cross" in name or "endless" in name or "blob" in name or "bomb" in name:
            TASK.score(RECORD, Completion(text))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 400 * 1024 * 1024


def test_a_database_gives_its_memory_back_before_python_looks_for_cycles() -> None:
    """Of 400 databases of 1 MB each, SQLite's heap holds less than half at a time."""
    rows = [("x" * 50_000,)] * 20
    gc.disable()
    try:
        for _ in range(400):
            database = Database({"t": Table({"a": "TEXT"}, rows)})
            assert len(database.run("SELECT a FROM t", Deadline(1))) == 20
            with pytest.raises(SandboxError):
                database.run("SELECT nothing FROM t", Deadline(1))
    finally:
        gc.enable()


@pytest.fixture
def database() -> Database:
    return Database({"t": Table({"a": "NUMERIC", "b": "TEXT"}, [(1, "x"), (2, "y")])})


def test_the_sandbox_reads(database: Database) -> None:
    assert database.run("SELECT a, UPPER(b) FROM t ORDER BY a DESC", Deadline(1)) == [(2, "Y"), (1, "X")]


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO t VALUES (3, 'z')",
        "UPDATE t SET a = 0",
        "DELETE FROM t",
        "DROP TABLE t",
        "CREATE TABLE u (a)",
        "CREATE TEMP TABLE u (a)",
        "ATTACH ':memory:' AS other",
        "PRAGMA writable_schema = 1",
        "PRAGMA table_info(t)",
        "PRAGMA hard_heap_limit = 0",
        "SELECT * FROM sqlite_master",
        "SELECT * FROM pragma_table_info('t')",
        "SELECT load_extension('x')",
        "SELECT zeroblob(1)",
        "SELECT random()",
        "BEGIN",
        "SAVEPOINT s",
        "VACUUM",
        "ANALYZE",
        "SELECT 1; SELECT 2",
        "SELECT a FROM t WHERE a = ?",
    ],
)  # fmt: skip
def test_the_sandbox_itself_refuses(database: Database, sql: str) -> None:
    """Even without the parser in front of it."""
    with pytest.raises(SandboxError):
        database.run(sql, Deadline(1))
    assert database.run("SELECT COUNT(*), SUM(a) FROM t", Deadline(1)) == [(2, 3)]


def test_a_late_query_is_stopped_and_the_next_one_runs(database: Database) -> None:
    start = time.monotonic()
    with pytest.raises(SandboxError) as error:
        database.run(ENDLESS + "SELECT COUNT(*) FROM c", Deadline(0.2))
    assert error.value.category == "timeout"
    assert time.monotonic() - start < 1
    assert database.run("SELECT 1", Deadline(1)) == [(1,)]


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        ("a%", "Abc", 1), ("%b%", "abc", 1), ("_b_", "abc", 1), ("_b", "abc", 0), ("", "", 1), ("%", "", 1),
        ("a%c%", "abxcd", 1), ("%%a", "bba", 1), ("%ab", "aab", 1), ("É%", "été", 0), ("5", 5, 1), ("x", None, None),
    ],
)  # fmt: skip
def test_like(pattern: str, text: object, fits: int | None) -> None:
    assert like(pattern, text) == fits


def test_like_with_escape_and_glob() -> None:
    assert like("5!%", "5%", "!") == 1
    assert like("5!%", "57", "!") == 0
    assert glob("a*c?", "abbcd") == 1
    assert glob("A*", "abc") == 0


def test_an_answer_that_is_a_command_is_refused_without_being_printed(caplog):
    text = "CREATE TABLE people (name VARCHAR)\n\nThe answer is 1."
    assert TASK.score(RECORD, Completion(text)).metrics["parse_valid"] == 0.0
    assert not caplog.records
