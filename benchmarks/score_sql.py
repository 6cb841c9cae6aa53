"""How long `fulltune score` takes for SQL create-context with execution: from files, through the command itself.

    FULLTUNE_DATA=... python -m benchmarks.score_sql [--rows 10000] [--processes 2]

Gold queries of Spider and WikiSQL in turn; a third is answered with the gold query, a third with a changed one, a third
with the gold query in prose or in other letters. Without FULLTUNE_DATA the bundled rows are used, which repeat and so
take less. The target is 10,000 predictions in 120 s on two cores. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import tasks
from benchmarks.scoring import measured, write_lines
from tasks.base import SPLITS
from tasks.row_files import read_rows
from tasks.sources import load

TARGET_S_PER_ROW = 120 / 10_000
_COLUMNS = ("question", "context", "answer")

PROSE = (
    "Sure! Here is the query:\n\n```sql\n{0};\n```\n\nIt selects what was asked for.",
    "<SQL>{0}</SQL>",
    "The following query answers the question.\n{0}",
)
# (pattern, replacement): the first that changes a query makes the wrong answer to it
CHANGES = (
    (r" > ", " >= "),
    (r" < ", " <= "),
    (r"\bMAX\b", "MIN"),
    (r"\bDESC\b", "ASC"),
    (r" AND [^()]*$", ""),
    (r'= "([^"]*)"', r'= "\1 x"'),
    (r"\bDISTINCT ", ""),
    (r"\bCOUNT\b", "MAX"),
    (r"$", " LIMIT 1"),
)


def main() -> None:
    """Score `--rows` predictions and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    rows = list(itertools.islice(_rows(), arguments.rows))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_lines(folder / "test.jsonl", rows)
        answers = (_answer(number, row["answer"]) for number, row in enumerate(rows))
        ids = (f"sql_create_context-test-{number}" for number in range(len(rows)))
        pairs = zip(ids, answers, strict=True)
        write_lines(folder / "predictions.jsonl", ({"id": i, "completion": answer} for i, answer in pairs))
        print(json.dumps(measured("sql_create_context", folder, arguments.processes, TARGET_S_PER_ROW), indent=2))


def _rows() -> Iterator[dict[str, str]]:
    """Rows of the data sets in turn, as often as it takes."""
    folder = os.environ.get("FULLTUNE_DATA")
    if folder:
        names = ("spider_train", "wikisql_dev", "spider_dev")
        files = [read_rows(Path(folder) / "sql_create_context" / f"{name}.jsonl") for name in names]
        for row in (row for group in itertools.zip_longest(*files) for row in group if row is not None):
            yield {column: row.cells[column] for column in _COLUMNS}
        return
    task = tasks.get("sql_create_context")
    bundled = [record for split in SPLITS for record in load(task, split, "bundled")]
    yield from ({column: str(record[column]) for column in _COLUMNS} for record in itertools.cycle(bundled))


def _answer(number: int, gold: str) -> str:
    """The gold query, a changed one, or one in prose, in turn."""
    if number % 3 == 0:
        return gold
    if number % 3 == 1:
        return next(new for pattern, by in CHANGES if (new := re.sub(pattern, by, gold, count=1)) != gold)
    return PROSE[number // 3 % len(PROSE)].format(gold.lower() if number % 2 else gold)


if __name__ == "__main__":
    main()
