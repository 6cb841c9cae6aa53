"""The SQL task: texts pinned with the version, a case per error, rewrites that are right, mutants that are not."""

from __future__ import annotations

import collections
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.base import Completion, Record
from tasks.sources import load
from tasks.sql_create_context import ERRORS, FORMAT_ERRORS, TASK, carve

PEOPLE = "CREATE TABLE people (name VARCHAR, age INTEGER, town VARCHAR, id VARCHAR)"
BOTH = f"{PEOPLE}; CREATE TABLE pets (owner_id VARCHAR, kind VARCHAR, weight VARCHAR)"


def record(answer: str, context: str = BOTH) -> Record:
    return Record("sql_create_context-test-0", {"question": "Which?", "context": context, "answer": answer})


RECORD = Record(
    "sql_create_context-test-0",
    {
        "question": "What are the names of people in oslo who are older than 30?",
        "context": "CREATE TABLE people (name VARCHAR, town VARCHAR, age INTEGER)",
        "answer": 'SELECT name FROM people WHERE town = "oslo" AND age > 30',
    },
)
SHOT = Record(
    "sql_create_context-train-0",
    {"question": "How many?", "context": "CREATE TABLE kites (Id VARCHAR)", "answer": "SELECT COUNT(*) FROM kites"},
)
GOLD = TASK.reference(RECORD)
RIGHT = {metric: float(metric != "format_violation") for metric in TASK.metric_names}
WRONG = {metric: float(metric == "format_violation") for metric in TASK.metric_names}
RUNS = {**RIGHT, "ast_match": 0.0, "execution_match": 0.0, "exact": 0.0}
STRAY = {**RUNS, "schema_valid": 0.0, "execution_blog": 0.0}
LOOSE = {**RIGHT, "exact": 0.0}

# completion, finish_reason, error, metrics
CASES: dict[str, tuple[str, str | None, str | None, dict[str, float]]] = {
    "gold": (GOLD, "stop", None, RIGHT),
    "gold at the token limit": (GOLD, "length", None, RIGHT),
    "white space and semicolon": (f"\n {GOLD.replace(' ', '  ')} ;\n", None, None, RIGHT),
    "in tags": (f"<SQL>{GOLD}</SQL>", None, None, RIGHT),
    "in tags, without the last": (f" <sql>{GOLD}", None, None, RIGHT),
    "in a fence": (f"```sql\n{GOLD};\n```", None, None, {**RIGHT, "format_violation": 1.0}),
    "in prose": (f"Sure! Here is the query:\n\n{GOLD};\n\nIt selects.", None, None, {**RIGHT, "format_violation": 1.0}),
    "other spelling": ("select NAME from People where AGE > 30 and 'oslo' = TOWN", None, None, LOOSE),
    "written otherwise": (GOLD.replace("age >", "NOT age <="), None, None, {**LOOSE, "ast_match": 0.0}),
    "empty": ("", "stop", "empty", WRONG),
    "white space": (" \n", "length", "empty", WRONG),
    "truncated": ("SELECT name FROM people WHERE (town = ", "length", "truncated", WRONG),
    "cut off without a reason": ("SELECT name FROM people WHERE (town = ", None, "not_sql", WRONG),
    "not_sql": ("I do not know the answer.", None, "not_sql", WRONG),
    "too_complex": ("SELECT " + "(" * 500, None, "too_complex", WRONG),
    "writes": ("DELETE FROM people", None, "writes", WRONG),
    "writes as well": (f"{GOLD}; DROP TABLE people", None, "writes", WRONG),
    "several_statements": (f"{GOLD}; SELECT 1", None, "several_statements", WRONG),
    "unknown_table": ("SELECT name FROM persons", None, "unknown_table", STRAY),
    "unknown_column": ("SELECT nam FROM people", None, "unknown_column", STRAY),
    "not_executable": ("SELECT SOUNDEX(name) FROM people", None, "not_executable", {**RUNS, "execution_blog": 0.0}),
    "timeout": (
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT COUNT(*) FROM c",
        None,
        "timeout",
        {**RUNS, "execution_blog": 0.0},
    ),
    "too_many_rows": (
        "SELECT a.name FROM people a, people b, people c, people d, people e",
        None,
        "too_many_rows",
        {**RUNS, "execution_blog": 0.0},
    ),
    "wrong_type": (GOLD.replace("age > 30", 'age > "old"'), None, "wrong_type", {**RUNS, "execution_blog": 0.0}),
    "wrong_result": ("SELECT COUNT(*) FROM people", None, "wrong_result", {**RUNS, "execution_blog": 0.0}),
}


