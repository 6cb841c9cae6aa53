"""The grammar of numbers: every way of writing one, what is no number, and that any decimal is read back exactly."""

from __future__ import annotations

import time
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.numerals import MOST_DIGITS, as_text, last_number, numbers, plain

# text -> the numbers in it, as `as_text` writes them
READ = {
    "18": "18",
    "18.": "18",
    "18.00": "18",
    "18.0.": "18",
    "3. ": "3",
    "+18": "18",
    "$18": "18",
    "\u20ac18": "18",
    "18 \u20ac": "18",
    "Rs. 500": "500",
    "USD500": "500",
    "18%": "18",
    "18 %": "18",
    "007": "7",
    "1,000": "1000",
    "1,234,567.89": "1234567.89",
    "109,200,000": "109200000",
    "12,34,567": "1234567",
    "1,00,000": "100000",
    "1.234.567": "1234567",
    "1.234,5": "1234.5",
    "1.234": "1.234",
    "1000,50": "1000.5",
    "12,50": "12.5",
    "0,125": "0.125",
    "3,1416": "3.1416",
    "1'234'567": "1234567",
    "1\u2019234.5": "1234.5",
    "1_000_000": "1000000",
    "1\u202f234\u202f567": "1234567",
    "1\u00a0000": "1000",
    "1 000 000": "1000000",
    ".5": "0.5",
    "1/2": "0.5",
    "1 / 2": "0.5",
    "2/3": "2/3",
    "1 1/2": "1.5",
    "\u00bd": "0.5",
    "1\u00bd": "1.5",
    "36 \u00f7 2": "18",
    "1e3": "1000",
    "1.8E+1": "18",
    "25e-1": "2.5",
    "1.8 \u00d7 10\u00b9": "18",
    "3 x 10^6": "3000000",
    "10\u207b\u00b2": "0.01",
    "10^3": "1000",
    "\\frac{1}{2}": "0.5",
    "\\dfrac12": "0.5",
    "1\\frac{1}{2}": "1.5",
    "-\\frac{1}{2}": "-0.5",
    "1{,}234": "1234",
    "1\\,234": "1234",
    "1.8 \\times 10^{1}": "18",
    "\\$18": "18",
    "-10": "-10",
    "-$10": "-10",
    "$-10": "-10",
    "**-10**": "-10",
    "(-10)": "-10",
    "x = - 10": "-10",
    "is -10": "-10",
    "\u221210": "-10",
    "\u201310": "-10",
    "\uff0d10": "-10",
    "negative 10": "-10",
    "is minus 10": "-10",
    "5\n-10": "5 -10",
    "5-10": "5 10",
    "5 - 10": "5 10",
    "5 -10": "5 10",
    "5\u201310": "5 10",
    "step-10": "10",
    "- 10 apples": "10",
    "20% - 10%": "20 10",
    "20 minus 10": "20 10",
    "\uff11\uff18": "18",
    "\uff0d\uff11\uff0c\uff10\uff10\uff10": "-1000",
    "\u0661\u0668": "18",
    "\u0661\u066b\u0665": "1.5",
    "\u0967\u096e": "18",
    "\u7b54\u3048\u306f18\u3067\u3059\u3002": "18",
    "1\u200b8": "18",
    "\U0001d7cf\U0001d7d6": "18",
    "1, 2, 3": "1 2 3",
    "1,2,3": "1 2 3",
    "1,234,56": "1 234 56",
    "in 3.5 of 4.": "3.5 4",
    "...5": "5",
    "12/25/2020": "12 25 2020",
    "5/0": "?",
    "18 m^2": "18",
    "18 m\u00b2": "18",
    "18 cm2": "18",
    "x_1 = 5": "5",
    "H2O": "",
    "<<9*2=18>>18": "18",
    "= $<<9*2=18>>18 a day": "18",
    "eighteen": "",
    "": "",
    "\u2468 \u00b2": "",
    "1" * 101: "?",
    "1e101": "?",
    "0." + "0" * 101: "?",
}


def shown(value: Fraction | None) -> str:
    return "?" if value is None else as_text(value)


@pytest.mark.parametrize("text", READ)
def test_numbers_in_a_text(text: str) -> None:
    assert " ".join(shown(number.value) for number in numbers(plain(text))) == READ[text]


@pytest.mark.parametrize("text", READ)
def test_the_last_number_is_the_last_of_all(text: str) -> None:
    found = last_number(plain(text))
    assert shown(found.value) == READ[text].split(" ")[-1] if found else not READ[text]


SCALED = {"$1.5 million": 1500000, "60 thousand": 60000, "2k": 2000, "3 \\text{ billion}": 3 * 10**9, "18 km": 18}


@pytest.mark.parametrize("text", SCALED)
def test_a_word_of_scale_counts_or_not(text: str) -> None:
    (number,) = numbers(plain(text))
    assert number.value is not None
    assert number.equals(Fraction(SCALED[text]))
    assert number.equals(number.value)
    assert not number.equals(-number.value)


def test_a_number_out_of_range_equals_nothing() -> None:
    (number,) = numbers("1" * (MOST_DIGITS + 1))
    assert not number.equals(Fraction(10**MOST_DIGITS))


