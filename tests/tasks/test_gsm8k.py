"""The GSM8K task: training text and prompt pinned with the task's version, a golden case per error, the real rows."""

from __future__ import annotations

import collections
from collections.abc import Callable
from pathlib import Path

import pytest

import tasks
from tasks.base import SPLITS, Completion, Record, Task, UserError
from tasks.gsm8k import ERRORS, FORMAT_ERRORS, TASK, VALID_PERCENT
from tasks.sources import load

RECORD = Record(
    "gsm8k-test-0",
    {
        "question": "A mill grinds 600 sacks on Monday and half as many on Tuesday, then sells 1,980 sacks that it "
        "took on credit as well. How many sacks does it have left?",
        "answer": "On Tuesday it grinds 600/2 = <<600/2=300>>300 sacks.\n"
        "It then owns 600+300 = <<600+300=900>>900 sacks.\n"
        "After the sale it has 900-1980 = <<900-1980=-1080>>-1080 sacks left.\n"
        "#### -1,080",
    },
)
SHOT = Record(
    "gsm8k-train-0",
    {"question": "Two boats carry 9 crates each. How many crates is that?", "answer": "9*2 = <<9*2=18>>18\n#### 18"},
)
GOLD = TASK.reference(RECORD)
PLAIN = tasks.get("gsm8k", calculator=False)

# completion, finish_reason, error, then the metrics that are 1
CASES: dict[str, tuple[str, str | None, str | None, str]] = {
    "gold": (GOLD, "stop", None, "strict flexible lm_eval_strict lm_eval_flexible answer_findable"),
    "gold at the token limit": (
        GOLD,
        "length",
        None,
        "strict flexible lm_eval_strict lm_eval_flexible answer_findable",
    ),
    "only the last line": ("#### -1080", None, None, "strict flexible lm_eval_strict lm_eval_flexible answer_findable"),
    "unit": ("#### -$1,080.00 sacks", None, None, "strict flexible answer_findable"),
    "unicode minus": ("#### \u22121080", None, None, "strict flexible answer_findable"),
    "text behind": (
        f"{GOLD}\n\nI hope this helps!",
        "stop",
        None,
        "strict flexible lm_eval_strict lm_eval_flexible answer_findable format_violation",
    ),
    "last mark counts": (
        "#### 5\nNo.\n#### -1080",
        None,
        None,
        "strict flexible lm_eval_flexible answer_findable",
    ),
    "first mark counts for lm_eval": (
        "#### -1080\nNo.\n#### 5",
        None,
        "wrong_number",
        "lm_eval_strict answer_findable",
    ),
    "wrong number": ("#### -1081", "stop", "wrong_number", "answer_findable"),
    "wrong sign": ("#### 1080", "stop", "wrong_sign", "answer_findable"),
    "wrong number in prose": ("It is 5.", "stop", "wrong_number", "format_violation"),
    "wrong sign in prose": ("It is 1080", "stop", "wrong_sign", "format_violation"),
    "prose": ("It is -1080", "stop", "wrong_format", "flexible lm_eval_flexible format_violation"),
    "box": ("So $\\boxed{-1{,}080}$ in 3 days", None, "wrong_format", "flexible format_violation"),
    "phrase": ("The answer is -1,080. It is 2 am.", None, "wrong_format", "flexible format_violation"),
    "truncated": ("On Tuesday it grinds 600/2 = <<600/2=3", "length", "truncated", "format_violation"),
    "truncated before any number": ("On Tuesday", "length", "truncated", "format_violation"),
    "truncated, right by luck": (
        "It has -1080",
        "length",
        "truncated",
        "flexible lm_eval_flexible format_violation",
    ),
    "truncated in the number": ("#### -108", "length", "truncated", "answer_findable format_violation"),
    "cut off without a reason": ("#### -108", None, "wrong_number", "answer_findable"),
    "truncated behind a wrong number": ("#### 7\nThus", "length", "wrong_number", "answer_findable format_violation"),
    "empty": ("", "stop", "empty", "format_violation"),
    "white space": (" \n\t ", "length", "empty", "format_violation"),
    "no number": ("I do not know.", "stop", "no_number", "format_violation"),
    "mark without number": ("####", "stop", "no_number", "format_violation"),
    "out of range": ("#### 1" + "0" * 200, "stop", "wrong_number", "answer_findable"),
}


@pytest.mark.parametrize("case", CASES)
def test_answer(case: str) -> None:
    text, finish_reason, error, ones = CASES[case]
    score = TASK.score(RECORD, Completion(text, finish_reason))
    assert " ".join(name for name, value in score.metrics.items() if value) == ones
    assert set(score.metrics.values()) <= {0.0, 1.0}
    assert score.error == error


