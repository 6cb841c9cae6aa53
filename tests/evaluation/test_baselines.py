"""Faults of an API, one by one, against a scripted server on loopback: no item lost, no double charge, exact ledger.

Every case says what the server does and what has to come of it. The prices are round numbers, so that a bill can be
checked by hand: 1 USD per million prompt tokens, 2 per million completion tokens; a prompt has one token per letter
and a whole answer three. Waits between attempts are recorded instead of slept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import scripted_server as server
from scripted_server import Action, Server, serve

from evaluation import chat, prices
from evaluation.baselines import GIVE_UP_AFTER, Client, Stopped, connect
from evaluation.chat import Chat, Reply, Unanswered
from evaluation.ledger import Budget, Ledger, Totals
from evaluation.prices import PICO, Price
from evaluation.rejections import SUSPICIOUS_AFTER
from evaluation.retries import Policy
from tasks.base import UserError

PRICE = Price(input=PICO // 10**6, output=2 * PICO // 10**6, cached_input=PICO // 2 // 10**6, as_of="t", source="t")
POLICY = Policy(attempts=4, first_s=1.0, longest_s=60.0, patience_s=300.0, jitter=lambda: 1.0)
WORDS = ("abc", "defg", "hij")
SERVER_NOW = datetime(2026, 11, 22, 6, 0, 0, tzinfo=UTC)


@dataclass
class Api:
    """A scripted server and a client for it, with everything that a check needs."""

    server: Server
    client: Client
    ledger: Ledger
    waits: list[float] = field(default_factory=list)

    def ask(self, *words: str) -> dict[str, Reply | Unanswered]:
        return dict(self.client.ask_all({word: Chat(word, 10) for word in words or WORDS}))

    def totals(self) -> Totals:
        return self.ledger.totals()


Start = Callable[..., Api]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a server with a script (or take the one `at` hand) and a client, under a ledger of that name."""
    servers = ExitStack()

    def begin(
        script: dict[int, Action] | None = None,
        otherwise: Action | None = None,
        *,
        budget: Budget | None = None,
        run: str = "run",
        at: Server | None = None,
        timeout_s: float = 5.0,
        model: str = "tiny",
        price: Price | None = PRICE,
        **settings: Any,
    ) -> Api:
        state = at or servers.enter_context(serve(script, otherwise))
        ledger = Ledger(tmp_path / "cache", run, budget or Budget())
        where = chat.endpoint(f"openai:{model}", state.url, timeout_s=timeout_s)
        waits: list[float] = []
        options = {"purpose": "test", "policy": POLICY, "concurrency": 1, "wait": waits.append, **settings}
        return Api(state, connect(where, price, ledger, **options), ledger, waits)

    with servers:
        yield begin


def bill(*words: str) -> int:
    """Picodollars of whole answers to these prompts."""
    return sum(len(word) * PRICE.input + 3 * PRICE.output for word in words)


def check_whole(api: Api, found: dict[str, Reply | Unanswered], words: tuple[str, ...] = WORDS) -> None:
    """Everything is answered rightly, charged once, and the ledger says what the server saw."""
    assert {word: outcome.text for word, outcome in found.items() if isinstance(outcome, Reply)} == {
        word: word[::-1] for word in words
    }
    assert sorted(api.server.charged) == sorted(set(words))
    totals = api.totals()
    assert totals.calls == len(api.server.seen)
    assert totals.answered == len(set(words))
    assert totals.cost == bill(*set(words))
    assert totals.prompt_tokens == sum(map(len, set(words)))
    assert totals.completion_tokens == 3 * len(set(words))


# --- faults that pass: asked again until the answer comes. The script breaks the first requests of "abc".

