"""When a rejection is the item's and when the configuration's; `test_baselines` has the same against a server."""

from __future__ import annotations

import pytest

from evaluation.chat import Chat, Reply, Unanswered, Usage
from evaluation.rejections import REJECTED, SUSPICIOUS_AFTER, Rejections, too_long

QUESTIONS = {str(number): Chat("x" * (9 - number), 10) for number in range(SUSPICIOUS_AFTER + 2)}
SHORTEST = str(SUSPICIOUS_AFTER + 1)
ANSWER = Reply("a", finish_reason="stop")


def rejected(words: str = "bad") -> Unanswered:
    return Unanswered(REJECTED, f"400: {words}")


def suspicious(words: str = "request {} is bad") -> Rejections:
    found = Rejections(accepted=False)
    for number in range(SUSPICIOUS_AFTER):
        assert found.choose(QUESTIONS) == "0", "in order, so far"
        assert found.take(str(number), rejected(words.format(number))) == {}
    return found


def test_the_shortest_decides() -> None:
    found = suspicious()
    assert found.suspicious
    assert found.choose(QUESTIONS) == SHORTEST
    assert found.take(SHORTEST, rejected("request 17 is bad")) == {}
    assert found.proven


def test_one_acceptance_settles_all_that_waited_and_all_that_comes() -> None:
    found = suspicious()
    settled = found.take(found.choose(QUESTIONS), ANSWER)
    assert list(settled) == [*map(str, range(SUSPICIOUS_AFTER)), SHORTEST]
    assert not found.suspicious
    assert found.take("later", rejected()) == {"later": rejected()}
    assert not found.proven


@pytest.mark.parametrize("outcome", [Unanswered("timeout", "too slow"), Reply("", declined="content_filter", cost=0)])
def test_what_says_nothing_of_the_configuration_leaves_the_suspicion(outcome: Reply | Unanswered) -> None:
    found = suspicious()
    assert found.take(found.choose(QUESTIONS), outcome) == {SHORTEST: outcome}
    assert found.suspicious
    assert found.undecided
    assert not found.proven


def test_a_rejection_under_way_when_the_suspicion_arose_proves_nothing() -> None:
    found = suspicious()
    found.take(str(SUSPICIOUS_AFTER), rejected("request 9 is bad"))
    assert found.suspicious
    assert not found.proven


def test_other_words_end_the_suspicion() -> None:
    found = suspicious()
    found.take(found.choose(QUESTIONS), rejected("no such thing"))
    assert not found.suspicious
    assert not found.proven


@pytest.mark.parametrize("words", ["bad {}", "no {}"])
def test_known_to_be_accepted_nothing_is_held(words: str) -> None:
    found = Rejections(accepted=True)
    for number in range(2 * SUSPICIOUS_AFTER):
        assert list(found.take(str(number), rejected(words.format(number)))) == [str(number)]
    assert not found.suspicious


@pytest.mark.parametrize(
    ("reply", "accepted"),
    [
        (ANSWER, True),
        (Reply(""), True),
        (Reply("No.", declined="refusal", usage=Usage(1, 1)), True),
        (Reply("", declined="content_filter", finish_reason="content_filter"), True),
        (Reply("", declined="content_filter", cost=0), False),
        (Reply("", declined="prompt_too_long", cost=0), False),
    ],
)
def test_an_acceptance_is_a_reply_of_the_model(reply: Reply, accepted: bool) -> None:
    found = Rejections(accepted=False)
    found.take("0", reply)
    assert found.accepted is accepted


@pytest.mark.parametrize(
    ("words", "long"),
    [
        ("the request exceeds the available context size, try increasing it", True),
        ("This model's maximum context length is 512 tokens", True),
        ("The input token count (9) exceeds the maximum number of tokens allowed (8).", True),
        ("Invalid 'messages[0].content': string too long. Expected a string with maximum length 1048576", True),
        ("prompt is too long: 210000 tokens > 200000 maximum", True),
        ("Unsupported parameter: 'temperature'", False),
        ("max_tokens is too large: 4096", False),
        ("the stop sequence is too long", False),
    ],
)
def test_the_words_for_too_long(words: str, long: bool) -> None:
    assert too_long(rejected(words)) is long
