"""A task whose answers take time and leave a trace: every one computed gets a line (pid, text) in `computed`.

A Llama model takes a moment longer for every forward, so that a process can be killed at any point of its work.

The file lies beside this one; a copy of this module in a test's own folder keeps runs apart.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import LlamaForCausalLM

from tasks.base import Completion, Metric, Record, Score, Segment, Task

ROWS = 60
FORWARD_S = 0.15  # an actor outlives its killed driver by seconds, and must not be done by then
SPECIAL = ("<START_Q>", "<END_Q>", "<START_A>", "<END_A>")


def generate(split: str) -> Iterator[dict[str, Any]]:
    yield from ({"number": i, "answer": str(i)} for i in range(ROWS if split == "test" else 5))


def render(record: Record) -> list[Segment]:
    question = f"<START_Q>row {record['number']}<END_Q><START_A>"
    return [Segment(question, loss=False), Segment(f"{record['answer']}<END_A>", loss=True)]


def decode_text(text: str) -> str:
    """Called once per finished completion, in the process that computed it."""
    trace = os.open(Path(__file__).with_name("computed"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(trace, f"{os.getpid()} {text.encode().hex()}\n".encode())
    os.close(trace)
    return text


def _slow(forward: Any) -> Any:
    @functools.wraps(forward)
    def slower(*arguments: Any, **named: Any) -> Any:
        time.sleep(FORWARD_S)
        return forward(*arguments, **named)

    slower.slowed = True
    return slower


if not hasattr(LlamaForCausalLM.forward, "slowed"):  # the task's module may be loaded more than once
    LlamaForCausalLM.forward = _slow(LlamaForCausalLM.forward)


def score(record: Record, completion: Completion) -> Score:
    return Score({"right": 0.0, "format_violation": 0.0}, completion.text, "wrong", "as written")


TASK = Task(
    name="logging",
    version="1",
    description="rows whose answers are counted",
    columns=("number", "answer"),
    special_tokens=SPECIAL,
    stop="<END_A>",
    max_new_tokens=12,
    render=render,
    reference=lambda record: str(record["answer"]),
    baseline_prompt=lambda record, shots: f"Row {record['number']}?",
    baseline_stop=("\n",),
    score=score,
    metrics=(
        Metric("right", "never", headline=True),
        Metric("format_violation", "never", "proportion", False),
    ),
    errors={"wrong": "always"},
    format_errors=frozenset(),
    generate=generate,
    decode_text=decode_text,
)