# name: script, waits before the next attempts, kinds of fault, uncertain ones among them
FIRST = "abc"
CEILING = PRICE.ceiling(Chat(FIRST, 10))
PASSING: dict[str, tuple[list[Action], list[float], dict[str, int], int]] = {
    "429 without Retry-After": ([server.status(429)], [1.0], {"rate_limited": 1}, 0),
    "429 with Retry-After in seconds": ([server.status(429, retry_after="7")], [8.0], {"rate_limited": 1}, 0),
    "429 with Retry-After of zero": ([server.status(429, retry_after="0")], [1.0], {"rate_limited": 1}, 0),
    "429 with retry-after-ms": ([server.status(429, retry_after_ms="250")], [1.25], {"rate_limited": 1}, 0),
    "429 with a Retry-After nobody can read": (
        [server.status(429, retry_after="soon")],
        [1.0],
        {"rate_limited": 1},
        0,
    ),
    "429 three times, waits double": ([server.status(429)] * 3, [1.0, 2.0, 4.0], {"rate_limited": 3}, 0),
    "500 once": ([server.status(500)], [1.0], {"server_error": 1}, 0),
    "a burst of 500, 502 and 503": (
        [server.status(500), server.status(502), server.status(503)],
        [1.0, 2.0, 4.0],
        {"server_error": 3},
        0,
    ),
    "503 with Retry-After": ([server.status(503, retry_after="3")], [4.0], {"server_error": 1}, 0),
    "504, perhaps charged": ([server.status(504)], [1.0], {"server_error": 1}, 1),
    "408 and 409": ([server.status(408), server.status(409)], [1.0, 2.0], {"server_error": 2}, 1),
    "an error page in HTML": (
        [server.raw(b"<html><h1>502 Bad Gateway</h1></html>", code=502, content_type="text/html")],
        [1.0],
        {"server_error": 1},
        0,
    ),
    "dropped before the headers": ([server.drop_before_headers], [1.0], {"connection": 1}, 1),
    "dropped in the body": ([server.drop_in_body], [1.0], {"connection": 1}, 1),
    "truncated JSON": ([server.raw(b'{"choices": [{"message": {"con')], [1.0], {"malformed": 1}, 1),
    "an empty body": ([server.raw(b"")], [1.0], {"malformed": 1}, 1),
    "HTML with status 200": ([server.raw(b"<html>busy</html>", content_type="text/html")], [1.0], {"malformed": 1}, 1),
    "a JSON list": ([server.json_body([1, 2])], [1.0], {"wrong_schema": 1}, 1),
    "no choices key": ([server.json_body({"id": "x"})], [1.0], {"wrong_schema": 1}, 1),
    "choices without a message": ([server.json_body({"choices": [{"text": "x"}]})], [1.0], {"wrong_schema": 1}, 1),
    "content that is a number": ([server.answer(content=7)], [1.0], {"wrong_schema": 1}, 0),
    "empty choices": ([server.json_body({"choices": []})], [1.0], {"no_choices": 1}, 1),
    "an error in a body of status 200": (
        [server.json_body({"error": {"message": "overloaded"}})],
        [1.0],
        {"error_in_body": 1},
        1,
    ),
    "a mixture": (
        [server.status(429, retry_after="2"), server.drop_in_body, server.raw(b"{")],
        [3.0, 2.0, 4.0],
        {"connection": 1, "malformed": 1, "rate_limited": 1},
        2,
    ),
}


@pytest.mark.parametrize("case", PASSING)
def test_a_fault_that_passes_costs_one_answer(start: Start, case: str) -> None:
    actions, waits, faults, uncertain = PASSING[case]
    api = start(dict(enumerate(actions)))
    found = api.ask()
    api.server.charged[:] = dict.fromkeys(api.server.charged)  # an unusable answer to "abc" is listed as well
    totals = api.totals()
    paid_for_nothing = bill(FIRST) if case == "content that is a number" else 0
    assert api.waits == waits
    assert totals.faults == faults
    assert totals.retries == len(actions)
    assert totals.uncertain == uncertain * CEILING
    assert totals.cost - paid_for_nothing == bill(*WORDS)
    assert [outcome.text for outcome in found.values() if isinstance(outcome, Reply)] == [w[::-1] for w in WORDS]
    assert totals.calls == len(api.server.seen) == len(WORDS) + len(actions)
    assert api.server.charged == list(WORDS)


def test_retry_after_as_a_date_counts_from_the_servers_clock(start: Start) -> None:
    """The date lies years from this machine's clock: only the server's own Date makes sense of it."""

    def refuse(handler: server.Handler, seen: server.Seen) -> None:
        handler.send_response_only(429)
        handler.send_header("date", format_datetime(SERVER_NOW, usegmt=True))
        handler.send_header("retry-after", format_datetime(SERVER_NOW + timedelta(seconds=20), usegmt=True))
        handler.send_header("content-length", "0")
        handler.end_headers()

    api = start({0: refuse})
    check_whole(api, api.ask())
    assert api.waits == [21.0]


