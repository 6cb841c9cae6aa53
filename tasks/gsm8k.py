"""GSM8K: grade-school word problems, answered with reasoning and a last line that holds the number.

One task file: record, training text, baseline prompt, scorer, published numbers. How the number is found in an output
is in `tasks.gsm8k_answer`, what a number is in `tasks.numerals`, the records of source `bundled` in
`tasks.gsm8k_bundled`.

    question  A bakery sells 48 rolls on Monday and half as many on Tuesday. How many rolls does it sell in all?
    answer    On Tuesday it sells 48/2 = <<48/2=24>>24 rolls.
              It sells 48+24 = <<48+24=72>>72 rolls in all.
              #### 72

Data: Cobbe et al., "Training Verifiers to Solve Math Word Problems", 2021 (arXiv 2110.14168). The special tokens and
the extraction of tuned models' answers (`strict`) are those of Anyscale's study "Fine-Tuning Llama-2: A Comprehensive
Case Study for Tailoring Models to Unique Applications" (August 2023). For models that were not tuned the study let
GPT-3.5 extract the number; that measure, `llm_extracted`, needs an endpoint and is in `tasks.gsm8k_extraction`.

The `<<48/2=24>>` are calculator annotations of the authors. Option `calculator: false` strips them from training text,
reference and worked examples; scores do not depend on it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from tasks.base import Completion, HubSource, Metric, Published, Record, Score, Segment, Task
from tasks.gsm8k_answer import Answer, find_answer, gold_number, lm_eval_flexible, lm_eval_normal, lm_eval_strict
from tasks.gsm8k_extraction import EXTRACTION
from tasks.numerals import as_text

START_Q, END_Q, START_A, END_A = "<START_Q>", "<END_Q>", "<START_A>", "<END_A>"

VALID_PERCENT = 5  # of the hub's train split: the hub has no validation split, and test is not for choosing checkpoints

METRICS = (
    Metric("strict", "the number behind the last #### equals the reference", headline=True),
    Metric("flexible", "the final answer, wherever it stands, equals the reference", headline=True),
    Metric("lm_eval_strict", "exact_match of lm-evaluation-harness gsm8k under its filter strict-match"),
    Metric("lm_eval_flexible", "exact_match of lm-evaluation-harness gsm8k under its filter flexible-extract"),
    Metric("answer_findable", "there is a number behind a ####, right or wrong: a plain regex finds the answer"),
    Metric("format_violation", "the last line is not #### and a number", higher_is_better=False),
)

# Listed in the order in which they are looked for: the first that applies is the category of an answer.
ERRORS = {
    "empty": "nothing but white space",
    "truncated": "cut off by the token limit before its #### and number were whole",
    "no_number": "no number anywhere",
    "wrong_format": "the right number, but not behind ####",
    "wrong_sign": "the right number but for its sign",
    "wrong_number": "another number",
}
FORMAT_ERRORS = frozenset({"empty", "truncated", "no_number", "wrong_format"})

_ANNOTATION = re.compile(r"<<[^<>\n]*>>")


def _answer(record: Record, *, calculator: bool) -> str:
    answer = str(record["answer"])
    return answer if calculator else _ANNOTATION.sub("", answer)


def _render(record: Record, *, calculator: bool) -> tuple[Segment, ...]:
    """Training text: the question, unsupervised, then the answer and the stop token, supervised."""
    question = f"{START_Q}{record['question']}{END_Q}{START_A}"
    return Segment(question, loss=False), Segment(f"{_answer(record, calculator=calculator)}{END_A}", loss=True)


_INSTRUCTION = """\
Solve the word problem. Work it out step by step, one short sentence per step, with the calculation of that step. \
When you are done, write the result on a line of its own that begins with #### and a space and holds nothing else but \
the number, without its unit. Stop after that line."""


def _baseline_prompt(record: Record, shots: Sequence[Record] = (), *, calculator: bool) -> str:
    """The task in words for models that were not tuned: instruction, worked examples (8 as a rule), question."""
    examples = (f"Question: {s['question']}\nAnswer: {_answer(s, calculator=calculator)}" for s in shots)
    return "\n\n".join((_INSTRUCTION, *examples, f"Question: {record['question']}\nAnswer:"))


def score(record: Record, completion: Completion) -> Score:
    """Judge one completion; see `METRICS` and `ERRORS`. Never raises; linear in the length of the completion.

    An answer that was cut off behind its `####` line is judged by what it says.
    """
    text = completion.text
    gold_text = str(record["answer"])
    gold, lm_eval_gold = gold_number(gold_text), lm_eval_normal(gold_text)
    answer = find_answer(text)
    flexible = gold is not None and answer.number is not None and answer.number.equals(gold)
    metrics = {
        "strict": flexible and answer.marked,
        "flexible": flexible,
        "lm_eval_strict": lm_eval_normal(lm_eval_strict(text)) == lm_eval_gold,
        "lm_eval_flexible": lm_eval_normal(lm_eval_flexible(text)) == lm_eval_gold,
        "answer_findable": answer.marked,
        "format_violation": not answer.closing,
    }
    error, why = _verdict(answer, completion, gold, right=flexible)
    if error in FORMAT_ERRORS:
        metrics["format_violation"] = True
    return Score({name: float(value) for name, value in metrics.items()}, _jsonable(answer), error, why)


def _verdict(answer: Answer, completion: Completion, gold: Fraction | None, *, right: bool) -> tuple[str | None, str]:
    """Error category and one sentence."""
    if not completion.text.strip():
        return "empty", "the answer is empty"
    wanted = "nothing that can be read" if gold is None else as_text(gold)
    cut = completion.truncated and (not answer.marked or (answer.ends_with_number and not right))
    said = f"the answer is {_shown(answer)} ({_PLACES[answer.found_by]})" if answer.found_by else "there is no number"
    if cut:
        return "truncated", f"cut off by the token limit; so far {said}, the reference has {wanted}"
    if answer.number is None:
        return "no_number", f"there is no number in the answer, the reference has {wanted}"
    if right and answer.marked:
        return None, said if answer.closing else f"{said}, but more text follows it"
    if right:
        return "wrong_format", f"{said}, which is right, but not behind ####"
    if gold is not None and answer.number.equals(-gold):
        return "wrong_sign", f"{said}, the reference has {wanted}"
    return "wrong_number", f"{said}, the reference has {wanted}"


_PLACES = {
    "####": "behind ####",
    "boxed": "in \\boxed{}",
    "phrase": "stated as the answer",
    "last number": "the last number",
}


def _jsonable(answer: Answer) -> dict[str, Any] | None:
    return None if answer.number is None else {"number": _shown(answer), "found_by": answer.found_by}


def _shown(answer: Answer) -> str:
    """The number, in full unless it is absurdly long."""
    if answer.number is None or answer.number.value is None:
        return "a number out of range"
    text = as_text(answer.number.value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def accepts(record: Record) -> bool:
    """Whether the reference of this row has a number: a row without is of no use for scoring."""
    return gold_number(str(record["answer"])) is not None


def label(record: Record) -> str:
    """How many lines of reasoning the reference has."""
    steps = len([line for line in str(record["answer"]).splitlines() if line.strip()]) - 1
    return f"{steps} step" + "s" * (steps != 1)


def carve(fields: Mapping[str, Any]) -> str:
    """Train or valid, by a stable hash of the question: equal questions go to the same split."""
    question = " ".join(str(fields["question"]).lower().split())
    number = int.from_bytes(hashlib.sha256(question.encode("utf-8", errors="replace")).digest()[:8], "big")
    return "valid" if number % 100 < VALID_PERCENT else "train"


def generate(split: str) -> Iterable[Mapping[str, Any]]:
    """Rows of source `bundled`: made by our own code, in GSM8K's form."""
    from tasks.gsm8k_bundled import generate as generate_rows

    return generate_rows(split)


