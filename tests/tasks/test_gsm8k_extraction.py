from __future__ import annotations

from collections.abc import Callable

import pytest

import tasks
from tasks.base import Completion, Record
from tasks.gsm8k_extraction import EXTRACTION, VERSION, prompt, score

RECORD = Record("gsm8k-test-0", {"question": "How many?", "answer": "It is 900+180.\n#### 1,080"})


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("1080", 1.0),
        ("1,080", 1.0),
        ("1080.", 1.0),
        ("$1,080.00", 1.0),
        ("**1080**", 1.0),
        ("The final answer is 1080.", 1.0),
        ("1081", 0.0),
        ("-1080", 0.0),
        ("NONE", 0.0),
        ("None.", 0.0),
        ("**none**", 0.0),
        ("", None),
        ("I cannot tell", None),
    ],
)
def test_replies(reply: str, value: float | None) -> None:
    assert score(RECORD, reply) == value


def test_the_extractor_sees_the_answer_and_neither_problem_nor_reference() -> None:
    text = prompt(Completion("So it is 7."))
    assert "So it is 7." in text
    assert RECORD["question"] not in text
    assert "1,080" not in text


def test_the_prompt_is_the_golden_text_of_its_version(golden: Callable[[str, str], None]) -> None:
    golden(f"gsm8k_extraction_{VERSION}.txt", prompt(Completion("So it is 7.")) + "\n")


def test_the_metric_is_declared_apart_from_what_every_scoring_has() -> None:
    task = tasks.get("gsm8k")
    assert task.extraction is EXTRACTION
    assert "llm_extracted" not in task.metric_names
    assert task.with_assisted({"llm_extracted"}).metric_names == (*task.metric_names, "llm_extracted")
    assert tasks.get("gsm8k", calculator=False).extraction is EXTRACTION