def test_a_slow_drip_meets_the_deadline(start: Start) -> None:
    """Bytes keep coming, so no timeout between two of them ever fires: the limit is on the whole answer."""
    api = start({0: server.drip(seconds=3.0)}, timeout_s=0.4)
    check_whole(api, api.ask())
    assert api.totals().faults == {"timeout": 1}
    assert api.totals().uncertain == CEILING


def test_a_silent_server_times_out(start: Start) -> None:
    release = threading.Event()

    def hang(handler: server.Handler, seen: server.Seen) -> None:
        release.wait(10)
        handler.close_connection = True

    api = start({0: hang}, timeout_s=0.3)
    try:
        check_whole(api, api.ask())
        assert api.totals().faults == {"timeout": 1}
    finally:
        release.set()


# --- faults that stay


@pytest.mark.parametrize(
    ("action", "fault"),
    [
        (server.status(500), "server_error"),
        (server.status(429), "rate_limited"),
        (server.drop_before_headers, "connection"),
        (server.raw(b"nonsense"), "malformed"),
        (server.json_body({"choices": []}), "no_choices"),
    ],
)
def test_a_question_that_never_gets_an_answer_is_named_and_the_others_are_answered(
    start: Start, action: Action, fault: str
) -> None:
    def act(handler: server.Handler, seen: server.Seen) -> None:
        (action if seen.prompt == "defg" else server.answer())(handler, seen)

    api = start(otherwise=act)
    found = api.ask()
    lost = found.pop("defg")
    assert isinstance(lost, Unanswered)
    assert lost.fault == fault
    check_whole(api, found, ("abc", "hij"))
    assert api.server.count("defg") == POLICY.attempts
    seen = len(api.server.seen)
    assert isinstance(start(at=api.server, run="later").ask()["defg"], Unanswered)
    assert len(api.server.seen) == seen + POLICY.attempts, "the answers were kept, the failure was not"


def test_a_server_that_is_down_ends_the_run_soon(start: Start) -> None:
    api = start({0: server.answer()}, server.status(500))
    words = [f"w{number:02d}" for number in range(40)]
    with pytest.raises(Stopped, match=f"{GIVE_UP_AFTER} questions in a row"):
        api.ask(*words)
    assert api.totals().answered == 1
    assert len(api.server.seen) <= 1 + (GIVE_UP_AFTER + 1) * POLICY.attempts


def test_nobody_listening_is_the_users_mistake(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "run")
    client = connect(chat.endpoint("openai:tiny", "http://127.0.0.1:9/v1"), PRICE, ledger, purpose="t", policy=POLICY)
    with pytest.raises(UserError, match="--base-url"):
        list(replace(client, wait=lambda s: None).ask_all({"a": Chat("abc", 10)}))
    assert (ledger.totals().cost, ledger.totals().uncertain) == (0, 0), "never reached, never charged"


def test_a_retry_after_beyond_all_patience_ends_the_run(start: Start) -> None:
    api = start({1: server.status(429, retry_after="86400")})
    with pytest.raises(Stopped, match="86,400 s"):
        api.ask()
    assert api.waits == []
    assert api.totals().answered == 1
    check_whole(api, api.ask())


# --- mistakes of the user: one request, no retry, the server's words


@pytest.mark.parametrize(
    ("code", "error", "says"),
    [
        (401, {"message": "Incorrect API key provided"}, "OPENAI_API_KEY"),
        (403, {"message": "no access to this model"}, "no access"),
        (404, {"message": "The model `tiny` does not exist"}, "--base-url"),
        (429, {"message": "You exceeded your quota", "code": "insufficient_quota"}, "credit"),
    ],
)
def test_a_rejected_request_is_a_user_error_at_once(start: Start, code: int, error: dict[str, str], says: str) -> None:
    api = start(otherwise=server.status(code, error))
    with pytest.raises(UserError) as raised:
        api.ask()
    assert says in str(raised.value)
    assert error["message"] in str(raised.value)
    assert len(api.server.seen) == 1
    assert api.waits == []
    assert (api.totals().cost, api.totals().uncertain) == (0, 0)


