"""Where an output says its answer: styles of many models, their traps, and the two filters of lm-evaluation-harness."""

from __future__ import annotations

import re
import time
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks.gsm8k_answer import find_answer, gold_number, lm_eval_flexible, lm_eval_normal, lm_eval_strict

STEPS = "Janet keeps 16 - 3 - 4 = 9 eggs.\nShe earns 9 * 2 = "

# text -> the extractor that finds 18 in it
FINDS_18 = {
    # behind ####
    "#### 18": "####",
    f"{STEPS}18 dollars.\n#### 18": "####",
    "####18": "####",
    "#### $18": "####",
    "#### 18.": "####",
    "#### 18.00": "####",
    "#### 18 %": "####",
    "#### 9 eggs/day * $2/egg = $18/day": "####",
    "#### 18 dollars per day": "####",
    "#### **18**": "####",
    "**#### 18**": "####",
    "#### `18`": "####",
    "#### \\boxed{18}": "####",
    "#### $\\text{18}$": "####",
    "#### = 18": "####",
    "#### x = 18": "####",
    "#### 9 * 2 = 18": "####",
    "#### (16 - 7) * $2 = $18": "####",
    "#### <<9*2=18>>18": "####",
    "#### about 18": "####",
    "####\n18": "####",
    "##### 18": "####",
    "#### 18 ####": "####",
    "#### 18\n\n#### ": "####",
    "#### 18 because 9*2=18 and 3+4=7": "####",
    "#### 17\nWait, that is wrong.\n#### 18": "####",
    "#### 18\n\nThe answer is 19.": "####",
    "\uff03\uff03\uff03\uff03 \uff11\uff18": "####",
    "#### 18\n\nI hope this helps! Ask me 3 more.": "####",
    "#### 18. I hope this helps! Ask me 3 more.": "####",
    "#### 18.\n\nQuestion: What is 2 + 2?": "####",
    # in a box
    f"{STEPS}\\boxed{{18}}": "boxed",
    "\\[\\boxed{18\\text{ dollars}}\\] for 3 days": "boxed",
    "$\\boxed{\\$18}$": "boxed",
    "\\(\\boxed{18\\%}\\)": "boxed",
    "\\boxed{\\text{18}}": "boxed",
    "\\boxed{\\textbf{18}}": "boxed",
    "\\boxed{\\text{Janet earns } 18}": "boxed",
    "\\boxed{x = 18}": "boxed",
    "\\boxed{9 \\times 2 = 18}": "boxed",
    "\\boxed{18 \\text{ m}^2}": "boxed",
    "\\boxed{\\frac{36}{2}}": "boxed",
    "\\boxed {18}": "boxed",
    "\\fbox{18}": "boxed",
    "\\boxed{17} no, \\boxed{18}": "boxed",
    "\\boxed{18} \\boxed{}": "boxed",
    "\\boxed{18": "boxed",
    "### Step 1\n\\boxed{18}\nThe answer is 19.": "boxed",
    # stated
    "The answer is 18.": "phrase",
    "the answer is 18": "phrase",
    "The final answer is: **18**": "phrase",
    "The final answer is $18$.": "phrase",
    "#### **1. Count**\n16 - 7 = 9\n#### 2) Sell\n9 * 2\nThe answer is 18.": "phrase",
    "The correct answer is 18 - that is, 9 times 2.": "phrase",
    "The answer is therefore 18.": "phrase",
    "The answer is that she makes $18 every day.": "phrase",
    "The answer to how much she makes is 18.": "phrase",
    "The answer would be 18 dollars": "phrase",
    "The answer is (18)": "phrase",
    "The answer is 9 * 2 = 18.": "phrase",
    "The answer is 9 eggs * $2 = $18.": "phrase",
    "The answer is 18 because 9*2=18 and 3 + 4 = 7.": "phrase",
    "The answer is 18. I hope this helps! Do you have 2 more questions?": "phrase",
    "The answer is 18. She sells 9.": "phrase",
    "I thought the answer is 20. Wait, the answer is 18.": "phrase",
    "The answer is:\n\n18": "phrase",
    "A: 18\n\nQ: And now?": "phrase",
    "Answer: 18": "phrase",
    "**Answer:** 18 dollars": "phrase",
    "**Answer**: $18\n\nExplanation: 16 - 7 = 9, times 2.": "phrase",
    "ANSWER: 18": "phrase",
    "Ans: 18": "phrase",
    "Answer = 18": "phrase",
    "Answer: 9 * 2 = 18": "phrase",
    "Answer: Janet makes $18 every day.": "phrase",
    "**Final Answer:** 18\n\nShe sells 9 eggs for $2 each.": "phrase",
    "### Final Answer\n18": "phrase",
    "**Final Answer**\n\n$18$\n": "phrase",
    "#### Answer: 18": "phrase",
    "A: Janet has 16 eggs. She eats 3 and bakes 4. So 9 * 2 = 18": "phrase",
    "\uff21\uff1a\uff11\uff18": "phrase",
    # the last number
    "18": "last number",
    "$18.": "last number",
    f"{STEPS}18 dollars every day.": "last number",
    "She makes <<9*2=18>>18 dollars.": "last number",
    "She makes 9*2 = <<9*2=18>>": "last number",
    "Thus, Janet makes **\\$18** every day.": "last number",
    "A:\nJanet has 16 eggs.\nShe sells 9.\n9*2 = 18": "last number",
    "A: Janet has 16 eggs.\nShe sells 9.\nThat is 18": "last number",
    "The answer is not 20. It is 18": "last number",
    "The answer is between 17 and 19, so 18": "last number",
    "#### Step one\nWe find 18": "last number",
    "#### Step 1: 16 - 7\n#### Step 2\nWe find 18": "last number",
    "#### 1. Count the eggs\n16 - 7\n#### 2. Sell them\n9 * 2 is 18": "last number",
    "```\n18\n```": "last number",
    '{"answer": 18}': "phrase",
    "<answer>18</answer>": "last number",
    "\u7b54\u3048\u306f18\u3067\u3059\u3002": "last number",
    "\u0627\u0644\u062c\u0648\u0627\u0628 \u0647\u0648 \u0661\u0668": "last number",
    "The area is 18 m^2": "last number",
}