@pytest.mark.parametrize("case", CASES)
def test_answer(case: str) -> None:
    text, finish_reason, error, metrics = CASES[case]
    score = TASK.score(RECORD, Completion(text, finish_reason))
    assert score.error == error, score
    assert dict(score.metrics) == metrics, score
    assert score.why


def test_every_error_has_a_case() -> None:
    assert {error for _, _, error, _ in CASES.values()} == {*ERRORS, None}


def test_format_violation_covers_the_format_errors() -> None:
    for text, finish_reason, error, metrics in CASES.values():
        if error in FORMAT_ERRORS:
            assert metrics["format_violation"] == 1, (text, finish_reason)


FILTER = 'SELECT name FROM people WHERE age > 30 AND town = "Oslo"'
JOIN = "SELECT T1.name FROM people AS T1 JOIN pets AS T2 ON T1.id = T2.owner_id WHERE T2.weight > 5"
# reference, answer, whether the normal form covers the rewrite
REWRITES = [
    (FILTER, 'SELECT p.name FROM people AS p WHERE p.age > 30 AND p.town = "Oslo"', True),
    (FILTER, "select NAME from PEOPLE where AGE > 30 and TOWN = 'Oslo'", True),
    (FILTER, 'SELECT people.name FROM people WHERE (people.age > 30) AND ((town = "Oslo"))', True),
    (FILTER, 'SELECT name FROM people WHERE town = "Oslo" AND 30 < age', True),
    (FILTER, 'SELECT name AS who FROM people WHERE "Oslo" = town AND age > 30', True),
    (FILTER, "SELECT `name` FROM `people` WHERE `age` > 30 AND `town` = 'Oslo'", True),
    (FILTER, 'SELECT name FROM people WHERE NOT age <= 30 AND town = "Oslo"', False),
    ('SELECT name FROM people WHERE town <> "Oslo"', 'SELECT name FROM people WHERE town != "Oslo"', True),
    ('SELECT name FROM people WHERE NOT town IN ("a", "b")', 'SELECT name FROM people WHERE town NOT IN ("a", "b")',
         True),
    ('SELECT name FROM people WHERE town IN ("a", "b")', 'SELECT name FROM people WHERE town = "a" OR town = "b"',
         False),
    (JOIN, "SELECT a.name FROM people AS a INNER JOIN pets AS b ON b.owner_id = a.id WHERE b.weight > 5", True),
    (JOIN, "SELECT name FROM people, pets WHERE id = owner_id AND weight > 5", False),
    (JOIN, "SELECT T1.name FROM pets AS T2 JOIN people AS T1 ON T1.id = T2.owner_id AND T2.weight > 5", False),
    (JOIN, "SELECT name FROM pets JOIN people ON id = owner_id WHERE weight > 5", False),
    ("SELECT name FROM people WHERE age BETWEEN 3 AND 9", "SELECT name FROM people WHERE age >= 3 AND age <= 9", False),
    ("SELECT COUNT(*) FROM people", "SELECT COUNT(*) AS number FROM people AS p", True),
    ("SELECT COUNT(*) FROM people", "SELECT COUNT(1) FROM people", False),
    ("SELECT name FROM people ORDER BY age ASC", "SELECT name FROM people ORDER BY age", True),
    ("SELECT name, age AS a FROM people ORDER BY age DESC", "SELECT name, age AS a FROM people ORDER BY a DESC", True),
    ("SELECT town, COUNT(*) FROM people GROUP BY town", "SELECT town, COUNT(*) FROM people GROUP BY 1", True),
    ("SELECT town, COUNT(*) FROM people GROUP BY town ORDER BY COUNT(*)",
         "SELECT town, COUNT(*) c FROM people GROUP BY town ORDER BY c", True),
    ("SELECT MAX(age) FROM people", "SELECT age FROM people ORDER BY age DESC LIMIT 1", False),
    ("SELECT DISTINCT town FROM people", "SELECT town FROM people GROUP BY town", False),
    ("SELECT name FROM people WHERE id IN (SELECT owner_id FROM pets)",
         "SELECT name FROM people WHERE EXISTS (SELECT 1 FROM pets WHERE owner_id = id)", False),
    ("SELECT kind FROM pets WHERE weight > 10", 'SELECT kind FROM pets WHERE weight > "10"', False),
    ("SELECT name FROM people LIMIT 5", "SELECT name FROM people ORDER BY name LIMIT 5", False),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer", "covered"), REWRITES)
def test_a_rewrite_is_right(gold: str, answer: str, covered: bool) -> None:
    score = TASK.score(record(gold), Completion(answer))
    assert score.metrics["execution_match"] == 1, score
    assert score.metrics["ast_match"] == covered
    assert score.error is None


MUTANTS = [
    (FILTER, FILTER.replace(">", ">=")),
    (FILTER, FILTER.replace(">", "<")),
    (FILTER, FILTER.replace("30", "31")),
    (FILTER, FILTER.replace("30", "29")),
    (FILTER, FILTER.replace("AND", "OR")),
    (FILTER, FILTER.replace("age > 30 AND ", "")),
    (FILTER, FILTER.replace(' AND town = "Oslo"', "")),
    (FILTER, FILTER.replace('"Oslo"', '"oslo"')),
    (FILTER, FILTER.replace("SELECT name", "SELECT DISTINCT name")),
    (FILTER, FILTER.replace("SELECT name", "SELECT town")),
    (FILTER, FILTER.replace("SELECT name", "SELECT name, age")),
    (FILTER, FILTER.replace(' AND town = "Oslo"', ' AND town = "Oslo" AND id <> "x7"')),
    (FILTER, FILTER + " LIMIT 3"),
    (FILTER, "SELECT name FROM people"),
    (JOIN, JOIN.replace("T1.id = T2.owner_id", "T1.name = T2.owner_id")),
    (JOIN, JOIN.replace("T1.id = T2.owner_id", "T1.id = T2.kind")),
    (JOIN, JOIN.replace(" ON T1.id = T2.owner_id", "")),
    (JOIN, "SELECT name FROM people WHERE id IN (SELECT owner_id FROM pets WHERE weight > 5)"),
    ("SELECT MAX(age) FROM people", "SELECT MIN(age) FROM people"),
    ("SELECT AVG(age) FROM people", "SELECT SUM(age) FROM people"),
    ("SELECT COUNT(town) FROM people", "SELECT COUNT(DISTINCT town) FROM people"),
    ("SELECT COUNT(town) FROM people", "SELECT COUNT(*) FROM people"),
    ("SELECT DISTINCT town FROM people", "SELECT town FROM people"),
    ("SELECT name, age FROM people", "SELECT age, name FROM people"),
    ("SELECT name FROM people ORDER BY age", "SELECT name FROM people ORDER BY age DESC"),
    ("SELECT name FROM people ORDER BY age", "SELECT name FROM people"),
    ("SELECT name FROM people ORDER BY age", "SELECT name FROM people ORDER BY name"),
    ("SELECT name FROM people ORDER BY age LIMIT 3", "SELECT name FROM people ORDER BY age LIMIT 4"),
    ("SELECT name FROM people ORDER BY age DESC LIMIT 1",
         "SELECT name FROM people WHERE age = (SELECT MAX(age) FROM people)"),
    ("SELECT town FROM people GROUP BY town HAVING COUNT(*) >= 3",
         "SELECT town FROM people GROUP BY town HAVING COUNT(*) > 3"),
    ("SELECT town FROM people GROUP BY town HAVING COUNT(*) >= 3",
         "SELECT town FROM people GROUP BY town HAVING COUNT(*) >= 2"),
    ("SELECT name FROM people WHERE age BETWEEN 3 AND 9", "SELECT name FROM people WHERE age > 3 AND age < 9"),
    ('SELECT name FROM people WHERE town LIKE "%os%"', 'SELECT name FROM people WHERE town LIKE "os%"'),
    ('SELECT name FROM people WHERE town LIKE "%os%"', 'SELECT name FROM people WHERE town = "os"'),
    ("SELECT name FROM people WHERE age IS NULL", "SELECT name FROM people WHERE age = NULL"),
    ("SELECT name FROM people UNION SELECT kind FROM pets", "SELECT name FROM people UNION ALL SELECT kind FROM pets"),
    ("SELECT id FROM people EXCEPT SELECT owner_id FROM pets", "SELECT id FROM people"),
    ("SELECT id FROM people EXCEPT SELECT owner_id FROM pets",
         "SELECT id FROM people INTERSECT SELECT owner_id FROM pets"),
    ("SELECT name FROM people WHERE NOT id IN (SELECT owner_id FROM pets)",
         "SELECT name FROM people WHERE id IN (SELECT owner_id FROM pets)"),
    ("SELECT kind FROM pets WHERE weight > 10", "SELECT kind FROM pets WHERE weight > 9"),
    ("SELECT name FROM people WHERE age > (SELECT AVG(age) FROM people)",
         "SELECT name FROM people WHERE age > (SELECT MIN(age) FROM people)"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer"), MUTANTS)
def test_a_mutant_is_wrong(gold: str, answer: str) -> None:
    score = TASK.score(record(gold), Completion(answer))
    assert score.metrics["execution_match"] == 0
    assert score.metrics["ast_match"] == 0
    assert score.error


# --- the study's false positives


def test_blog_cuts_cells_to_the_width_of_the_column_name() -> None:
    gold = record('SELECT id FROM jobs WHERE id = "mayor of paris"', "CREATE TABLE jobs (id VARCHAR)")
    metrics = TASK.score(gold, Completion('SELECT id FROM jobs WHERE id = "machinist"')).metrics
    assert (metrics["execution_blog"], metrics["execution_match"]) == (1, 0)


def test_blog_shows_eleven_rows() -> None:
    gold = record("SELECT a.id FROM jobs AS a, jobs AS b, jobs AS c LIMIT 30", "CREATE TABLE jobs (id VARCHAR)")
    metrics = TASK.score(gold, Completion("SELECT a.id FROM jobs AS a, jobs AS b, jobs AS c LIMIT 29")).metrics
    assert (metrics["execution_blog"], metrics["execution_match"]) == (1, 0)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("SELECT name, age FROM people", "SELECT name AS n, age FROM people"),  # aliases are part of the text
        ('SELECT name FROM people WHERE town = "Oslo"', 'SELECT name FROM people WHERE town = "Oslo"'),  # lower case
    ],
)
def test_blog_has_false_negatives(gold: str, answer: str) -> None:
    metrics = TASK.score(record(gold), Completion(answer)).metrics
    assert (metrics["execution_blog"], metrics["execution_match"]) == (0, 1)


# --- odd references


def test_a_column_that_is_a_number_or_a_keyword_is_understood() -> None:
    gold = record(
        'SELECT "2006" FROM t WHERE "from" = "2r" AND "2007" > 5',
        "CREATE TABLE t (2006 VARCHAR, from VARCHAR, 2007 INTEGER)",
    )
    assert (
        TASK.score(gold, Completion('SELECT "2006" FROM t WHERE "2007" > 5 AND "from" = "2r"')).metrics["ast_match"]
        == 1
    )
    assert TASK.score(gold, Completion("SELECT `2006` FROM t WHERE `from` = '2r' AND `2007` > 5")).error is None
    assert TASK.score(gold, Completion('SELECT 2006 FROM t WHERE from = "2r" AND 2007 > 5')).error is None
    assert (
        TASK.score(gold, Completion('SELECT "2006" FROM t WHERE "from" = "2r" AND "2007" > 6')).error == "wrong_result"
    )


def test_a_literal_that_is_the_name_of_a_column_is_a_literal_on_the_right() -> None:
    gold = record('SELECT name FROM people WHERE town = "town"', PEOPLE)
    assert TASK.score(gold, Completion("SELECT name FROM people WHERE town = 'town'")).metrics["execution_match"] == 1
    assert TASK.score(gold, Completion("SELECT name FROM people WHERE town = town")).metrics["execution_match"] == 0


def test_a_reference_that_cannot_run_is_compared_by_its_form() -> None:
    gold = record("SELECT id FROM people AS a JOIN people AS b ON a.id = b.name WHERE age > 3", PEOPLE)
    same = TASK.score(gold, Completion("select id from people a join people b on a.id = b.name where (age > 3)"))
    assert (same.metrics["execution_match"], same.metrics["schema_valid"], same.error) == (1, 0, None)
    assert "cannot be run" in same.why
    assert TASK.score(gold, Completion("SELECT a.id FROM people AS a")).metrics["execution_match"] == 0


def test_a_column_that_the_context_forgot_is_added_for_execution() -> None:
    context = "CREATE TABLE a (id VARCHAR, name VARCHAR); CREATE TABLE b (kind VARCHAR)"
    gold = record('SELECT T1.name FROM a AS T1 JOIN b AS T2 ON T1.id = T2.id WHERE T2.kind = "x"', context)
    same = TASK.score(gold, Completion("SELECT a.name FROM a JOIN b ON a.id = b.id WHERE b.kind = 'x'"))
    assert (same.metrics["execution_match"], same.metrics["schema_valid"], same.error) == (1, 0, None)
    assert TASK.score(gold, Completion("SELECT a.name FROM a JOIN b ON a.id = b.id")).metrics["execution_match"] == 0


def test_a_reference_that_is_no_query_is_not_accepted_and_scores_without_raising() -> None:
    broken = record("no query")
    assert TASK.accepts is not None
    assert not TASK.accepts(broken)
    assert TASK.accepts(RECORD)
    assert TASK.score(broken, Completion("SELECT name FROM people")).error == "wrong_result"


def test_verdicts_do_not_depend_on_what_was_scored_before() -> None:
    before = TASK.score(RECORD, Completion("SELECT name FROM people"))
    for gold, answer in MUTANTS[:20]:
        TASK.score(record(gold), Completion(answer))
    assert TASK.score(RECORD, Completion("SELECT name FROM people")) == before


# --- golden texts


def _render_marked(one: Record) -> str:
    return "".join(f"{{{{{s.text}}}}}" if s.loss else s.text for s in TASK.render(one))


GOLDEN_TEXTS: dict[str, Callable[[], str]] = {
    "sql_create_context_render.txt": lambda: _render_marked(RECORD),
    "sql_create_context_prompt.txt": lambda: TASK.baseline_prompt(RECORD, []),
    "sql_create_context_prompt_1_shot.txt": lambda: TASK.baseline_prompt(RECORD, [SHOT]),
}


@pytest.mark.parametrize("name", GOLDEN_TEXTS)
def test_text_is_the_golden_text(golden: Callable[[str, str], None], name: str) -> None:
    golden(name, GOLDEN_TEXTS[name]() + "\n")


def test_structured_prompt_ends_where_the_answer_begins() -> None:
    context, question = RECORD["context"], RECORD["question"]
    wanted = f"<START_Q><START_CTX>{context}<END_CTX>{question}<END_Q><START_A>"
    assert TASK.structured_prompt(RECORD) == wanted


def test_splits_are_carved_by_context() -> None:
    contexts = [f"CREATE TABLE t{i} (a VARCHAR)" for i in range(4000)]
    shares = collections.Counter(carve({"context": context}) for context in contexts)
    assert 0.87 < shares["train"] / len(contexts) < 0.93
    assert abs(shares["valid"] - shares["test"]) < 0.02 * len(contexts)
    assert carve({"context": contexts[0]}) == carve({"context": f"  {contexts[0]}\n"})


# --- the real corpus


def _real_rows(real_data: Path) -> list[dict[str, Any]]:
    folder = real_data / "sql_create_context"
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]