# --- 400 and 422: about one item where others are accepted, about the configuration where none is

CONFIGURATION = {"message": "Unsupported parameter: 'temperature'", "param": "temperature"}
# how servers say that a prompt does not fit; the numbers differ from item to item
LONG = {
    "llama.cpp": {"message": "request (612 tokens) exceeds the available context size (512 tokens), try increasing it"},
    "vLLM": {"message": "This model's maximum context length is 512 tokens. However, you requested 700 tokens"},
    "Gemini": {"message": "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."},
}
TWENTY = tuple(f"{number:03d}" for number in range(20))


def rejecting(*odd: str, code: int = 400, error: dict[str, str] | None = None, after_s: float = 0.0) -> Action:
    """Rejects these prompts, at once, and answers the others, after a while."""
    answer = server.slow(after_s)

    def act(handler: server.Handler, seen: server.Seen) -> None:
        (server.status(code, error or {"message": "bad input"}) if seen.prompt in odd else answer)(handler, seen)

    return act


@pytest.mark.parametrize(("code", "error"), [(400, CONFIGURATION), (422, {"message": "max_tokens: too large"})])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_configuration_that_is_rejected_is_a_user_error_after_a_few_items(
    start: Start, code: int, error: dict[str, str], concurrency: int
) -> None:
    api = start(otherwise=server.status(code, error), concurrency=concurrency)
    with pytest.raises(UserError, match="--omit") as raised:
        api.ask(*TWENTY, "x")
    assert error["message"] in str(raised.value)
    assert SUSPICIOUS_AFTER < len(api.server.seen) <= SUSPICIOUS_AFTER + concurrency
    assert api.server.seen[-1].prompt == "x", "the shortest prompt has the last word"
    assert len({seen.prompt for seen in api.server.seen}) == len(api.server.seen), "different items, each asked once"
    assert api.waits == []
    assert (api.totals().cost, api.totals().uncertain) == (0, 0)
    assert api.totals().faults == {"rejected": len(api.server.seen)}


def test_fewer_items_that_are_all_rejected_are_the_configurations_fault(start: Start) -> None:
    api = start(otherwise=server.status(400, CONFIGURATION))
    with pytest.raises(UserError, match="Unsupported"):
        api.ask()
    assert len(api.server.seen) == len(WORDS)


@pytest.mark.parametrize("code", [400, 422])
@pytest.mark.parametrize("odd", WORDS)
def test_a_rejected_item_is_unanswered_where_others_are_accepted_before_or_after(
    start: Start, code: int, odd: str
) -> None:
    api = start(otherwise=rejecting(odd, code=code))
    found = api.ask()
    assert found.pop(odd) == Unanswered("rejected", f"{code}: bad input")
    check_whole(api, found, tuple(word for word in WORDS if word != odd))
    assert api.totals().faults == {"rejected": 1}
    assert api.server.count(odd) == 1, "asking again would change nothing"


def test_a_run_goes_on_where_only_rejected_items_are_left(start: Start) -> None:
    """Nothing is accepted by the second process: the ledger of the run knows that the first had answers."""
    api = start(otherwise=rejecting(*TWENTY[:12]))
    assert sum(isinstance(outcome, Reply) for outcome in api.ask(*reversed(TWENTY)).values()) == 8
    api.ledger.close()
    again = start(at=api.server)
    found = again.ask(*TWENTY[:12])
    assert {outcome.fault for outcome in found.values() if isinstance(outcome, Unanswered)} == {"rejected"}
    assert len(found) == 12
    assert again.totals().cost == bill(*TWENTY[12:])


def test_answers_from_the_cache_show_that_the_configuration_is_right(start: Start) -> None:
    api = start(otherwise=rejecting("odd"))
    api.ask("abc")
    other = start(at=api.server, run="other")
    found = other.ask("odd", "abc")
    assert isinstance(found["odd"], Unanswered)
    assert isinstance(found["abc"], Reply)


