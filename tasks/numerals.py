"""Numbers in running text: where they stand and which exact value they have.

The grammar below `tasks.gsm8k_answer`, for answers written by any model in any style. Text is made plain first
(`plain`: digits of other scripts, full-width forms, LaTeX), then searched (`numbers`). Every step is linear in the
text.

    read as          written
    18               18   18.00   18.   $18   18 %   +18   ¥18   1.8e1   1.8 \\times 10^{1}   36/2   \\frac{36}{2}
    -18              -18   -$18   $-18   negative 18   (with any of the minus signs of Unicode)
    1234567.5        1,234,567.5   12,34,567.5   1.234.567,5   1'234'567.5   1_234_567.5   1\\,234\\,567.5
    0.5              0.5   .5   0,5   1/2   \\frac12   (1 1/2 and the like are 1.5)

One dot is a decimal point, whatever follows it: 1.234 is less than two. One comma before exactly three digits parts
thousands (1,234); before any other number of digits it is a decimal comma (12,50), unless more commas follow (1,2,3 are
three numbers). A minus is a sign unless it stands behind something to be subtracted from: 12-7, 12 - 7 and 5-10 hold
no negative number. Digits that only name something are no number: m^2, cm2, x_1. Numbers in words are not read.
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

MOST_DIGITS = 100  # more than that is a degenerate output: a number, but one that equals nothing
MOST_EXPONENT = 100

_CURRENCY = r"(?:US|A|C)?\$|[€£¥₹₩₽₱₪฿¢]|\b(?:Rs|USD|EUR|GBP|INR)\.?"

# A space between thousands is `_THIN` after `plain`; an ordinary space parts two numbers.
_THIN = "\u00a0"
_GROUPS = rf"""
    [1-9]\d?(?:,\d\d){{1,30}},\d{{3}}(?:\.\d++)?(?!,?\d)             # 12,34,567.8
  | [1-9]\d{{0,2}}(?:,\d{{3}}){{1,33}}+(?:\.\d++)?(?!,?\d)           # 1,234,567.8
  | [1-9]\d{{0,2}}(?:\.\d{{3}}){{1,33}}+,\d++(?![.,]\d)              # 1.234.567,8
  | [1-9]\d{{0,2}}(?:\.\d{{3}}){{2,33}}+(?![.,]?\d)                 # 1.234.567
  | [1-9]\d{{0,2}}(?:[{_THIN}'_]\d{{3}}){{1,33}}+(?:[.,]\d++)?(?!\d)  # 1'234'567.8
  | (?<!\d,)(?:0,\d++|\d++,(?!\d{{3}}(?!\d))\d++)(?![.,]\d)          # 12,50
  | [1-9]\d{{0,2}}[ ]0\d\d(?:[ ]\d{{3}}){{0,33}}+(?:[.,]\d++)?(?!\d)      # 1 000: no number begins with 00
  | \d++(?:\.\d++)?
  | (?<![\w.])\.\d++
"""
_NUMBER = re.compile(
    rf"""
    (?:(?<![\d.,])10[ ]?\^[ ]?[{{(]?(?P<power>[+-]?\d{{1,9}})                             # 10^3
    | (?P<whole>\d{{1,9}})[ ]{{1,2}}(?P<top>\d{{1,4}})/(?P<bottom>\d{{1,4}})(?![\d/.,]*\d)  # 1 1/2
    | (?P<chain>(?<=\d/))? (?P<digits>{_GROUPS})
      (?:[eE](?P<e>[+-]?\d{{1,9}})(?!\d|\.\d) | [ ]?[*x][ ]?10[ ]?\^[ ]?[{{(]?(?P<ten>[+-]?\d{{1,9}}))?
      (?(chain) | (?:[ ]?/[ ]?(?P<divisor>{_GROUPS})(?!/\d))?)  # of 12/25/2020 no part is divided
    )""",
    re.VERBOSE,
)
_SEPARATORS = dict.fromkeys(map(ord, f", '_{_THIN}"))
_SPACED = re.compile(r"[1-9]\d{0,2}(?: \d{3})+(?![\d-])")
_SCALE = re.compile(r"[\s*_{}\\]{0,3}(?:text\{\s?)?(thousand|million|billion|trillion|lakh|crore|k)\b", re.IGNORECASE)
_SCALES = {"k": 3, "thousand": 3, "lakh": 5, "million": 6, "crore": 7, "billion": 9, "trillion": 12}

# What stands before the first digit, in the few characters that decide it.
_LOOK_BACK = 32
_LAST = 100  # digits in so many places at the end of a line are looked at for one that is a number
_MINUS = re.compile(rf"-(?P<gap> ?)(?:{_CURRENCY})? ?(?:\*\*|\{{)?\Z")
_NEGATIVE = re.compile(rf"(?:\bnegative|(?:\b(?:is|equals|to)|[=:#{{]) ?minus) (?:{_CURRENCY})?\Z", re.IGNORECASE)
_NO_SIGN_AFTER = re.compile(r"(?:[^\W_]|[)\]%}-])\Z|[\d)\]%] +\Z")
_SIGN_DESPITE_GAP = re.compile(r"[=:{(\[#] *\Z")
_NAMES = re.compile(r"\^[{(]?[+-]?\Z|(?<![A-Za-z\\])(?:[A-Za-z]|[cmkd]m|ft|yd|in)_?\{?\Z")


@dataclass(frozen=True, slots=True)
class Number:
    """A number in a plain text.

    Attributes:
        value: exact; None if it has more than `MOST_DIGITS` digits or a larger exponent.
        start, end: where its digits begin and where it ends.
        scale: the factor of a word behind it ("1.5 million"), else 1; `value` is without it.
    """

    value: Fraction | None
    start: int
    end: int
    scale: int = 1

    def equals(self, gold: Fraction) -> bool:
        """With or without the scale: "60 million" answers "how many?" and "how many millions?" alike."""
        return self.value is not None and gold in (self.value, self.value * self.scale)


def numbers(text: str, start: int = 0, end: int | None = None) -> Iterator[Number]:
    """The numbers of a plain text between two places, from left to right."""
    for match in _NUMBER.finditer(text, start, len(text) if end is None else end):
        if not _is_name(text, match.start()):
            yield _number(text, match)


def number_at(text: str, place: int) -> Number | None:
    """The number whose first digit stands at `place`; here, where one number is expected, 1 234 is one as well."""
    if spaced := _SPACED.match(text, place):
        text = text[:place] + spaced[0].replace(" ", _THIN) + text[spaced.end() :]
    match = _NUMBER.match(text, place)
    return None if match is None else _number(text, match)


def last_number(text: str) -> Number | None:
    """The last number of a plain text; of a long one, only as many lines from the end as it takes are read."""
    start, window = len(text), 1000
    while start > 0:
        end, start = start, text.rfind("\n", 0, max(0, start - window)) + 1
        for match in reversed(deque(_NUMBER.finditer(text, start, end), maxlen=_LAST)):
            if not _is_name(text, match.start()):
                return _number(text, match)
        window *= 2
    return None


def _is_name(text: str, start: int) -> bool:
    return _NAMES.search(text, max(0, start - _LOOK_BACK), start) is not None


def _number(text: str, match: re.Match[str]) -> Number:
    power, whole, digits, divisor = match.group("power", "whole", "digits", "divisor")
    if power is not None:
        value = _decimal("1", power)
    elif whole is not None:
        value = _mixed(whole, match["top"], match["bottom"])
    else:
        value = _decimal(digits, match["e"] or match["ten"])
        if divisor is not None:
            by = _decimal(divisor, None)
            value = value / by if value is not None and by else None
    if value is not None and _negative(text[max(0, match.start() - _LOOK_BACK) : match.start()]):
        value = -value
    scale = _SCALE.match(text, match.end())
    return Number(value, match.start(), match.end(), 10 ** _SCALES[scale[1].lower()] if scale else 1)


def _mixed(whole: str, top: str, bottom: str) -> Fraction | None:
    """1 1/2 is 1.5; 10 20/2 is no mixed number but two, of which the last counts."""
    if not int(bottom):
        return None
    part = Fraction(int(top), int(bottom))
    return int(whole) + part if part < 1 else part


def _decimal(digits: str, exponent: str | None) -> Fraction | None:
    """Value of one way of writing digits out of `_GROUPS`."""
    if exponent is None and len(digits) <= MOST_DIGITS and digits.isdecimal():  # as nearly all are
        return Fraction(int(digits))
    if len(digits) > 2 * MOST_DIGITS or (exponent and abs(int(exponent)) > MOST_EXPONENT):
        return None
    commas, dots = digits.count(","), digits.count(".")
    if commas and dots and digits.rindex(",") > digits.rindex("."):  # 1.234,5
        digits = digits.replace(".", "").replace(",", ".")
    elif dots > 1:  # 1.234.567
        digits = digits.replace(".", "")
    elif commas == 1 and not dots and not _parts_thousands(digits):  # 12,50
        digits = digits.replace(",", ".")
    whole, _, decimals = digits.translate(_SEPARATORS).partition(".")
    if len(whole) + len(decimals) > MOST_DIGITS:
        return None
    value = Fraction(int(whole + decimals or 0), 10 ** len(decimals))
    return value * Fraction(10) ** int(exponent) if exponent else value


def _parts_thousands(digits: str) -> bool:
    left, _, right = digits.partition(",")
    return len(right) == 3 and len(left) <= 3 and not left.startswith("0")


def _negative(before: str) -> bool:
    """Whether what stands before the digits makes the number negative."""
    minus = _MINUS.search(before)
    if minus is None:
        return _NEGATIVE.search(before) is not None
    rest = before[: minus.start()]
    if minus["gap"]:
        return _SIGN_DESPITE_GAP.search(rest) is not None
    return _NO_SIGN_AFTER.search(rest) is None


def as_text(value: Fraction) -> str:
    """The shortest exact way to write a value: `18`, `-0.5`, `1/3`."""
    if value.denominator == 1:
        return str(value.numerator)
    rest, twos, fives = value.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest != 1:
        return str(value)
    places = max(twos, fives)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)


# --- plain text


_RAISED = "\ue000"  # marks superscripts until they are joined: 10\u207b\u00b2 becomes 10^-2
_MINUSES = "\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d\u02d7"
_FIXED = {
    **{ord(c): "-" for c in _MINUSES},
    **{ord(c): _THIN for c in "\u00a0\u202f\u2009\u2007\u2008\u200a"},
    **{ord(c): "'" for c in "\u2019\u2018\u02bc"},
    **{ord(c): "*" for c in "\u00d7\u22c5\u00b7\u2062"},
    0x2044: "/",  # fraction slash
    0x2215: "/",
    0x00F7: "/",
    0x066B: ".",  # Arabic decimal separator
    0x066C: ",",  # Arabic thousands separator
    0x3002: ". ",
    0x3000: " ",
}


class _Plain(dict[int, str]):
    """For `str.translate`: what a character becomes, worked out when it is first met."""

    def __missing__(self, code: int) -> str:
        self[code] = plain = _FIXED.get(code) or _plain_character(chr(code))
        return plain


def _plain_character(character: str) -> str:
    if character.isascii():
        return character
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    kind = unicodedata.decomposition(character).partition(" ")[0]
    if kind in ("<wide>", "<narrow>", "<small>"):
        return unicodedata.normalize("NFKC", character)
    if kind == "<fraction>":
        return " " + unicodedata.normalize("NFKC", character).replace("\u2044", "/")
    if kind == "<super>" and (character.isdigit() or character in "\u207a\u207b"):
        return _RAISED + ("-" if character == "\u207b" else unicodedata.normalize("NFKC", character))
    if unicodedata.category(character) == "Cf":  # zero-width and direction marks
        return ""
    return character


_TABLE = _Plain()
_SUPERSCRIPT = re.compile(rf"(?:{_RAISED}[-+\d])+")
_LATEX = (
    (re.compile(r"(?<=\d)(?=\\[dtc]?frac)"), " "),  # a mixed number
    (re.compile(r"\\[dtc]?frac\s?\{([^{}]{1,40})\}\s?\{([^{}]{1,40})\}"), r"\1/\2"),
    (re.compile(r"\\[dtc]?frac\s?(\d)\s?(\d)"), r"\1/\2"),
    (re.compile(r"\\times(?![A-Za-z])|\\cdot(?![A-Za-z])"), "*"),
    (re.compile(r"(?<=\d)\\[,;: ](?=\d{3})"), _THIN),
    (re.compile(r"\\[!,;:]|\\(?=[$%#&])"), ""),
)
_ANNOTATION = re.compile(r"<<[^<>\n]*>>\s?(?=\$?-?\.?\d)")


def plain(text: str) -> str:
    """The text with every way of writing digits, signs and separators reduced to the ones that `numbers` knows.

    A calculator annotation is dropped where its result follows: `<<9*2=18>>18` is `18`.
    """
    if not text.isascii():
        text = text.translate(_TABLE)
        if _RAISED in text:
            text = _SUPERSCRIPT.sub(lambda match: "^" + match[0].replace(_RAISED, ""), text)
    text = text.replace("{,}", ",")
    if "\\" in text:
        for pattern, by in _LATEX:
            text = pattern.sub(by, text)
    return _ANNOTATION.sub("", text) if "<<" in text else text
