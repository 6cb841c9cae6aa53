"""What a user should know of a data set before training on it: sizes, lengths, repetitions, rejected rows, labels.

Called by `fulltune tasks NAME`, next to `evaluation.leaks`. Reads records only; lengths are in characters and words,
for which no tokenizer is needed (`fulltune prepare` counts tokens).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from evaluation.leaks import question_of
from tasks.base import Record, Task
from tasks.sources import Loaded

MOST_LABELS = 30


@dataclass(frozen=True, slots=True)
class Lengths:
    """The distribution of a length: smallest, median, 95th and 99th percentile, largest."""

    smallest: int
    median: int
    p95: int
    p99: int
    largest: int

    def __str__(self) -> str:
        return f"{self.smallest} / {self.median} / {self.p95} / {self.p99} / {self.largest}"


@dataclass(frozen=True, slots=True)
class SplitFacts:
    """One split.

    Attributes:
        origin: where its rows came from, in words.
        rows: that can be used.
        rejected: ids of rows that the task does not accept.
        marked: ids of rows that hold one of the task's special tokens, which would end a question or answer early.
        duplicates: rows whose question stands in an earlier row of the split.
        contradictions: of those, the ones with another answer than the row before.
        lengths: what is measured -> its distribution; empty for a split without rows.
        labels: group -> rows, the largest first; None if the task has no labels, `others` beyond the first 30.
    """

    origin: str
    rows: int
    rejected: tuple[str, ...]
    marked: tuple[str, ...]
    duplicates: int
    contradictions: int
    lengths: dict[str, Lengths]
    labels: dict[str, int] | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def facts_of(task: Task, loaded: Loaded) -> SplitFacts:
    """The facts of one split; linear in its text."""
    records = loaded.records
    questions = [question_of(task, record) for record in records]
    answers = [task.reference(record) for record in records]
    duplicates, contradictions = _repeated(questions, answers)
    return SplitFacts(
        origin=loaded.report.origin,
        rows=len(records),
        rejected=loaded.report.rejected,
        marked=tuple(record.id for record in records if _is_marked(task, record)),
        duplicates=duplicates,
        contradictions=contradictions,
        lengths={
            "question, characters": _lengths(map(len, questions)),
            "question, words": _lengths(len(text.split()) for text in questions),
            "answer, characters": _lengths(map(len, answers)),
            "answer, words": _lengths(len(text.split()) for text in answers),
        }
        if records
        else {},
        labels=_labels(task, records),
    )


def _is_marked(task: Task, record: Record) -> bool:
    texts = [str(record[column]) for column in task.columns]
    return any(token in text for token in task.special_tokens for text in texts)


def _repeated(questions: Sequence[str], answers: Sequence[str]) -> tuple[int, int]:
    last: dict[str, str] = {}
    duplicates = contradictions = 0
    for question, answer in zip(questions, answers, strict=True):
        if question in last:
            duplicates += 1
            contradictions += last[question] != answer
        last[question] = answer
    return duplicates, contradictions


def _lengths(values: Iterable[int]) -> Lengths:
    column = np.fromiter(values, np.int64)  # (n,)
    # a length that occurs, not one between two: "higher" of the neighbours
    return Lengths(*(int(q) for q in np.quantile(column, (0.0, 0.5, 0.95, 0.99, 1.0), method="higher")))


def _labels(task: Task, records: Sequence[Record]) -> dict[str, int] | None:
    if task.label is None:
        return None
    counts = Counter(map(task.label, records))
    shown = dict(counts.most_common(MOST_LABELS))
    others = sum(counts.values()) - sum(shown.values())
    return {**shown, f"{len(counts) - len(shown)} others": others} if others else shown