def test_a_slow_first_answer_saves_a_run_whose_other_items_are_rejected_meanwhile(start: Start) -> None:
    """Three threads see nothing but rejections while the fourth waits: none of them may judge before it is back."""
    api = start(otherwise=rejecting(*TWENTY[1:9], after_s=0.3), concurrency=4)
    found = api.ask(*TWENTY)
    assert {word for word, outcome in found.items() if isinstance(outcome, Unanswered)} == set(TWENTY[1:9])
    check_whole(api, {w: o for w, o in found.items() if isinstance(o, Reply)}, (TWENTY[0], *TWENTY[9:]))


@pytest.mark.parametrize("server_name", LONG)
def test_prompts_that_do_not_fit_are_declined_also_when_the_first_ones_are_among_them(
    start: Start, server_name: str
) -> None:
    """The shortest prompt is asked before the configuration is blamed. A second run asks nothing."""
    long = tuple(f"{number:03d} and much more" for number in range(8))
    api = start(otherwise=rejecting(*long, error=LONG[server_name]))
    found = api.ask(*long, *WORDS)
    declined = {word: outcome for word, outcome in found.items() if word in long}
    assert set(declined.values()) == {Reply(text="", declined="prompt_too_long", cost=0)}
    assert set(declined) == set(long)
    check_whole(api, {word: found[word] for word in WORDS})
    seen = len(api.server.seen)
    assert api.ask(*long, *WORDS) == found
    assert len(api.server.seen) == seen == len(found)


def test_a_context_that_no_prompt_fits_is_the_configurations_fault_and_nothing_is_kept(start: Start) -> None:
    api = start(otherwise=server.status(400, LONG["vLLM"]))
    with pytest.raises(UserError, match="maximum context length"):
        api.ask(*TWENTY)
    api.server.otherwise = server.answer()
    found = api.ask(*TWENTY)
    assert {word: outcome.text for word, outcome in found.items() if isinstance(outcome, Reply)} == {
        word: word[::-1] for word in TWENTY
    }


@pytest.mark.parametrize(
    "body",
    [
        [{"error": {"code": 400, **LONG["Gemini"], "status": "INVALID_ARGUMENT"}}],
        {"error": LONG["llama.cpp"]["message"]},
        {"detail": "prompt is too long: 900 tokens"},
        b"the input exceeds the context window",
    ],
)
def test_the_servers_words_are_found_where_it_puts_them(start: Start, body: Any) -> None:
    def act(handler: server.Handler, seen: server.Seen) -> None:
        handler.send(400, body) if seen.prompt == "defg" else server.answer()(handler, seen)

    found = start(otherwise=act).ask()["defg"]
    assert isinstance(found, Reply)
    assert found.declined == "prompt_too_long"


def test_rejections_in_different_words_are_no_proof(start: Start) -> None:
    def act(handler: server.Handler, seen: server.Seen) -> None:
        words = "unknown character" if int(seen.prompt) % 2 else "odd number of quotes"
        (server.answer() if seen.prompt == "019" else server.status(400, {"message": words}))(handler, seen)

    found = start(otherwise=act).ask(*TWENTY)
    assert isinstance(found["019"], Reply)
    assert sum(isinstance(outcome, Unanswered) for outcome in found.values()) == 19


def test_rejections_beside_faults_and_a_budget_are_unanswered_and_not_lost(start: Start) -> None:
    def act(handler: server.Handler, seen: server.Seen) -> None:
        server.status(400 if seen.prompt == "abc" else 500)(handler, seen)

    found = start(otherwise=act).ask()
    assert {word: outcome.fault for word, outcome in found.items() if isinstance(outcome, Unanswered)} == {
        "abc": "rejected",
        "defg": "server_error",
        "hij": "server_error",
    }
    api = start(otherwise=rejecting("abc"), budget=Budget(requests=1), run="small")
    outcomes = []
    with pytest.raises(Stopped, match="1 requests"):
        outcomes.extend(api.client.ask_all({word: Chat(word, 10) for word in WORDS}))
    assert outcomes == [("abc", Unanswered("rejected", "400: bad input"))]


