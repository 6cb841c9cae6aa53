"""tasks.sql.extraction: the query in whatever a model writes around it."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.base import Completion, Record
from tasks.sql.extraction import readings
from tasks.sql_create_context import TASK

GOLD = 'SELECT name FROM people WHERE town = "oslo" AND age > 30'
RECORD = Record(
    "x",
    {"question": "Which?", "context": "CREATE TABLE people (name VARCHAR, town VARCHAR, age INTEGER)", "answer": GOLD},
)
LINES = 'SELECT name\nFROM people\nWHERE town = "oslo"\n  AND age > 30'

# text, whether it is the query and nothing else
ANSWERS = {
    "bare": (GOLD, True),
    "semicolon": (f"{GOLD};", True),
    "several lines": (LINES, True),
    "parentheses": (f"({GOLD})", True),
    "tags": (f"<SQL>{GOLD}</SQL>", True),
    "tags on lines of their own": (f"<SQL>\n{LINES};\n</SQL>\n", True),
    "tags and prose": (f"The query is <SQL>{GOLD}</SQL>, as asked.", False),
    "tags named before": (f"I write it inside <SQL> </SQL> tags: <SQL>{GOLD}</SQL>", False),
    "two pairs of tags": (f"<SQL>{GOLD}</SQL>\n\nQuestion: more?\nQuery: <SQL>SELECT age FROM people</SQL>", False),
    "a fence in tags": (f"<SQL>```sql\n{GOLD}\n```</SQL>", False),
    "fence": (f"```sql\n{GOLD}\n```", False),
    "fence without a language": (f"```\n{GOLD};\n```", False),
    "fence that never ends": (f"Here:\n```sql\n{LINES}", False),
    "fence after another": (f"```\nCREATE TABLE notes\n```\nand\n```sql\n{GOLD}\n```", False),
    "fence on one line": (f"```{GOLD}```", False),
    "inline code": (f"Use `{GOLD}` for that.", False),
    "label": (f"SQL: {GOLD}", False),
    "label of another kind": (f"Answer: {GOLD}", False),
    "bold label": (f"**SQL query:**\n\n{GOLD}", False),
    "prose before": (f"You can use the following query: {GOLD}", False),
    "prose with the word select": (f"I will select the names from the table of people.\n\n{GOLD}", False),
    "prose with the word with": (f"With the given table, this works: {GOLD};", False),
    "prose that begins with a verb": (f"Use this query to show the names:\n{GOLD}", False),
    "prose after a blank line": (f"{GOLD}\n\nThis selects the names of all people in oslo.", False),
    "prose after a line": (f"{GOLD};\nExplanation: it selects names.", False),
    "prose on the next line": (f"{LINES}\nThis query returns the names; it filters by town.", False),
    "full stop": (f"The answer is {GOLD}.", False),
    "next question": (f"{GOLD}\n\nTables: CREATE TABLE kites (id VARCHAR)\nQuestion: How many?", False),
    "stop token": (f"{GOLD}<END_A>", False),
    "end of sequence": (f"{GOLD}</s>", False),
    "reasoning first": (f"Step 1: find the table people.\nStep 2: filter.\n\n{LINES};\n\nDone.", False),
    "lower case": (f"sure: {GOLD.lower()}", False),
    "line comment before": (f"-- names of people\n{GOLD}", True),
    "next question in tags": (f"{GOLD}\nQuestion: more?\nQuery: <SQL>SELECT age FROM people</SQL>", False),
    "question repeated": (f"Question: Which?\nQuery: <SQL>{GOLD}</SQL>", False),
    "thoughts first": (f"<think>Perhaps ```SELECT age FROM people```? No.</think>\n{GOLD}", False),
    "tags of another name": (f"<answer>{GOLD}</answer>", False),
    "end of instruction": (f"{GOLD} [/INST]", False),
    "bold": (f"**{GOLD}**\nI hope this helps.", False),
    "in quotes": (f'"{GOLD}"', False),
    "in single quotes": (f"'{GOLD}'", False),
    "JSON": (json.dumps({"sql": GOLD, "confidence": 0.9}), False),
    "names in square brackets": ('SELECT [name] FROM [people] WHERE [town] = "oslo" AND [age] > 30', True),
    "WITH": (f"WITH q AS ({GOLD}) SELECT name FROM q", True),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_the_query_is_found(name: str) -> None:
    text, clean = ANSWERS[name]
    score = TASK.score(RECORD, Completion(text))
    assert score.metrics["execution_match"] == 1, score
    assert score.metrics["format_violation"] == (not clean), score
    assert score.error is None


def test_a_blank_line_inside_a_query_does_not_end_it() -> None:
    text = 'SELECT name FROM people\n\nWHERE town = "oslo"\n\nAND age > 30'
    assert TASK.score(RECORD, Completion(text)).metrics["execution_match"] == 1


def test_the_first_of_several_queries_in_prose_counts() -> None:
    text = f"Either {GOLD};\n\nor simply:\n\nSELECT name FROM people;"
    assert TASK.score(RECORD, Completion(text)).metrics["execution_match"] == 1


def test_markdown_escapes_are_undone() -> None:
    record = Record(
        "x", {**RECORD.fields, "context": "CREATE TABLE t_1 (a_b VARCHAR)", "answer": "SELECT a_b FROM t_1"}
    )
    score = TASK.score(record, Completion("SELECT a\\_b FROM t\\_1"))
    assert (score.metrics["execution_match"], score.metrics["format_violation"]) == (1, 1)


def test_a_surrogate_in_json_costs_only_its_own_score() -> None:
    text = '{"sql": "SELECT name FROM people WHERE town = \'\\ud800\'"}'
    assert TASK.score(RECORD, Completion(text)).error == "wrong_result"


@pytest.mark.parametrize("text", ["SELECT", 'The word "select" means to choose.', "SELECT FROM people"])
def test_a_select_of_nothing_is_no_query(text: str) -> None:
    score = TASK.score(RECORD, Completion(text))
    assert (score.metrics["parse_valid"], score.error) == (0, "not_sql")
    assert TASK.score(RECORD, Completion("SELECT", "length")).error == "truncated"


@given(st.text(alphabet="select with from <sql>/`;'\"\n-*()ab", max_size=200))
def test_any_text_has_readings_or_none(text: str) -> None:
    found = list(readings(text))
    assert bool(found) or not text.strip() or set(text) <= set("<sql>/ \n`;")
    assert all(reading.sql for reading in found)
    assert len({reading.sql for reading in found}) == len(found) <= 8


@pytest.mark.parametrize(
    "piece",
    [
        "select ",
        "with a as (",
        "`",
        "```",
        "<sql>",
        ";",
        "'",
        '"',
        "/*",
        "--",
        "\n\n",
        "(",
        "sql: ",
        "\n#",
        '"select\\',
        "</think>",
        "*select",
    ],
)
def test_reading_is_linear(piece: str) -> None:
    start = time.process_time()
    list(readings(piece * (200_000 // len(piece))))
    assert time.process_time() - start < 1
