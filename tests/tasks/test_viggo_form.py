"""The grammar of ViGGO representations, the comparison of values and the check that values stand in the sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.base import Completion, Record
from tasks.viggo import TASK
from tasks.viggo_form import (
    ATTRIBUTES,
    FUNCTIONS,
    ParseError,
    Representation,
    grounded,
    in_precedence_order,
    normal_value,
    parse,
)

CHARACTERS = st.characters(codec="utf-8")  # every character but lone surrogates
VALUES = st.recursive(
    st.text(st.characters(codec="utf-8", exclude_characters="[]"), max_size=8),
    lambda inner: st.lists(st.one_of(inner, inner.map(lambda text: f"[{text}]")), max_size=4).map("".join),
    max_leaves=6,
)
NAMES = st.one_of(st.sampled_from(ATTRIBUTES), st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True))
REPRESENTATIONS = st.builds(
    Representation,
    st.one_of(st.sampled_from(FUNCTIONS), NAMES),
    st.lists(st.tuples(NAMES, VALUES), max_size=8).map(tuple),
)


@given(REPRESENTATIONS)
def test_parse_inverts_render(representation: Representation) -> None:
    assert parse(str(representation)) == representation


@given(REPRESENTATIONS, st.text(CHARACTERS, max_size=5))
def test_any_answer_scores_perfectly_against_itself(representation: Representation, sentence: str) -> None:
    record = Record("x", {"mr": str(representation), "ref": sentence})
    metrics = TASK.score(record, Completion(str(representation))).metrics
    assert all(metrics[name] for name in ("parsable", "function", "attributes", "values", "exact"))


def parse_or_error(text: str) -> Representation | ParseError:
    try:
        return parse(text)
    except ParseError as error:
        return error


@given(st.text(alphabet="inform(name[],) \n", max_size=40))
def test_any_text_is_a_representation_or_has_a_place_where_it_stops_being_one(text: str) -> None:
    found = parse_or_error(text)
    if isinstance(found, ParseError):
        assert 0 <= found.position <= len(text)
        assert ">>>" in found.context
    else:
        assert parse(str(found)) == found


@pytest.mark.parametrize(
    "value",
    ["", " ", "a, b", "Dirt: Showdown", "M (for Mature)", "E 10+", "O'Dell", "f(name[x], y[z])", "[[x]]", ")", "a\nb"],
)
def test_values_are_read_verbatim(value: str) -> None:
    assert parse(f"inform(name[{value}], rating[good])").slots == (("name", value), ("rating", "good"))


BAD_FORMS = {
    "": ("expected a function name", 0),
    "inform": ("expected '('", 6),
    "inform(": ("expected an attribute name", 7),
    "inform(name)": ("expected '[' after the attribute name", 11),
    "inform(name[a": ("the value of name is never closed", 11),
    "inform(name[[a])": ("the value of name is never closed", 11),
    "inform(name[a]": ("expected ')'", 14),
    "inform(name[a]])": ("expected ')'", 14),
    "inform(name[a] rating[b])": ("expected ')'", 15),
    "inform(name[a],)": ("expected an attribute name", 15),
    "inform(name[a]) x": ("text after the closing parenthesis", 16),
    "9(name[a])": ("expected a function name", 0),
}


@pytest.mark.parametrize("text", BAD_FORMS)
def test_parse_error_says_what_and_where(text: str) -> None:
    with pytest.raises(ParseError) as error:
        parse(text)
    assert (error.value.reason, error.value.position) == BAD_FORMS[text]


@pytest.mark.parametrize(
    ("attribute", "one", "other", "same"),
    [
        ("genres", "shooter, indie", "Indie,  SHOOTER", True),
        ("genres", "shooter", "shooter, shooter", False),
        ("platforms", "PC", "PC, Xbox", False),
        ("esrb", "E10+ (for Everyone 10 and Older)", "e 10 + (for everyone 10  and older)", True),
        ("esrb", "E", "E 10+", False),
        ("name", "Spin,  Top", "spin, top", True),
        ("name", "Spin, Top", "Top, Spin", False),
        ("name", "\uff21", "a", True),
        ("has_mac_release", "", "no", False),
        ("has_mac_release", "", " ", True),
    ],
)
def test_when_two_values_are_the_same(attribute: str, one: str, other: str, same: bool) -> None:
    assert (normal_value(attribute, one) == normal_value(attribute, other)) is same


@pytest.mark.parametrize(
    ("slots", "sentence", "share"),
    [
        ("name[Sea Dog]", "I like SEA-DOG!", 1),
        ("name[Sea Dog]", "I like Sea Dogs.", 1),
        ("name[Sea Dog]", "The sea and a dog.", 0),
        ("name[Tom's]", "Toms or Tom\u2019s", 1),
        ("release_year[201]", "Out in 2011.", 0),
        ("genres[puzzle, racing, card]", "A racing game with puzzles", 2 / 3),
        ("genres[driving/racing]", "A racing game", 1),
        ("esrb[M (for Mature)]", "I'm fond of it", 0),
        ("esrb[M (for Mature)]", "an M-rated game", 1),
        ("esrb[M (for Mature)]", "for mature players", 1),
        ("esrb[E10+]", "rated E 10+", 1),
        ("developer[Dot, Inc.]", "by Dot, Inc", 1),
        ("rating[good], has_mac_release[no], specifier[odd], has_multiplayer[yes]", "Hm.", 1),
        ("rating[good], name[Sea]", "Hm.", 0),
        ("developer[], genres[]", "Hm.", 1),
        ("name[???]", "???", 0),
        ("fable[sea]", "the sea", 1),
        ("", "Hm.", 1),
    ],
)
def test_grounded(slots: str, sentence: str, share: float) -> None:
    assert grounded(parse(f"inform({slots})").slots, sentence) == pytest.approx(share)


def test_precedence_order() -> None:
    assert in_precedence_order(ATTRIBUTES)
    assert in_precedence_order(("name", "other", "esrb", "esrb"))
    assert not in_precedence_order(("esrb", "other", "name"))