def test_the_key_is_sent_and_never_shown(start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-123")
    api = start({1: server.status(401, {"message": "bad key sk-secret-123"})})
    with pytest.raises(UserError) as raised:
        api.ask()
    assert api.server.seen[0].headers["authorization"] == "Bearer sk-secret-123"
    assert "sk-secret-123" not in str(raised.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"sk-secret" in path.read_bytes()]


def test_no_key_for_an_endpoint_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    client = connect(chat.endpoint("openai:gpt-4o", None), PRICE, Ledger(tmp_path, "r"), purpose="t")
    with pytest.raises(UserError, match="--api-key-env"):
        list(client.ask_all({"a": Chat("abc", 10)}))
    assert client.ledger.totals().calls == 0


# --- answers that are no answer: kept, charged, never asked again

DECLINED: dict[str, tuple[Action, str, str, str | None, int]] = {
    "a refusal": (server.answer(content=None, refusal="I will not."), "refusal", "I will not.", "stop", 1),
    "a content filter in the answer": (
        server.answer(content="half an", finish_reason="content_filter"),
        "content_filter",
        "half an",
        "content_filter",
        1,
    ),
    "a content filter before the model": (
        server.status(400, {"code": "content_filter"}),
        "content_filter",
        "",
        None,
        0,
    ),
    "a prompt too long for the model": (
        server.status(400, {"code": "context_length_exceeded"}),
        "prompt_too_long",
        "",
        None,
        0,
    ),
}


@pytest.mark.parametrize("case", DECLINED)
def test_a_declined_question_is_answered_once_and_marked(start: Start, case: str) -> None:
    action, declined, text, finish, charged = DECLINED[case]
    api = start(otherwise=action)
    found = api.ask("abc")["abc"]
    assert isinstance(found, Reply)
    assert (found.declined, found.text, found.finish_reason) == (declined, text, finish)
    assert api.ask("abc") == {"abc": found}
    totals = api.totals()
    assert (totals.calls, totals.retries, totals.answered) == (1, 0, 1)
    assert (totals.cost, totals.uncertain) == (charged * bill("abc"), 0)


ODD: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "null content": ({"content": None}, {"text": "", "declined": None}),
    "cut off by the limit": ({"finish_reason": "length"}, {"text": "cba", "finish_reason": "length"}),
    "no finish reason": ({"finish_reason": None}, {"text": "cba", "finish_reason": None}),
    "another model than asked": ({"model": "huge"}, {"text": "cba", "snapshot": "huge"}),
    "no fingerprint": ({"system_fingerprint": None}, {"fingerprint": None}),
    "content in parts": ({"content": [{"type": "text", "text": "cb"}, {"type": "text", "text": "a"}]}, {"text": "cba"}),
    "an emoji and a lone surrogate": ({"content": "\U0001f600\ud800"}, {"text": "\U0001f600\ud800"}),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_answers_are_taken_as_they_are(start: Start, case: str) -> None:
    changes, wanted = ODD[case]
    api = start(otherwise=server.answer(**changes))
    found = api.ask("abc")["abc"]
    assert {name: getattr(found, name) for name in wanted} == wanted
    assert api.totals().cost == bill("abc")
    assert api.ask("abc") == {"abc": found}, "from the cache it is the same"


@pytest.mark.parametrize(
    "usage", [None, {}, {"prompt_tokens": "3"}, {"prompt_tokens": -1, "completion_tokens": 1}, "three"]
)
def test_an_answer_without_usage_is_kept_and_its_cost_called_uncertain(start: Start, usage: Any) -> None:
    api = start(otherwise=server.answer(usage=usage))
    found = api.ask("abc")["abc"]
    assert isinstance(found, Reply)
    assert (found.text, found.usage, found.cost) == ("cba", None, None)
    totals = api.totals()
    assert (totals.cost, totals.uncertain, totals.answered) == (0, CEILING, 1)


def test_cached_prompt_tokens_cost_their_own_price(start: Start) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 8}}
    api = start(otherwise=server.answer(usage=usage))
    api.ask("abc")
    assert api.totals().cost == 2 * PRICE.input + 8 * PRICE.cached_input + 2 * PRICE.output


