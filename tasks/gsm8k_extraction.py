"""GSM8K's `llm_extracted`: a language model reads the final number out of an answer in free form.

Used by evaluation when an extractor is named, for models that were not taught to end in `####`. Anyscale's study did
this with GPT-3.5; the wording here is our own. The extractor sees the answer and nothing else, neither the problem nor
the reference, so that it cannot solve what the model did not.
"""

from __future__ import annotations

import re

from tasks.base import Completion, Extraction, Metric, Record
from tasks.gsm8k_answer import find_answer, gold_number

VERSION = "1"  # of prompt and reader (a golden test insists)

_INSTRUCTION = """\
Between the tags stands what somebody wrote in answer to a word problem. Find the number that it gives as its final \
answer and copy that number. Do not solve anything, do not check or correct it: a wrong answer is copied as it stands. \
Reply with the number alone, in digits, without its unit. If no final answer is given, reply NONE."""
_NONE = re.compile(r"\W*none\b", re.IGNORECASE)


def prompt(completion: Completion) -> str:
    """The text for the extractor."""
    return f"{_INSTRUCTION}\n\n<answer>\n{completion.text}\n</answer>"


def score(record: Record, reply: str) -> float | None:
    """1.0 if the extracted number equals the reference, 0.0 if not or if there is none; None for any other reply."""
    if _NONE.match(reply):
        return 0.0
    gold, found = gold_number(str(record["answer"])), find_answer(reply).number
    if found is None:
        return None
    return float(gold is not None and found.equals(gold))


EXTRACTION = Extraction(
    version=VERSION,
    prompt=prompt,
    score=score,
    metric=Metric("llm_extracted", "the final answer, as a language model reads it, equals the reference"),
)
