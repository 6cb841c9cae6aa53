"""The plugin API is wide enough for tasks that look nothing like the built-in ones: several gold answers and a codec
for line breaks, a choice out of a list without special tokens, a judge instead of a gold answer, and plain text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tasks.base import Completion, Metric, Record, Rubric, Score, Segment, Task
from tasks.contract import ContractError, check_task

VIOLATION = Metric("format_violation", "breaks the form", higher_is_better=False)
ERRORS = {"empty": "nothing", "wrong": "another answer", "not_listed": "none of the choices"}


def verdict(right: bool, error: str | None, parsed: object, **more: float) -> Score:
    error = None if right else error
    violation = float(error in ("empty", "not_listed"))
    return Score({"right": float(right), "format_violation": violation, **more}, parsed, error, error or "right")


def clean(text: str) -> str:
    text = unicodedata.normalize("NFKC", text.encode("utf-8", "replace").decode())
    return " ".join(text.lower().split()).removesuffix("。")


# --- reading comprehension: several gold answers, the best counts; F1 over characters; line breaks as a token


def span_render(record: Record) -> list[Segment]:
    question = f"ユーザー: {record['context']}\n{record['question']}\nシステム: "
    return [Segment(question, loss=False), Segment(record["answers"][0], loss=True)]


def span_score(record: Record, completion: Completion) -> Score:
    given = clean(completion.text)[:500]
    golds = [clean(gold) for gold in record["answers"]]
    f1 = max(2 * len(set(given) & set(gold)) / max(1, len(set(given)) + len(set(gold))) for gold in golds)
    error = "wrong" if given else "empty"
    return verdict(given in golds, error, given, first=float(given == golds[0]), f1=f1)


def span_prompt(record: Record, shots: Sequence[Record]) -> str:
    blocks = [f"{one['context']}\n問: {one['question']}\n答: " for one in (*shots, record)]
    return "抜き出して答えてください。\n\n" + "\n\n".join(
        block + (shot["answers"][0] if shot else "") for block, shot in zip(blocks, [*shots, None], strict=True)
    )


SPANS = Task(
    name="spans",
    version="1",
    description="a passage and a question -> a span of the passage",
    columns=("context", "question", "answers"),
    special_tokens=("<NL>", "<END>"),
    stop="<END>",
    max_new_tokens=32,
    render=lambda record: [*span_render(record), Segment("<END>", loss=True)],
    reference=lambda record: str(record["answers"][0]),
    baseline_prompt=span_prompt,
    baseline_stop=("\n",),
    score=span_score,
    metrics=(
        Metric("right", "equals any gold answer", headline=True),
        Metric("first", "equals the first gold answer"),
        Metric("f1", "overlap of characters with the best gold answer", kind="fraction"),
        VIOLATION,
    ),
    errors={name: ERRORS[name] for name in ("empty", "wrong")},
    format_errors=frozenset({"empty"}),
    encode_text=lambda text: text.replace("\n", "<NL>"),
    decode_text=lambda text: text.replace("<NL>", "\n"),
)
CITIES = {"福岡": "那珂川", "京都": "鴨川", "仙台": "広瀬川", "札幌": "豊平川"}
SPAN_ROWS = [
    Record(city, {"context": f"{city}は{river}の川岸にある。", "question": "どこ?", "answers": [city, f"{city}市"]})
    for city, river in CITIES.items()
]

# --- a choice out of a list, plain text, the tokenizer's own end of text


def choice_score(record: Record, completion: Completion) -> Score:
    given = clean(completion.text).strip("「」\"'")[:200]
    right = given == clean(record["output"])
    listed = given in map(clean, record["input"].split("、"))
    return verdict(right, "empty" if not given else "wrong" if listed else "not_listed", given)


CHOICE = Task(
    name="choice",
    version="1",
    description="a question and a list of choices -> one of the choices",
    columns=("instruction", "input", "output"),
    special_tokens=(),
    stop="",
    max_new_tokens=16,
    render=lambda r: [Segment(f"{r['instruction']}\n{r['input']}\n", loss=False), Segment(r["output"], loss=True)],
    reference=lambda record: str(record["output"]),
    baseline_prompt=lambda record, shots: "".join(
        f"{one['instruction']}({one['input']}) " + (f"{one['output']}\n" if one is not record else "")
        for one in (*shots, record)
    ),
    baseline_stop=("\n",),
    score=choice_score,
    metrics=(Metric("right", "the right choice", headline=True), VIOLATION),
    errors=ERRORS,
    format_errors=frozenset({"empty", "not_listed"}),
)
CHOICE_ROWS = [
    Record(f"choice-test-{i}", {"instruction": "選んでください。", "input": "犬、猫、鳥", "output": "犬猫鳥"[i % 3]})
    for i in range(6)
]

# --- free answers, judged: a gold answer may be absent, and `score` only describes


def judged_score(record: Record, completion: Completion) -> Score:
    empty = not completion.text.strip()
    metrics = {"characters": float(len(completion.text)), "format_violation": float(empty)}
    return Score(metrics, None, "empty" if empty else None, "empty" if empty else "to be judged")


def grade(text: str) -> int | None:
    found = re.search(r"[1-5]", text)
    return int(found[0]) if found else None


JUDGED = replace(
    CHOICE,
    name="judged",
    columns=("input",),
    render=lambda r: [
        Segment(f"### 指示\n{r['input']}\n", loss=False),
        Segment(r.fields.get("output", "?"), loss=True),
    ],
    reference=lambda record: str(record.fields.get("output", "")),
    baseline_prompt=lambda record, shots: "".join(f"{s['input']}\n{s['output']}\n" for s in shots) + record["input"],
    score=judged_score,
    metrics=(
        Metric("characters", "length of the answer", kind="mean", higher_is_better=None, headline=True),
        VIOLATION,
    ),
    errors={"empty": "nothing"},
    format_errors=frozenset({"empty"}),
    rubric=Rubric("1", lambda record, answer: f"{record['input']}\n{answer.text}\n1-5?", grade),
)
JUDGED_ROWS = [
    Record("judged-test-0", {"input": "詩を書いて", "output": "春の海"}),
    Record("judged-test-1", {"input": "自由に"}),
]

# --- plain text: no prompt, no answer


PLAIN = replace(
    CHOICE,
    name="news",
    kind="cpt",
    columns=("text",),
    render=lambda record: [Segment(f"日付: {record['date']}\n\n{record['text']}", loss=True)],
    reference=lambda record: "",
    baseline_prompt=lambda record, shots: "",
    metrics=(Metric("right", "facts stated", kind="fraction", headline=True),),
    errors={},
    format_errors=frozenset(),
)
PLAIN_ROWS = [Record(f"news-train-{i}", {"date": "2024-10-01", "text": f"記事{i}。"}) for i in range(3)]

WIDE = {
    "spans": (SPANS, SPAN_ROWS),
    "choice": (CHOICE, CHOICE_ROWS),
    "judged": (JUDGED, JUDGED_ROWS),
    "plain": (PLAIN, PLAIN_ROWS),
}


@pytest.mark.parametrize("name", WIDE)
def test_the_contract_takes_it(name: str) -> None:
    task, records = WIDE[name]
    check_task(task, records)


def test_a_gold_answer_is_missed_where_there_is_no_judge() -> None:
    with pytest.raises(ContractError, match="the reference is scored empty"):
        check_task(replace(JUDGED, rubric=None), JUDGED_ROWS)


def test_a_second_gold_answer_is_right() -> None:
    score = SPANS.score(SPAN_ROWS[0], Completion("福岡市。"))
    assert (score.error, score.metrics["right"], score.metrics["first"]) == (None, 1.0, 0.0)