def _imperfect(rows: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """Rows whose own answer is not perfect, `execution_blog` aside."""
    found = []
    for row in rows:
        score = TASK.score(Record("x", row), Completion(row["answer"]))
        if {**score.metrics, "execution_blog": 1.0} != RIGHT or score.error:
            found.append((row["answer"], score))
    return found


@pytest.mark.real_data
def test_gold_is_perfect_on_a_sample_of_the_real_corpus(real_data: Path) -> None:
    rows = [row for row in _real_rows(real_data) if row["runs_in_sqlite"]]
    rows.sort(key=lambda row: hashlib.sha256(f"{row['question']}{row['context']}".encode()).hexdigest())
    picked: list[dict[str, Any]] = []
    for name, count in (("spider-train", 200), ("spider-dev", 60), ("wikisql-dev", 140)):
        picked += [row for row in rows if row["source"]["set"] == name][:count]
    assert len(picked) == 400
    assert _imperfect(picked) == []


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.timeout(1800)
def test_gold_is_perfect_on_the_real_corpus(real_data: Path) -> None:
    rows = [row for row in _real_rows(real_data) if row["runs_in_sqlite"]]
    assert len(rows) == 16_054
    found = _imperfect(rows)
    assert len(found) <= 0.001 * len(rows), found


@pytest.mark.real_data
def test_gold_that_does_not_run_is_right_by_its_form_or_better(real_data: Path) -> None:
    rows = [row for row in _real_rows(real_data) if not row["runs_in_sqlite"]]
    assert len(rows) == 170
    scores = [TASK.score(Record("x", row), Completion(row["answer"])) for row in rows]
    assert all(score.metrics["execution_match"] == 1 and score.error is None for score in scores)


@pytest.mark.real_data
def test_the_real_corpus_is_carved(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FULLTUNE_DATA", str(real_data))
    contexts = {split: {one["context"] for one in load(TASK, split, "hub")} for split in ("valid", "test")}
    assert not contexts["valid"] & contexts["test"]
    assert 500 < len(contexts["test"]) < 1000