def test_the_last_number_of_a_long_text_may_stand_at_its_beginning() -> None:
    found = last_number("18 dollars\n" + "and so on\n" * 5000)
    assert found is not None
    assert (found.value, found.start, found.end) == (18, 0, 2)


# --- any decimal in any style


def _grouped(separator: str, point: str) -> Callable[[str], str]:
    def style(text: str) -> str:
        sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text)
        whole, dot, decimals = digits.partition(".")
        return sign + f"{int(whole):,}".replace(",", separator) + (point + decimals if dot else "")

    return style


def _translated(zero: int) -> Callable[[str], str]:
    return lambda text: text.translate({ord("0") + i: chr(zero + i) for i in range(10)})


def _european(text: str) -> str:
    """A decimal comma; where it would read as a comma of thousands, with a further 0."""
    written = _grouped(".", ",")(text)
    whole, comma, decimals = written.partition(",")
    if not comma:
        return written + ",0"
    return written + "0" if len(decimals) == 3 and "." not in whole else written


def _indian(text: str) -> str:
    sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text)
    whole, dot, decimals = digits.partition(".")
    head, tail = whole[:-3], whole[-3:]
    pairs = [head[max(0, i - 2) : i] for i in range(len(head), 0, -2)][::-1]
    return sign + ",".join([*pairs, tail]) + dot + decimals


def _scientific(text: str) -> str:
    return f"{Decimal(text):e}"


def _latex_scientific(text: str) -> str:
    mantissa, _, exponent = f"{Decimal(text):e}".partition("e")
    return f"${mantissa} \\times 10^{{{int(exponent)}}}$"


def _fraction(text: str) -> str:
    sign = "-" if text.startswith("-") else ""
    top, bottom = abs(Fraction(text)).as_integer_ratio()
    return f"{sign}\\frac{{{top}}}{{{bottom}}}"


NUMBER_STYLES: dict[str, Callable[[str], str]] = {
    "plain": str,
    "trailing zero": lambda text: text + ("0" if "." in text else ".00"),
    "commas": _grouped(",", "."),
    "apostrophes": _grouped("'", "."),
    "thin spaces": _grouped("\u202f", "."),
    "LaTeX spaces": _grouped("\\,", "."),
    "LaTeX commas": _grouped("{,}", "."),
    "underscores": _grouped("_", "."),
    "European": _european,
    "Indian": _indian,
    "dollars": lambda text: text.replace("-", "-$") if "-" in text else f"${text}",
    "dollars, sign inside": lambda text: f"${text}",
    "per cent": lambda text: f"{text} %",
    "bold": lambda text: f"**{text}**",
    "minus sign": lambda text: text.replace("-", "\u2212"),
    "full-width": lambda text: "".join(chr(ord(c) + 0xFEE0) for c in text),
    "Arabic": _translated(0x0660),
    "Devanagari": _translated(0x0966),
    "bold mathematics": _translated(0x1D7CE),
    "scientific": _scientific,
    "LaTeX scientific": _latex_scientific,
    "fraction": _fraction,
    "LaTeX text": lambda text: f"\\text{{{text}}}",
    "full stop": lambda text: f"{text}.",
}

DECIMALS = st.builds(
    lambda sign, digits, places: f"{Decimal(sign * digits).scaleb(-places):f}",
    st.sampled_from((1, -1)),
    st.integers(1, 10**12),
    st.integers(0, 6),
)


@pytest.mark.parametrize("style", NUMBER_STYLES)
@settings(deadline=None)
@given(text=DECIMALS)
def test_a_decimal_is_read_back_from_any_style(style: str, text: str) -> None:
    written = NUMBER_STYLES[style](text)
    found = last_number(plain(f"In all it is {written}"))
    assert found is not None, written
    assert found.value == Fraction(text), written


@settings(deadline=None)
@given(DECIMALS)
def test_as_text_is_exact(text: str) -> None:
    value = Fraction(text)
    assert Fraction(as_text(value)) == value
    assert "e" not in as_text(value)


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_plain_text_stays_as_it_is(text: str) -> None:
    once = plain(text.replace("\\", "").replace("<", ""))
    assert plain(once) == once


@settings(deadline=None)
@given(st.text("0123456789,.-/ ^e$x*(){}\\\n'%k", max_size=60))
def test_numbers_stand_where_they_say_in_order(text: str) -> None:
    end = 0
    for number in numbers(text):
        assert end <= number.start < number.end <= len(text)
        assert text[number.start : number.end].strip()
        end = number.end


HOSTILE = {
    "digits": "1" * 1_000_000,
    "pairs": "11," * 300_000,
    "triples": "111," * 250_000,
    "dotted triples": "111." * 250_000,
    "thin spaces": "111\u00a0" * 250_000,
    "spaces": "111 " * 250_000,
    "fractions": "1/" * 500_000,
    "mixed": "1 1/" * 250_000,
    "powers": "10^" * 300_000,
    "exponents": "1e" * 500_000,
    "fracs": "\\frac{1}{" * 100_000,
    "annotations": "<<" * 500_000,
    "superscripts": "\u00b2" * 1_000_000,
    "names": "m2 " * 300_000,
    "minuses": "-" * 1_000_000,
}


@pytest.mark.parametrize("case", HOSTILE)
def test_time_is_linear(case: str) -> None:
    start = time.process_time()
    last_number(plain(HOSTILE[case]))
    assert time.process_time() - start < 6
