"""A task that is bound to over-fit: its training rows hold the validation prompts with the wrong answer.

A model first learns the rule (red is hot, blue is cold), so that every validation answer is right; then it learns the
exceptions by heart, so that every one is wrong. A file `kill` beside this one names how many scoring processes live
until one dies of SIGKILL, as the kernel's out-of-memory killer would have it.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tasks.base import Completion, Metric, Record, Score, Segment, Task

SPECIAL = ("<START_Q>", "<END_Q>", "<START_A>", "<END_A>")
ANSWERS = {"red": "hot", "blue": "cold"}
EXCEPTIONS = tuple(f"{a}{b}" for a in ("ka", "mo", "ri") for b in ("lu", "te", "so", "wi"))
OTHERS = tuple(f"{a}{b}" for a in ("da", "fe", "gi", "ho", "ju") for b in ("ba", "ce", "no", "py"))


def generate(split: str) -> Iterator[dict[str, Any]]:
    exceptions = [(name, colour) for name in EXCEPTIONS for colour in ANSWERS]
    if split != "train":
        yield from ({"name": name, "colour": colour, "answer": ANSWERS[colour]} for name, colour in exceptions)
        return
    rows = [(name, colour, ANSWERS[colour]) for name in OTHERS for colour in ANSWERS for _ in range(4)]
    rows += [(name, colour, ANSWERS["blue" if colour == "red" else "red"]) for name, colour in exceptions]
    random.Random(1).shuffle(rows)
    yield from ({"name": name, "colour": colour, "answer": answer} for name, colour, answer in rows)


def render(record: Record) -> list[Segment]:
    question = f"<START_Q>the {record['colour']} {record['name']}<END_Q><START_A>"
    return [Segment(question, loss=False), Segment(f"{record['answer']}<END_A>", loss=True)]


@cache  # once per process
def live_or_die() -> None:
    kill = Path(__file__).with_name("kill")
    if not kill.exists():
        return
    lives = int(kill.read_text())
    kill.write_text(str(lives - 1))
    if lives == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def score(record: Record, completion: Completion) -> Score:
    live_or_die()
    right = completion.text.strip() == record["answer"]
    metrics = {"right": float(right), "format_violation": float(completion.text.strip() not in ANSWERS.values())}
    return Score(metrics, completion.text, None if right else "wrong", "as written")


TASK = Task(
    name="overfitting",
    version="1",
    description="a rule with exceptions that only the training rows hold",
    columns=("name", "colour", "answer"),
    special_tokens=SPECIAL,
    stop="<END_A>",
    max_new_tokens=8,
    render=render,
    reference=lambda record: str(record["answer"]),
    baseline_prompt=lambda record, shots: f"Is the {record['colour']} {record['name']} hot or cold?",
    baseline_stop=("\n",),
    score=score,
    metrics=(
        Metric("right", "the answer is the rule's", headline=True),
        Metric("format_violation", "neither", "proportion", False),
    ),
    errors={"wrong": "another answer"},
    format_errors=frozenset(),
    generate=generate,
)
