"""A tiny task for the tests of `evaluation`, found by path like a user's own: "say the word backwards"."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.base import Completion, Metric, Published, Record, Score, Segment, Task

SHARED = "shared"


def render(record: Record) -> list[Segment]:
    return [Segment(f"<Q>{record['word']}<A>", loss=False), Segment(reference(record), loss=True)]


def reference(record: Record) -> str:
    return str(record["word"])[::-1]


def baseline_prompt(record: Record, shots: Sequence[Record]) -> str:
    return f"Say {record['word']} backwards."


def score(record: Record, completion: Completion) -> Score:
    gold, text = reference(record), completion.text.strip()
    if text == "crash":
        raise ZeroDivisionError("a bug in a scorer")
    error = _error(gold, text, completion)
    metrics = {
        "correct": float(text == gold),
        SHARED: len(set(gold) & set(text)) / len(set(gold)),
        "letters": float(len(text)),
        "format_violation": float(error in TASK.format_errors),
    }
    if text:
        metrics["politeness"] = float("please" in text)  # an empty answer is neither polite nor rude
    return Score(metrics, text or None, error, f"wanted {gold!r}, got {text!r}" if error else "right")


def _error(gold: str, text: str, completion: Completion) -> str | None:
    if not text:
        return "empty"
    if completion.truncated:
        return "truncated"
    if text == gold:
        return None
    return "shouting" if text.isupper() else "wrong"


TASK = Task(
    name="backwards",
    version="3",
    description="a word -> the word backwards",
    columns=("word",),
    special_tokens=("<Q>", "<A>"),
    stop="",
    max_new_tokens=8,
    render=render,
    reference=reference,
    baseline_prompt=baseline_prompt,
    baseline_stop=("\n",),
    score=score,
    metrics=(
        Metric("correct", "the word backwards", headline=True),
        Metric(SHARED, "share of the letters that occur", kind="fraction"),
        Metric("letters", "length of the answer", kind="mean", higher_is_better=None),
        Metric("format_violation", "breaks the form", higher_is_better=False),
        Metric("politeness", "says please, where it says anything", higher_is_better=None),
    ),
    errors={"empty": "nothing", "truncated": "cut off", "shouting": "capitals", "wrong": "another word"},
    format_errors=frozenset({"empty", "truncated", "shouting"}),
    published=(
        Published("Big-1", "tuned", "correct", 0.9, "a paper, table 2"),
        Published("Big-2", "prompt", "correct", "> 0.5", "a chart", approximate=True),
    ),
)
