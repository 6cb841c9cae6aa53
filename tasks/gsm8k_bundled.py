"""Makes the bundled records of GSM8K: our own word problems with annotated solutions, in GSM8K's form.

Source `bundled` of `tasks.gsm8k`, for a first run without downloads. A problem is a kind (a template with its chain of
one to four calculations) filled with people, things and numbers drawn at random. The splits share no question and no
solution. As in the real data, results are whole numbers, a few are negative, and some large ones have commas.

Equal on every platform and Python version: chance comes from `random.Random(seed).random()` alone, whose sequence
Python guarantees.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TypeVar

from tasks.numerals import as_text

SIZES = {"train": 2400, "valid": 250, "test": 250}

_SEED = 20211027

# fmt: off
_NAMES = (
    "Abena", "Bram", "Chiyo", "Dario", "Edda", "Farid", "Greta", "Hollis", "Imke", "Jonas", "Kalani", "Leila",
    "Marek", "Noor", "Odile", "Pavel", "Quinn", "Rosa", "Soren", "Tamsin", "Ulla", "Vera", "Wanda", "Yusuf", "Zofia",
)
_GOODS = (
    "candles", "kites", "lanterns", "notebooks", "paper boats", "pears", "pencils", "postcards", "ribbons", "rolls",
    "scarves", "seed packets", "spoons", "stickers", "tea towels", "whistles",
)
_SHOPS = ("bakery", "bookstall", "flower shop", "garden stall", "harbor kiosk", "toy shop")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_PLACES = ("the library", "the mill", "the pier", "the quarry", "the station", "the swimming pool")
_TOWNS = ("Aldermoor", "Brackwater", "Cold Spring", "Dunnet", "Elmsey", "Fallow Bridge")
# fmt: on

_T = TypeVar("_T")
Problem = tuple[str, list[str], int]


class _Draw:
    """Chance, and the calculator that writes a step with its annotation."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def number(self, low: int, high: int, step: int = 1) -> int:
        """A whole number from `low` to `high`, both included, in steps."""
        return low + step * int(self._rng.random() * ((high - low) // step + 1))

    def pick(self, items: Sequence[_T]) -> _T:
        return items[int(self._rng.random() * len(items))]

    def two(self, items: Sequence[_T]) -> tuple[_T, _T]:
        """Two different items."""
        first = int(self._rng.random() * len(items))
        second = int(self._rng.random() * (len(items) - 1))
        return items[first], items[second + (second >= first)]


def generate(split: str) -> list[dict[str, str]]:
    """Rows with `question` and `answer` of a split; KeyError for a split that is not in `SIZES`."""
    return list(_all_splits()[split])


@functools.cache
def _all_splits() -> dict[str, tuple[dict[str, str], ...]]:
    """All splits at once: what one holds is kept out of the others."""
    rng = random.Random(_SEED)
    seen: set[str] = set()
    return {split: tuple(_new_row(rng, seen) for _ in range(size)) for split, size in SIZES.items()}


def _new_row(rng: random.Random, seen: set[str]) -> dict[str, str]:
    draw = _Draw(rng)
    while True:
        question, steps, result = draw.pick(_KINDS)(draw)
        commas = abs(result) >= 1000 and rng.random() < 0.5
        answer = "\n".join((*steps, f"#### {result:,}" if commas else f"#### {result}"))
        if question not in seen and answer not in seen:
            seen.update((question, answer))
            return {"question": question, "answer": answer}


def _calc(left: int, sign: str, right: int) -> tuple[str, int]:
    """One calculation as the solutions write it, `48/2 = <<48/2=24>>24`, and its result."""
    results = {"+": left + right, "-": left - right, "*": left * right}
    value = Fraction(left, right) if sign == "/" else Fraction(results[sign])
    if value.denominator != 1:
        raise ValueError(f"{left}{sign}{right} is not whole")
    expression = f"{left}{sign}{right}"
    return f"{expression} = <<{expression}={as_text(value)}>>{as_text(value)}", int(value)


def _half_then_all(draw: _Draw) -> Problem:
    shop, goods, (day, next_day) = draw.pick(_SHOPS), draw.pick(_GOODS), draw.two(_DAYS)
    first = draw.number(12, 198, 2)
    half, second = _calc(first, "/", 2)
    both, total = _calc(first, "+", second)
    question = (
        f"A {shop} sells {first} {goods} on {day} and half as many on {next_day}. "
        f"How many {goods} does it sell on the two days together?"
    )
    return question, [f"On {next_day} it sells {half} {goods}.", f"Together that makes {both} {goods}."], total


def _change(draw: _Draw) -> Problem:
    name, goods = draw.pick(_NAMES), draw.pick(_GOODS)
    count, price = draw.number(2, 9), draw.number(2, 12)
    money = draw.number(count * price + 1, count * price + 60)
    cost_text, cost = _calc(count, "*", price)
    left_text, left = _calc(money, "-", cost)
    question = (
        f"{name} has ${money} and buys {count} {goods} at ${price} each. How many dollars does {name} have left over?"
    )
    return question, [f"The {goods} cost {cost_text} dollars.", f"{name} keeps {left_text} dollars."], left


def _shared_equally(draw: _Draw) -> Problem:
    name, goods = draw.pick(_NAMES), draw.pick(_GOODS)
    friends, each, kept = draw.number(3, 9), draw.number(4, 25), draw.number(2, 20)
    total = friends * each + kept
    rest_text, rest = _calc(total, "-", kept)
    each_text, share = _calc(rest, "/", friends)
    question = (
        f"{name} owns {total} {goods}, keeps {kept} of them and shares the others equally among {friends} friends. "
        f"How many {goods} does each friend get?"
    )
    return question, [f"{name} gives away {rest_text} {goods}.", f"Each friend gets {each_text}."], share


def _weekly_wage(draw: _Draw) -> Problem:
    name, wage, hours = draw.pick(_NAMES), draw.number(9, 30), draw.number(3, 9)
    days, weeks = draw.number(2, 6), draw.number(2, 12)
    day_text, a_day = _calc(wage, "*", hours)
    week_text, a_week = _calc(a_day, "*", days)
    all_text, total = _calc(a_week, "*", weeks)
    question = (
        f"{name} earns ${wage} an hour, works {hours} hours a day on {days} days a week, and does so for {weeks} "
        f"weeks. How much does {name} earn in that time?"
    )
    steps = [f"A day brings ${day_text}.", f"A week brings ${week_text}.", f"The {weeks} weeks bring ${all_text}."]
    return question, steps, total


def _temperature(draw: _Draw) -> Problem:
    town, start = draw.pick(_TOWNS), draw.number(1, 15)
    rate, hours = draw.number(2, 5), draw.number(2, 8)
    fall_text, fall = _calc(rate, "*", hours)
    end_text, end = _calc(start, "-", fall)
    question = (
        f"In {town} it is {start} degrees at dusk. Then the temperature falls by {rate} degrees an hour. "
        f"How many degrees is it {hours} hours later?"
    )
    return question, [f"It falls by {fall_text} degrees.", f"After that it is {end_text} degrees."], end


def _round_trips(draw: _Draw) -> Problem:
    name, place = draw.pick(_NAMES), draw.pick(_PLACES)
    miles, times, weeks = draw.number(2, 19), draw.number(2, 6), draw.number(2, 9)
    trip_text, trip = _calc(miles, "*", 2)
    week_text, week = _calc(trip, "*", times)
    all_text, total = _calc(week, "*", weeks)
    question = (
        f"It is {miles} miles from {name}'s home to {place}. {name} cycles there and back {times} times a week. "
        f"How many miles is that in {weeks} weeks?"
    )
    steps = [
        f"There and back is {trip_text} miles.",
        f"A week has {week_text} miles.",
        f"In all it is {all_text} miles.",
    ]
    return question, steps, total


def _percent_off(draw: _Draw) -> Problem:
    name, goods = draw.pick(_NAMES), draw.pick(_GOODS)
    price, percent = draw.number(20, 400, 20), draw.pick((5, 10, 15, 20, 25, 30, 40))
    product_text, product = _calc(price, "*", percent)
    off_text, off = _calc(product, "/", 100)
    pay_text, pay = _calc(price, "-", off)
    question = (
        f"A box of {goods} costs ${price}. {name} has a voucher for {percent}% off. How many dollars does {name} pay?"
    )
    steps = [f"{percent}% of {price}: {product_text}, and {off_text}.", f"{name} pays ${pay_text}."]
    return question, steps, pay


def _crates(draw: _Draw) -> Problem:
    shop, goods = draw.pick(_SHOPS), draw.pick(_GOODS)
    crates, boxes, each = draw.number(3, 14), draw.number(4, 20), draw.number(6, 30)
    broken = draw.number(2, 50)
    box_text, all_boxes = _calc(crates, "*", boxes)
    all_text, total = _calc(all_boxes, "*", each)
    rest_text, rest = _calc(total, "-", broken)
    question = (
        f"A {shop} receives {crates} crates. Each crate holds {boxes} boxes of {each} {goods}. {broken} of the {goods} "
        f"are broken. How many {goods} are whole?"
    )
    steps = [f"There are {box_text} boxes.", f"They hold {all_text} {goods}.", f"Whole are {rest_text}."]
    return question, steps, rest


def _ages(draw: _Draw) -> Problem:
    (old, young), times = draw.two(_NAMES), draw.number(2, 5)
    age, years = draw.number(4, 16), draw.number(2, 12)
    now_text, now = _calc(times, "*", age)
    then_text, then = _calc(now, "+", years)
    other_text, other = _calc(age, "+", years)
    sum_text, total = _calc(then, "+", other)
    question = (
        f"{young} is {age} years old and {old} is {times} times as old. "
        f"How old will the two be together in {years} years?"
    )
    steps = [
        f"{old} is {now_text} now.",
        f"In {years} years {old} is {then_text}.",
        f"{young} is then {other_text}.",
        f"Together they are {sum_text} years old.",
    ]
    return question, steps, total


_KINDS: tuple[Callable[[_Draw], Problem], ...] = (
    _half_then_all,
    _change,
    _shared_equally,
    _weekly_wage,
    _temperature,
    _round_trips,
    _percent_off,
    _crates,
    _ages,
)