def test_thinking_that_only_the_total_counts_is_charged_and_held_against_the_budget(start: Start) -> None:
    """Gemini's endpoint: 9 prompt tokens, 1 of the answer and 93 of thinking."""
    usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 103}
    one = 9 * PRICE.input + 94 * PRICE.output
    api = start(otherwise=server.answer(usage=usage), budget=Budget(cost=2 * one + CEILING - 1))
    with pytest.raises(Stopped, match="budget"):
        api.ask("abc", "def", "ghi")
    assert (api.totals().cost, api.totals().completion_tokens) == (2 * one, 2 * 94)
    assert len(api.server.seen) == 2


def test_a_stop_text_is_cut_off_where_the_server_ignores_it(start: Start) -> None:
    api = start(otherwise=server.answer(content="42\nQuestion: more", finish_reason="length"))
    found = dict(api.client.ask_all({"a": Chat("abc", 10, stop=("\nQuestion:", "###"))}))["a"]
    assert isinstance(found, Reply)
    assert (found.text, found.finish_reason) == ("42", "stop")
    assert api.server.seen[0].body["stop"] == ["\nQuestion:", "###"]


def test_a_prompt_that_utf8_cannot_hold_is_asked(start: Start) -> None:
    api = start()
    (found,) = api.ask("a\ud800b").values()
    assert isinstance(found, Reply)
    assert api.server.seen[0].prompt == "a?b"