@pytest.mark.parametrize("text", FINDS_18)
def test_the_answer_is_found(text: str) -> None:
    answer = find_answer(text)
    assert answer.number is not None
    assert (answer.number.value, answer.found_by) == (18, FINDS_18[text])


def test_there_are_styles_enough() -> None:
    assert len(FINDS_18) >= 60


# text -> the answer that is read, which is another one than careless reading would give
TRAPS = {
    "#### -10": -10,
    "#### \u221210": -10,
    "#### -$10": -10,
    "#### - 10": -10,
    "\\boxed{-10}": -10,
    "The answer is -10.": -10,
    "The answer is negative 10 degrees.": -10,
    "The temperature is 10 - 20 = -10": -10,
    "The range is 5-10": 10,
    "#### 1,080": 1080,
    "#### 109,200,000": 109200000,
    "#### 1 080": 1080,
    "#### 1.080,50": Fraction("1080.5"),
    "The answer is 1 234 567.": 1234567,
    "The answer is 3.": 3,
    "The answer is 3.5.": Fraction(7, 2),
    "The answer is 1/3": Fraction(1, 3),
    "#### 2 1/2": Fraction(5, 2),
    "#### 0": 0,
    "#### 018": 18,
    "The answer is 6\u00bd hours": Fraction(13, 2),
}


@pytest.mark.parametrize("text", TRAPS)
def test_the_exact_number_is_read(text: str) -> None:
    answer = find_answer(text)
    assert answer.number is not None
    assert answer.number.value == TRAPS[text]


@pytest.mark.parametrize(
    "text", ["", " \n", "no number", "####", "\\boxed{}", "The answer is eighteen.", "m^2", "\u2468"]
)
def test_there_may_be_no_answer(text: str) -> None:
    assert (find_answer(text).number, find_answer(text).found_by) == (None, None)


CLOSING = {
    "#### 18": True,
    "9*2=18\n#### 18\n \n": True,
    "#### $18 a day.": True,
    "#### 18\nI hope this helps.": False,
    "The answer is 18": False,
    "18": False,
    "": False,
}


@pytest.mark.parametrize("text", CLOSING)
def test_the_form_of_the_data_is_a_last_line_with_the_mark(text: str) -> None:
    assert find_answer(text).closing is CLOSING[text]


def test_gold_number() -> None:
    assert gold_number("She has 1,000-400 = 600.\n#### 600") == 600
    assert gold_number("600") == 600
    assert gold_number("none") is None


ANSWER_STYLES = (
    "#### {}",
    "\\boxed{{{}}}",
    "$\\boxed{{{} \\text{{ dollars}}}}$",
    "The answer is {}.",
    "**Final Answer:** {}",
    "Answer: ${}",
    "So in all it is {}.",
)


