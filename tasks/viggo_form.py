"""The form of a ViGGO meaning representation: its vocabulary, its grammar, and when two values are the same.

A sibling of `tasks.viggo`, which scores with it, and of `tasks.viggo_bundled`, which writes with it.

    representation := function "(" [ slot { "," slot } ] ")"
    slot           := attribute "[" value "]"
    function, attribute := letter or "_", then letters, digits, "_"
    value          := any text in which square brackets balance; it may be empty

White space may stand between the parts and around the whole. The reader is written by hand: values hold commas,
colons, parentheses and apostrophes, so neither splitting on commas nor one regular expression can read them. It goes
over the text once, so its time is linear in the length of the text, however deep brackets nest.

Vocabulary and precedence order: ViGGO (Juraska et al., 2019) as used in Anyscale's Llama-2 study.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

FUNCTIONS = (
    "inform",
    "request",
    "give_opinion",
    "confirm",
    "verify_attribute",
    "suggest",
    "request_explanation",
    "recommend",
    "request_attribute",
)

# In order of precedence: a representation must list its attributes in this order.
ATTRIBUTES = (
    "name",
    "exp_release_date",
    "release_year",
    "developer",
    "esrb",
    "rating",
    "genres",
    "player_perspective",
    "has_multiplayer",
    "platforms",
    "available_on_steam",
    "has_linux_release",
    "has_mac_release",
    "specifier",
)

LIST_ATTRIBUTES = frozenset({"genres", "player_perspective", "platforms"})

# Slots whose value is a judgement or a yes/no, which a sentence expresses in words of its own.
UNGROUNDED_ATTRIBUTES = frozenset(
    {"rating", "has_multiplayer", "available_on_steam", "has_linux_release", "has_mac_release", "specifier"}
)

_RANK = {name: rank for rank, name in enumerate(ATTRIBUTES)}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SPACE = re.compile(r"\s*")
_BRACKET = re.compile(r"[\[\]]")
_CONTEXT = 20


class ParseError(ValueError):
    """The text is not a representation.

    Attributes:
        reason: what is wrong, in words.
        position: offset of the character at which reading failed.
        context: the text around the position, which is marked `>>>`.
    """

    def __init__(self, reason: str, text: str, position: int) -> None:
        before, after = text[max(0, position - _CONTEXT) : position], text[position : position + _CONTEXT]
        self.reason, self.position, self.context = reason, position, f"{before}>>>{after}"
        super().__init__(f"{reason} at character {position}: {self.context!r}")


@dataclass(frozen=True, slots=True)
class Representation:
    """A function and its slots (attribute, value), in the order in which they were written."""

    function: str
    slots: tuple[tuple[str, str], ...]

    @property
    def attributes(self) -> tuple[str, ...]:
        """Attribute names in the order written; one that was written twice is here twice."""
        return tuple(name for name, _ in self.slots)

    def __str__(self) -> str:
        return f"{self.function}({', '.join(f'{name}[{value}]' for name, value in self.slots)})"


def parse(text: str) -> Representation:
    """Read one representation that makes up the whole text.

    Raises:
        ParseError: the text is anything else, with the place where it stops being a representation.
    """
    function, at = _name(text, _skip(text, 0), "a function name")
    at = _expect(text, at, "(")
    slots: list[tuple[str, str]] = []
    if not text.startswith(")", at):
        slot, at = _slot(text, at)
        slots.append(slot)
        while text.startswith(",", at):
            slot, at = _slot(text, _skip(text, at + 1))
            slots.append(slot)
    at = _expect(text, at, ")")
    if at != len(text):
        raise ParseError("text after the closing parenthesis", text, at)
    return Representation(function, tuple(slots))


def _slot(text: str, at: int) -> tuple[tuple[str, str], int]:
    name, at = _name(text, at, "an attribute name")
    if not text.startswith("[", at):
        raise ParseError(f"expected '[' after the attribute {name}", text, at)
    start = at + 1
    depth = 1
    for bracket in _BRACKET.finditer(text, start):
        depth += 1 if bracket.group() == "[" else -1
        if depth == 0:
            return (name, text[start : bracket.start()]), _skip(text, bracket.end())
    raise ParseError(f"the value of {name} is never closed", text, at)


def _name(text: str, at: int, what: str) -> tuple[str, int]:
    match = _NAME.match(text, at)
    if match is None:
        raise ParseError(f"expected {what}", text, at)
    return match.group(), _skip(text, match.end())


def _expect(text: str, at: int, character: str) -> int:
    if not text.startswith(character, at):
        raise ParseError(f"expected {character!r}", text, at)
    return _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def in_precedence_order(attributes: tuple[str, ...]) -> bool:
    """Whether the known names among `attributes` stand in the order of `ATTRIBUTES`."""
    ranks = [_RANK[name] for name in attributes if name in _RANK]
    return all(a <= b for a, b in zip(ranks, ranks[1:], strict=False))


def normal_value(attribute: str, value: str) -> str | tuple[str, ...]:
    """A value in the form in which two values are compared.

    Letter case and white space do not count, `E10+` is `E 10+`, and in the attributes that hold lists the order of
    the items does not count. Other values keep their commas: a date or a company name is not a list.
    """
    plain = _plain(value)
    if attribute not in LIST_ATTRIBUTES:
        return plain
    return tuple(sorted(item.strip() for item in plain.split(",")))


def _plain(value: str) -> str:
    folded = " ".join(unicodedata.normalize("NFKC", value).casefold().split())
    return re.sub(r"\be ?10 ?\+", "e 10+", folded)


def grounded(slots: tuple[tuple[str, str], ...], sentence: str) -> float:
    """Fraction of the checkable items among the slot values that occur in the sentence; 1.0 if none is checkable.

    Checkable are the values of all attributes but those in `UNGROUNDED_ATTRIBUTES`; an empty value claims nothing.
    Each item of a list counts as one. An item occurs if its words stand in the sentence in a row, where letter case,
    punctuation and a plural "s" do not count. Of a value with a remark in parentheses either part is enough (`M (for
    Mature)`: "M" or "mature"), and so it is with a slash (`driving/racing`: "driving" or "racing").
    """
    items = [item for name, value in slots if name not in UNGROUNDED_ATTRIBUTES for item in _items(name, value)]
    if not items:
        return 1.0
    spoken = f" {_words(sentence)} "
    return sum(_occurs(item, spoken) for item in items) / len(items)


def _items(attribute: str, value: str) -> list[str]:
    parts = value.split(",") if attribute in LIST_ATTRIBUTES else [value]
    return [part for part in parts if part.strip()]


def _occurs(item: str, spoken: str) -> bool:
    code, _, remark = item.partition("(")
    readings = {_words(reading) for reading in (item, code, remark.strip().removeprefix("for "), *item.split("/"))}
    return any(f" {reading} " in spoken or f" {reading}s " in spoken for reading in readings - {""})


def _words(text: str) -> str:
    """Lower-case words with one space between; apostrophes vanish, other punctuation but `+` parts words."""
    folded = _plain(text).replace("'", "").replace("\u2019", "")
    return " ".join(re.sub(r"[^\w+]|_", " ", folded).split())
