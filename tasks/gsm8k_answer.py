"""Finds the final answer in an output of any style, and the two answers that lm-evaluation-harness would find.

Between `tasks.numerals` (what a number is) and `tasks.gsm8k` (what is right). A fixed order of extractors decides,
from the most to the least explicit; the first that finds a number has spoken, right or wrong:

    1. "####"         the last `####` with a number behind it. `strict` looks here and nowhere else. A heading that
                      counts sections (`#### 2. Add the eggs`, with more numbers below) is no answer.
    2. "boxed"        the last \\boxed{} (or \\fbox{}) with a number in it
    3. "phrase"       the last "the answer is 18", "Answer: 18", "A: 18", "**Final Answer**" with 18 on the next line
    4. "last number"  the last number of the output

Where an equation follows a mark, the number behind its last `=` is meant (`#### 9 * 2 = 18`). A phrase speaks only if
its sentence says clearly which number it means: the one directly behind it, behind the last `=`, or the only one.
"Answer: 16 eggs a day" with more numbers in later lines is how a solution begins, not how it ends, and is passed over.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from tasks.numerals import Number, last_number, number_at, numbers, plain

MARK = "####"
Extractor = Literal["####", "boxed", "phrase", "last number"]

# What may stand between a mark and its number: space, currency, markdown, LaTeX, "x =".
_DECORATION = re.compile(
    r"(?:[\s$€£¥₹₩*_`\\({\[\"'~≈:=+<>-]|\b(?:US|USD|EUR|GBP|INR|Rs\.?|about|approximately|negative|minus)(?=[\s$\d])"
    r"|(?:text|textbf|mathrm|mathbf|boxed|bf|rm)(?=[\s{])|\b[A-Za-z]\s?=)*+"
)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s?\{")
_BOX_LENGTH = 400
_STATED = re.compile(
    r"""\bans(?:wer)?\b[^\n.:=?!\d]{0,60}?
        (?P<link>\b(?:is|are|was|equals|(?:would|will|should|must)[ ]be|comes[ ]to)\b(?!\s+not\b)|->|=)
      | (?:(?<![^\W_])ans(?:wer)?|^[ \t>\#*_]*A)[*_)\]"'}]*[ ]?(?P<label>:)
      | ^[ \t>\#*_]*(?:the[ ])?(?:final[ ])?answer[ *_:}]*(?P<heading>\n)""",
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_STATEMENTS = 50  # how many phrases are looked at, from the last one backwards
_SENTENCE = 300
_SENTENCE_END = re.compile(r"\n|[.!?][\"')*_$]*\s+(?=[A-Z])")
_BLANK = re.compile(r"[\s*_:#>]*+")
_OPERATOR = re.compile(r" ?(?:[A-Za-z$%][A-Za-z$%/]* ){0,2} ?[-*+/x][\s$(\d]")
_WORD = re.compile(r"[^\W\d_]{2,}")
_WORDS_OF_UNIT = 1
_DIGIT = re.compile(r"\d")
_HEADING = re.compile(r"[.):]\** +\**[^\W\d_]{2}")


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found in an output.

    Attributes:
        number: the final answer; None if there is no number at all.
        found_by: the extractor that found it.
        text: the output in the plain form of `tasks.numerals`, in which the number's places count.
    """

    number: Number | None
    found_by: Extractor | None
    text: str

    @property
    def marked(self) -> bool:
        """Whether the answer stands behind `####`, so that a plain regex finds it."""
        return self.found_by == MARK

    @property
    def closing(self) -> bool:
        """Whether the answer stands behind `####` on the last line: the form of the data."""
        if self.number is None or not self.marked:
            return False
        return not self.text[_line_end(self.text, self.number.end) :].strip()

    @property
    def ends_with_number(self) -> bool:
        """Whether nothing but punctuation follows the number."""
        return self.number is not None and not self.text[self.number.end :].strip(" \t\n.*_`$%)}\\")


def find_answer(text: str) -> Answer:
    """The final answer of an output by the order of extractors above. Never raises; linear in the text."""
    text = plain(text)
    found: Number | None
    if found := _marked(text):
        return Answer(found, "####", text)
    if found := _boxed(text):
        return Answer(found, "boxed", text)
    if found := _stated(text):
        return Answer(found, "phrase", text)
    if found := last_number(text):
        return Answer(found, "last number", text)
    return Answer(None, None, text)


@lru_cache(maxsize=256)  # a row is accepted first and scored soon after
def gold_number(answer: str) -> Fraction | None:
    """The gold number of a reference; of one without `####`, the last number. None if it has no number."""
    last = answer[max(0, answer.rfind(MARK)) :]  # the line that decides, without the reasoning before it
    number = find_answer(last).number or find_answer(answer).number
    return None if number is None else number.value


def _marked(text: str) -> Number | None:
    place = text.rfind(MARK)
    while place >= 0:
        found = _direct(text, place + len(MARK), _line_end(text, place))
        if found and not _is_heading(text, found.end):
            return found
        place = text.rfind(MARK, 0, place)
    return None


def _is_heading(text: str, end: int) -> bool:
    """Whether a marked number only counts a section, as in `#### 2. Add the eggs`: more numbers come below it."""
    return _HEADING.match(text, end) is not None and _last_digit(text) > _line_end(text, end)


def _last_digit(text: str) -> int:
    """Place of the last digit, -1 if there is none."""
    match = _DIGIT.search(text[::-1])
    return len(text) - 1 - match.start() if match else -1


def _boxed(text: str) -> Number | None:
    for match in reversed(list(_BOXED.finditer(text))[-_STATEMENTS:]):
        end = _closing_brace(text, match.end())
        equals = text.rfind("=", match.end(), end)
        found = _direct(text, match.end(), end) or next(numbers(text, max(match.end(), equals), end), None)
        if found is not None:
            return found
    return None


def _closing_brace(text: str, start: int) -> int:
    """Where the brace opened before `start` closes; of a box that was cut off, the end of its line."""
    depth = 1
    for place in range(start, min(len(text), start + _BOX_LENGTH)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return place
    return min(_line_end(text, start), start + _BOX_LENGTH)


def _stated(text: str) -> Number | None:
    matches = list(_STATED.finditer(text))[-_STATEMENTS:]
    if not matches:
        return None
    last_digit = _last_digit(text)
    for match in reversed(matches):
        if found := _said(text, match, last_digit):
            return found
    return None


def _said(text: str, match: re.Match[str], last_digit: int) -> Number | None:
    """The number that a phrase states, None if it does not say clearly which one."""
    blank = _BLANK.match(text, match.end())
    start = blank.end() if blank else match.end()
    end = min(start + _SENTENCE, _line_end(text, start))
    if match["link"] and (stop := _SENTENCE_END.search(text, start, end)):
        end = stop.start()
    direct = _direct(text, start, end)
    found = direct or _only(text, start, end)
    if found is None or match["link"] or last_digit < end:
        return found
    # A label ("A:") before further numbers may open the reasoning: it counts if its line is the number and a unit.
    rest = text[found.end : end]
    return direct if len(_WORD.findall(rest)) <= _WORDS_OF_UNIT and not _DIGIT.search(rest) else None


def _direct(text: str, start: int, end: int) -> Number | None:
    """The number right behind a mark; where it opens an equation, the one behind the last `=`."""
    found = _after_decoration(text, start)
    equals = text.rfind("=", found.end, end) if found else -1
    if found and equals >= 0 and _OPERATOR.match(text, found.end, equals):
        return _after_decoration(text, equals + 1) or found
    return found


def _after_decoration(text: str, start: int) -> Number | None:
    decoration = _DECORATION.match(text, start)
    return number_at(text, decoration.end() if decoration else start)


def _only(text: str, start: int, end: int) -> Number | None:
    """The only number of a stretch, or the one behind its last `=`."""
    equals = text.rfind("=", start, end)
    found = list(numbers(text, equals + 1 if equals >= 0 else start, end))
    return found[0] if len(found) == 1 or (found and equals >= 0) else None


def _line_end(text: str, start: int) -> int:
    end = text.find("\n", start)
    return end if end >= 0 else len(text)


# --- lm-evaluation-harness, task gsm8k version 3

# The patterns are the harness's settings; `findall`, the choice among groups and the fallback follow its filter.
_LM_EVAL_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_LM_EVAL_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_LM_EVAL_NOTHING = "[invalid]"


def lm_eval_strict(text: str) -> str:
    """What filter `strict-match` takes from an output: the first match."""
    match = _LM_EVAL_STRICT.search(text)
    return match[1].strip() if match else _LM_EVAL_NOTHING


def lm_eval_flexible(text: str) -> str:
    """What filter `flexible-extract` takes from an output: the last match, of its groups the one that is filled."""
    last = None
    for last in _LM_EVAL_FLEXIBLE.finditer(text):  # noqa: B007 (the last one is what is wanted)
        pass
    return (last[1] or last[2]).strip() if last else _LM_EVAL_NOTHING


def lm_eval_normal(text: str) -> str:
    """A text as exact_match compares it under the settings of task gsm8k; applied to extracted text and gold alike.

    Ignored: commas, dollar signs, everything up to the last `#### `, one full stop at the end, letter case.
    """
    # rpartition is what substituting `(?s).*#### ` by nothing amounts to, without its quadratic search; the full stop
    # is that of `\.$`, which also stands before a line feed at the end.
    text = text.replace(",", "").replace("$", "").rpartition("#### ")[2]
    if text.endswith(".\n"):
        text = text[:-2] + "\n"
    return text.removesuffix(".").lower()