def test_every_error_has_a_case() -> None:
    assert {error for _, _, error, _ in CASES.values()} == {*ERRORS, None}


def test_format_violation_covers_the_format_errors() -> None:
    for _, _, error, ones in CASES.values():
        assert error not in FORMAT_ERRORS or "format_violation" in ones.split()


WHY = {
    "gold": "the answer is -1080 (behind ####)",
    "text behind": "the answer is -1080 (behind ####), but more text follows it",
    "wrong number": "the answer is -1081 (behind ####), the reference has -1080",
    "phrase": "the answer is -1080 (stated as the answer), which is right, but not behind ####",
    "truncated": "cut off by the token limit; so far the answer is 3 (the last number), the reference has -1080",
    "truncated before any number": "cut off by the token limit; so far there is no number, the reference has -1080",
    "no number": "there is no number in the answer, the reference has -1080",
    "out of range": "the answer is a number out of range (behind ####), the reference has -1080",
    "empty": "the answer is empty",
}


@pytest.mark.parametrize("case", WHY)
def test_why(case: str) -> None:
    text, finish_reason, _, _ = CASES[case]
    assert TASK.score(RECORD, Completion(text, finish_reason)).why == WHY[case]


def test_parsed_says_number_and_extractor() -> None:
    assert TASK.score(RECORD, Completion("x = 1/2")).parsed == {"number": "0.5", "found_by": "last number"}
    assert TASK.score(RECORD, Completion("none")).parsed is None


# Gold 18: the right number in styles that change nothing about it, and numbers that are close but not it.
RIGHT = ("18", "18.00", "18.", "$18", "18 %", "18 dollars", "1.8e1", "36/2", "\uff11\uff18", "018", "+18")
WRONG = ("-18", "180", "1.8", "18.5", "0.18", "1,8", "18e1", "-$18", "18,000", "81")


@pytest.mark.parametrize("answer", RIGHT + WRONG)
@pytest.mark.parametrize("style", ["#### {}", "The answer is {}", "\\boxed{{{}}}", "It is {}"])
def test_numbers_are_compared_exactly(answer: str, style: str) -> None:
    metrics = TASK.score(SHOT, Completion(style.format(answer))).metrics
    assert metrics["flexible"] == (answer in RIGHT)
    assert metrics["strict"] == (answer in RIGHT and style == "#### {}")


def test_a_reference_without_a_number_is_not_accepted_and_scores_without_raising() -> None:
    record = Record("x", {"question": "q", "answer": "none"})
    assert TASK.accepts is not None
    assert not TASK.accepts(record)
    score = TASK.score(record, Completion("#### 5"))
    assert (score.error, score.metrics["flexible"]) == ("wrong_number", 0)


def test_a_reference_may_be_the_bare_number() -> None:
    record = Record("x", {"question": "q", "answer": "18"})
    metrics = TASK.score(record, Completion("#### 18")).metrics
    assert dict(metrics) == {name: float(name != "format_violation") for name in TASK.metric_names}


# --- options


def test_calculator_annotations_are_kept_or_stripped_everywhere() -> None:
    stripped = "On Tuesday it grinds 600/2 = 300 sacks."
    for text in (PLAIN.reference(RECORD), PLAIN.render(RECORD)[1].text, PLAIN.baseline_prompt(SHOT, [RECORD])):
        assert stripped in text
        assert "<<" not in text
    assert "<<600/2=300>>" in TASK.baseline_prompt(SHOT, [RECORD])
    assert PLAIN.options == {"calculator": False}
    assert tasks.get("gsm8k", calculator=True).reference(RECORD) == GOLD


@pytest.mark.parametrize("task", [TASK, PLAIN])
def test_scores_do_not_depend_on_the_annotations(task: Task) -> None:
    for reference in (TASK.reference(RECORD), PLAIN.reference(RECORD)):
        assert task.score(RECORD, Completion(reference)).metrics["strict"] == 1


def test_a_text_is_no_value_for_calculator() -> None:
    with pytest.raises(UserError, match="calculator"):
        tasks.get("gsm8k", calculator="false")


# --- splits


def test_valid_is_carved_from_train_by_question() -> None:
    assert TASK.carve is not None
    splits = [TASK.carve({"question": f"How many are {i}?"}) for i in range(20_000)]
    assert splits.count("valid") / len(splits) == pytest.approx(VALID_PERCENT / 100, abs=0.01)
    assert set(splits) == {"train", "valid"}
    assert len({TASK.carve({"question": text}) for text in ("How MANY are 7?", " How many\nare 7?")}) == 1


# --- golden texts


def _render_marked(task: Task, record: Record) -> str:
    return "".join(f"{{{{{s.text}}}}}" if s.loss else s.text for s in task.render(record))