_STUDY = "Anyscale, Fine-Tuning Llama-2: A Comprehensive Case Study, August 2023, text"
_SCREL = "OFA-Sys/gsm8k-ScRel, README (maj1@1)"
_BASE, _SFT = "base, 8-shot", "tuned on the 7,473 rows, 3 epochs"

# The study's 47 % is of two stages (MathQA, then GSM8K); GSM8K alone gives about +10 points over the base model.
PUBLISHED = (
    Published("Llama-2-13B", "before tuning", "flexible", 0.28, _STUDY),
    Published("Llama-2-13B", "tuned in two stages, MathQA then GSM8K", "strict", 0.47, _STUDY),
    Published("Llama-2-13B", "tuned on GSM8K alone", "strict", "base + 0.10", _STUDY, approximate=True),
    *(
        Published(f"Llama-2-{size}", setting, "flexible", value, _SCREL)
        for setting, values in ((_BASE, (0.146, 0.287, 0.568)), (_SFT, (0.416, 0.500, 0.632)))
        for size, value in zip(("7B", "13B", "70B"), values, strict=True)
    ),
)


def configure(*, calculator: bool = True) -> Task:
    """The task with or without calculator annotations.

    Raises:
        TypeError: `calculator` is not a bool (from a command line, "false" would otherwise count as true).
    """
    if not isinstance(calculator, bool):
        raise TypeError(f"calculator is {calculator!r}, not true or false")
    return dataclasses.replace(
        TASK,
        render=functools.partial(_render, calculator=calculator),
        reference=functools.partial(_answer, calculator=calculator),
        baseline_prompt=functools.partial(_baseline_prompt, calculator=calculator),
        options={"calculator": calculator},
    )


def render(record: Record) -> tuple[Segment, ...]:
    """Training text with calculator annotations."""
    return _render(record, calculator=True)


def reference(record: Record) -> str:
    """The gold answer with calculator annotations."""
    return _answer(record, calculator=True)


def baseline_prompt(record: Record, shots: Sequence[Record] = ()) -> str:
    """The prompt for models that were not tuned, with calculator annotations in its examples."""
    return _baseline_prompt(record, shots, calculator=True)


TASK = Task(
    name="gsm8k",
    version="1",
    description="grade-school word problem -> reasoning, then #### and the number",
    columns=("question", "answer"),
    special_tokens=(START_Q, END_Q, START_A, END_A),
    token_descriptions={START_Q: "question:", END_Q: "end of question", START_A: "answer:", END_A: "end of text"},
    stop=END_A,
    max_new_tokens=512,  # the longest of the 8,792 real answers takes 476 Llama-2 tokens
    render=render,
    reference=reference,
    baseline_prompt=baseline_prompt,
    baseline_stop=("\nQuestion:",),  # not "\n\n": some real answers have an empty line
    score=score,
    metrics=METRICS,
    errors=ERRORS,
    format_errors=FORMAT_ERRORS,
    hub=HubSource(
        "openai/gsm8k", config="main", splits={"train": "train", "valid": "train", "test": "test"}, licence="MIT"
    ),
    generate=generate,
    carve=carve,
    accepts=accepts,
    label=label,
    published=PUBLISHED,
    language="en",
    options={"calculator": True},
    extraction=EXTRACTION,
    configure=configure,
)