@pytest.mark.parametrize("style", ANSWER_STYLES)
@settings(deadline=None)
@given(before=st.lists(st.integers(-(10**6), 10**6), max_size=3), gold=st.integers(-(10**9), 10**9))
def test_any_number_is_found_behind_any_reasoning(style: str, before: list[int], gold: int) -> None:
    reasoning = "".join(f"Then there are {number} left.\n" for number in before)
    for written in (str(gold), f"{gold:,}"):
        answer = find_answer(reasoning + style.format(written))
        assert answer.number is not None
        assert answer.number.value == gold


# --- lm-evaluation-harness


def harness(text: str, gold: str) -> tuple[float, float]:
    """The two filters and exact_match as its task gsm8k (version 3) sets them up, with `findall` and `sub`."""
    verdicts = []
    for pattern, select in ((r"#### (\-?[0-9\.\,]+)", 0), (r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1)):
        found = re.findall(pattern, text)
        taken = found[select] if found else "[invalid]"
        if isinstance(taken, tuple):
            taken = [group for group in taken if group][0]
        pair = [taken.strip(), gold]
        for ignored in (",", r"\$", r"(?s).*#### ", r"\.$"):
            pair = [re.sub(ignored, "", side) for side in pair]
        verdicts.append(float(pair[0].lower() == pair[1].lower()))
    return verdicts[0], verdicts[1]


def ours(text: str, gold: str) -> tuple[float, float]:
    wanted = lm_eval_normal(gold)
    return tuple(float(lm_eval_normal(take(text)) == wanted) for take in (lm_eval_strict, lm_eval_flexible))  # type: ignore[return-value]


# completion, gold -> exact_match under strict-match and flexible-extract, worked out by hand from the two patterns
LM_EVAL = {
    ("9*2=18\n#### 18", "18"): (1, 1),
    ("#### 18.", "18"): (1, 1),
    ("#### 1,080", "1080"): (1, 1),
    ("#### 1080", "1,080"): (1, 1),
    ("#### $18", "18"): (0, 1),
    ("####18", "18"): (0, 1),
    ("#### 18.00", "18"): (0, 0),
    ("#### -10", "-10"): (1, 1),
    ("#### \u221210", "-10"): (0, 0),
    ("#### 18\n#### 19", "18"): (1, 0),
    ("The answer is $18.", "18"): (0, 1),
    ("The answer is 18, I hope.", "18"): (0, 1),
    ("She has 18. Now 5", "5"): (0, 1),
    ("The answer is 18...", "18"): (0, 0),
    ("It is 18 and so on ...", "18"): (0, 0),
    ("no number", "18"): (0, 0),
    ("", "18"): (0, 0),
}


@pytest.mark.parametrize(("text", "gold"), LM_EVAL)
def test_the_filters_of_lm_eval(text: str, gold: str) -> None:
    whole_gold = f"Some steps make 1+1=2.\n#### {gold}"
    assert ours(text, whole_gold) == harness(text, whole_gold) == LM_EVAL[text, gold]


@settings(deadline=None)
@given(st.text("0123456789,.$- #\nab", max_size=40), st.text("0123,.$- #\n", max_size=10))
@example("#### 1.\n", "1.\n")
@example("1.", "#### 1.\n")
@example("##,## 5", "##$## 5")
def test_the_filters_agree_with_the_harness_on_any_text(text: str, gold: str) -> None:
    assert ours(text, gold) == harness(text, gold)


HOSTILE = {
    "marks": "#" * 1_000_000,
    "marks and spaces": "#### " * 200_000,
    "marks and words": "#### a " * 150_000,
    "boxes": "\\boxed{" * 150_000,
    "statements": "the answer is " * 70_000,
    "labels": "A:\n" * 300_000,
    "labels with numbers": "Answer: 5 6\n" * 80_000,
    "headings": "answer\n" * 140_000,
    "letters": "a" * 1_000_000,
    "equations": "= 1 " * 250_000,
    "long sentence": "The answer is " + "one or two " * 90_000,
    "decoration": "#### " + "(" * 1_000_000 + " 5",
    "full stops": "." * 1_000_000,
}


@pytest.mark.parametrize("case", HOSTILE)
def test_time_is_linear(case: str) -> None:
    start = time.process_time()
    find_answer(HOSTILE[case])
    lm_eval_normal(lm_eval_strict(HOSTILE[case]))
    lm_eval_normal(lm_eval_flexible(HOSTILE[case]))
    assert time.process_time() - start < 6