GOLDEN_TEXTS: dict[str, Callable[[], str]] = {
    "gsm8k_render.txt": lambda: _render_marked(TASK, RECORD),
    "gsm8k_render_without_calculator.txt": lambda: _render_marked(PLAIN, RECORD),
    "gsm8k_prompt.txt": lambda: TASK.baseline_prompt(RECORD, []),
    "gsm8k_prompt_1_shot.txt": lambda: TASK.baseline_prompt(RECORD, [SHOT]),
    "gsm8k_prompt_1_shot_without_calculator.txt": lambda: PLAIN.baseline_prompt(RECORD, [SHOT]),
}


@pytest.mark.parametrize("name", GOLDEN_TEXTS)
def test_text_is_the_golden_text(golden: Callable[[str, str], None], name: str) -> None:
    golden(name, GOLDEN_TEXTS[name]() + "\n")


def test_structured_prompt_ends_where_the_answer_begins() -> None:
    first, second = TASK.render(RECORD)
    assert TASK.structured_prompt(RECORD) == first.text == f"<START_Q>{RECORD['question']}<END_Q><START_A>"
    assert second.text == GOLD + TASK.stop


def test_baseline_prompt_has_examples_and_ends_with_the_question() -> None:
    prompt = TASK.baseline_prompt(RECORD, [SHOT] * 8)
    assert prompt.count(f"Question: {SHOT['question']}\nAnswer: {SHOT['answer']}\n\n") == 8
    assert prompt.endswith(f"Question: {RECORD['question']}\nAnswer:")
    assert not [stop for stop in TASK.baseline_stop if stop in GOLD]


def test_published_rows_say_what_they_measured() -> None:
    rows = {(row.model, row.setting): row.value for row in TASK.published}
    assert rows["Llama-2-13B", "before tuning"] == 0.28
    assert rows["Llama-2-13B", "tuned in two stages, MathQA then GSM8K"] == 0.47
    assert [rows[f"Llama-2-{size}", "base, 8-shot"] for size in ("7B", "13B", "70B")] == [0.146, 0.287, 0.568]


# --- the real rows


def real(monkeypatch: pytest.MonkeyPatch, folder: Path, split: str) -> list[Record]:
    monkeypatch.setenv("FULLTUNE_DATA", str(folder))
    return load(TASK, split, "hub")


@pytest.mark.real_data
@pytest.mark.parametrize("task", [TASK, PLAIN], ids=["calculator", "plain"])
def test_gold_scores_perfectly_on_all_real_rows(real_data: Path, monkeypatch: pytest.MonkeyPatch, task: Task) -> None:
    counts: collections.Counter[str] = collections.Counter()
    totals: collections.Counter[str] = collections.Counter()
    for split in SPLITS:
        records = real(monkeypatch, real_data, split)
        counts[split] = len(records)
        for record in records:
            score = task.score(record, Completion(task.reference(record)))
            assert score.error is None, (record, score)
            totals.update(score.metrics)
    assert (counts["train"] + counts["valid"], counts["test"]) == (7473, 1319)
    assert counts["valid"] == pytest.approx(7473 * VALID_PERCENT / 100, rel=0.2)
    assert totals == {name: 0 if name == "format_violation" else 8792 for name in task.metric_names}


@pytest.mark.real_data
def test_carved_splits_share_no_row(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, valid = (real(monkeypatch, real_data, split) for split in ("train", "valid"))
    indices = [int(record.id.rpartition("-")[2]) for record in (*train, *valid)]
    assert sorted(indices) == list(range(7473))
    assert {record["question"] for record in train}.isdisjoint(record["question"] for record in valid)


STYLES = {
    "solution without its mark": "{steps}\nSo it is {number}.",
    "phrase": "{steps}\nThe answer is {number}. I hope this helps!",
    "box": "{steps}\n\\[\\boxed{{{number}}}\\]",
    "label": "{steps}\n\n**Final Answer:** ${number}\n\nLet me know if you have 2 more.",
    "Unicode minus and thin spaces": "{steps}\n#### {fancy}",
}


@pytest.mark.real_data
@pytest.mark.parametrize("style", STYLES)
def test_gold_in_other_styles_is_found_on_the_real_test_split(
    real_data: Path, monkeypatch: pytest.MonkeyPatch, style: str
) -> None:
    records = real(monkeypatch, real_data, "test")
    negative, grouped = 0, 0
    for record in records:
        steps, _, number = str(record["answer"]).partition("\n#### ")
        fancy = number.replace("-", "\u2212").replace(",", "\u202f")
        negative, grouped = negative + ("-" in number), grouped + ("," in number)
        text = STYLES[style].format(steps=steps, number=number, fancy=fancy)
        assert TASK.score(record, Completion(text)).metrics["flexible"] == 1, text
    assert (negative, grouped) == (2, 14)