def test_a_redirect_is_not_followed_with_the_key(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-123")
    other = start()
    api = start(otherwise=server.status(307, location=f"{other.server.url}/chat/completions"))
    with pytest.raises(UserError, match="307"):
        api.ask()
    assert other.server.seen == []


# --- budget

ONE = bill("abc")


def test_a_budget_in_money_is_never_passed_and_can_be_raised(start: Start) -> None:
    words = [f"{number:03d}" for number in range(20)]
    budget = Budget(cost=3 * ONE + CEILING - 1)  # after three answers, the fourth could pass it
    api = start(budget=budget)
    with pytest.raises(Stopped, match="budget"):
        api.ask(*words)
    assert len(api.server.seen) == 3
    assert api.totals().cost == 3 * ONE
    with pytest.raises(Stopped):
        start(at=api.server, budget=budget).ask(*words)
    more = start(at=api.server, budget=Budget(cost=20 * ONE + CEILING))
    assert len(more.ask(*words)) == 20
    assert more.totals().cost == 20 * ONE, "the first three were not paid for again"
    assert len(api.server.seen) == 20


def test_threads_do_not_pass_the_budget_together_nor_stop_too_early(start: Start) -> None:
    """Calls under way are reserved at their worst case; what they leave over is spent before the run stops."""
    words = [f"{number:03d}" for number in range(40)]
    api = start(otherwise=server.slow(0.01), budget=Budget(cost=11 * ONE + CEILING - 1), concurrency=8)
    with pytest.raises(Stopped, match="budget"):
        api.ask(*words)
    assert api.totals().cost == 11 * ONE
    assert len(api.server.seen) == 11


def test_a_budget_counts_what_may_have_been_charged(start: Start) -> None:
    api = start({0: server.drop_in_body}, budget=Budget(cost=CEILING + ONE))
    with pytest.raises(Stopped, match="budget"):
        api.ask("abc")
    assert len(api.server.seen) == 1, "a second attempt could cost more than is left"


def test_a_budget_in_requests_counts_failed_ones_over_restarts(start: Start) -> None:
    api = start({0: server.status(500)}, budget=Budget(requests=3))
    with pytest.raises(Stopped, match="3 requests"):
        api.ask()
    assert len(api.server.seen) == 3
    assert api.totals().answered == 2
    with pytest.raises(Stopped, match="3 requests"):
        start(at=api.server, budget=Budget(requests=3)).ask()


def test_a_budget_of_nothing_sends_nothing(start: Start) -> None:
    for budget in (Budget(cost=0), Budget(requests=0)):
        api = start(budget=budget)
        with pytest.raises(Stopped):
            api.ask()
        assert api.server.seen == []


def test_a_budget_in_money_needs_a_price(start: Start) -> None:
    with pytest.raises(UserError, match="--prices"):
        start(price=None, budget=Budget(cost=PICO))
    api = start(price=None)
    api.ask()
    assert api.totals().as_json(priced=False)["cost_usd"] is None


# --- cache and concurrency


def test_a_second_run_asks_nothing_and_needs_no_server(start: Start) -> None:
    first = start()
    found = first.ask()
    second = replace(first.client, ledger=Ledger(first.ledger.path.parent, "second", Budget(requests=0)))
    assert dict(second.ask_all({word: Chat(word, 10) for word in WORDS})) == found
    assert len(first.server.seen) == len(WORDS)
    assert second.ledger.totals() == Totals()


@pytest.mark.parametrize(
    "other",
    [
        Chat("abd", 10),
        Chat("abc", 11),
        Chat("abc", 10, stop=("\n",)),
        Chat("abc", 10, temperature=0.5),
        Chat("abc", 10, repeat=1),
    ],
)
def test_another_question_is_not_answered_from_the_cache(start: Start, other: Chat) -> None:
    api = start()
    api.ask("abc")
    dict(api.client.ask_all({"x": other}))
    assert len(api.server.seen) == 2


def test_another_endpoint_or_model_is_not_answered_from_the_cache(start: Start) -> None:
    first = start()
    first.ask("abc")
    where = first.client.endpoint
    changed = [replace(where, model="other"), replace(where, base_url=where.base_url.replace("127.0.0.1", "localhost"))]
    for number, endpoint in enumerate([*changed, replace(where, omit=("temperature",))], start=2):
        dict(replace(first.client, endpoint=endpoint).ask_all({"x": Chat("abc", 10)}))
        assert len(first.server.seen) == number
    assert "temperature" not in first.server.seen[-1].body


def test_equal_questions_are_asked_once_and_all_answered(start: Start) -> None:
    api = start(concurrency=4, otherwise=server.slow(0.02))
    found = dict(api.client.ask_all({str(number): Chat("abc", 10) for number in range(12)}))
    assert [outcome.text for outcome in found.values() if isinstance(outcome, Reply)] == ["cba"] * 12
    assert api.server.charged == ["abc"]


def test_the_cap_on_requests_at_a_time_is_kept_and_used(start: Start) -> None:
    words = [f"{number:03d}" for number in range(24)]
    api = start(otherwise=server.slow(0.03), concurrency=3)
    check_whole(api, api.ask(*words), tuple(words))
    assert api.server.most_at_once == 3


def test_many_faults_under_concurrency_lose_and_charge_nothing_twice(start: Start) -> None:
    kinds = [server.status(429), server.status(500), server.raw(b"{"), server.drop_in_body, server.drop_before_headers]
    script = {number: kinds[number // 3 % len(kinds)] for number in range(0, 60, 3)}
    words = [f"{number:03d}" for number in range(60)]
    api = start(script, concurrency=6)
    found = api.ask(*words)
    for word in [word for word, outcome in found.items() if isinstance(outcome, Unanswered)]:
        found |= api.ask(word)
    check_whole(api, found, tuple(words))
    assert sum(api.totals().faults.values()) == len(script)


def test_the_request_is_greedy_and_plain(start: Start) -> None:
    api = start()
    api.ask("abc")
    assert api.server.seen[0].body == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "abc"}],
        "temperature": 0.0,
        "max_tokens": 10,
    }
    hosted = chat.endpoint("openai:gpt-4o", None)
    assert (
        Chat("abc", 10, temperature=0.7, repeat=2).body(hosted).items()
        >= {
            "max_completion_tokens": 10,
            "seed": 2,
        }.items()
    )


def test_calls_that_a_killed_process_left_open_are_lost_and_held_against_the_budget(start: Start) -> None:
    api = start()
    api.ledger.begin("key", purpose="test", ceiling=CEILING)
    api.ledger.close()
    again = start(budget=Budget(cost=CEILING + ONE + CEILING - 1))
    totals = again.totals()
    assert (totals.calls, totals.lost, totals.cost, totals.uncertain) == (1, 1, 0, CEILING)
    again.ask("abc")
    with pytest.raises(Stopped, match="budget"):
        again.ask("hij")


def test_there_are_at_least_thirty_fault_cases() -> None:
    assert len(PASSING) + len(DECLINED) + len(ODD) >= 30


def test_prices_are_counted_in_whole_picodollars() -> None:
    assert prices.usd(bill("abc")) == pytest.approx(9e-6, abs=0)
