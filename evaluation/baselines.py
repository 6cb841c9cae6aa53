"""Asks models behind an OpenAI-compatible endpoint: the baselines, the extractor and the judge all go through here.

The only module that imports openai. A question ends in exactly one of three ways: a reply (also one that declines), no
answer after all attempts, or the end of the run (budget, a user's mistake, a server that is down). Every request is
booked in the ledger before it is sent and closed when it has ended; every reply is kept there, so the same question is
never paid for twice.

    Chat -> ledger (answered before?) -> begin -> request -> read_reply -> ledger (answered | failed, wait, again)
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from evaluation.chat import Chat, Declined, Endpoint, Reply, Unanswered, Unusable, Usage, read_reply
from evaluation.ledger import BudgetReached, Ledger
from evaluation.prices import Price
from evaluation.rejections import REJECTED, Rejections, too_long
from evaluation.retries import Policy, retry_after
from tasks.base import UserError

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

GIVE_UP_AFTER = 10  # questions in a row without an answer: the endpoint is down, not the questions odd
_AGAIN = {408, 409, 425, 429}  # and every 5xx
_PERHAPS_THE_ITEM = {400, 422}
_PERHAPS_CHARGED = {408, 504}  # a gateway that lost patience says nothing about the model behind it
_CONNECT_S = 20.0
_NEVER_THERE = 2  # repeated attempts after which a server that never took a connection is called a wrong URL


class Stopped(Exception):
    """The run ended before all questions were asked; the same command goes on with the rest."""


class _Halted(Exception):
    """Not asked, because another question ended the run; that one says why."""


@dataclass(frozen=True, slots=True)
class _Fault:
    """A request that brought no answer. `charged`: None where the server may have charged for it."""

    kind: str
    message: str
    charged: bool | None
    retry_after_s: float | None = None
    unusable: Unusable | None = None


class _Broken(Exception):
    def __init__(self, fault: _Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Client:
    """One endpoint with its price, its place in the ledger and its patience; safe to use from several threads.

    Attributes:
        price: None where it is not known; nothing is then charged and a budget in money cannot be held.
        purpose: under which the ledger books these calls.
        concurrency: requests under way at a time.
        wait: sleeps so many seconds; None waits on `halt`.
        halt: set, it ends the waits and lets no further request out.
    """

    endpoint: Endpoint
    price: Price | None
    ledger: Ledger
    purpose: str
    policy: Policy = Policy()
    concurrency: int = 4
    wait: Callable[[float], object] | None = None
    halt: threading.Event = field(default_factory=threading.Event)

    def ask_all(self, chats: Mapping[str, Chat]) -> Iterator[tuple[str, Reply | Unanswered]]:
        """Ask everything, at most `concurrency` at a time; yields (name, outcome) as they come.

        Equal questions are asked once. What is answered when the run ends early is yielded before the exception. A
        rejected question ends nothing where others are accepted: it is unanswered, or declined for its length.

        Raises:
            Stopped: budget reached, or the endpoint is down.
            UserError: the endpoint rejects these requests: key, model name, parameters (see `rejections`).
        """
        names: dict[str, list[str]] = {}
        for name, chat in chats.items():
            names.setdefault(chat.key(self.endpoint), []).append(name)
        questions = {key: chats[same[0]] for key, same in names.items()}
        rejections = Rejections(self.ledger.accepted(self.purpose))
        in_a_row = 0
        end: Exception | None = None
        for key, outcome in self._outcomes(questions, rejections):
            if isinstance(outcome, Exception):
                end = outcome if end is None or isinstance(end, _Halted) else end
                continue
            yield from self._named(rejections.take(key, outcome), questions, names, rejections)
            if isinstance(outcome, Reply):
                in_a_row = 0
            elif outcome.fault != REJECTED:  # which says that the endpoint is up
                in_a_row += 1
                if in_a_row >= GIVE_UP_AFTER and end is None:
                    end = Stopped(f"{in_a_row} questions in a row got no answer, the last one by: {outcome.message}")
            if rejections.proven and end is None:
                end = self._unacceptable(rejections.message)
            if end is not None:
                self.halt.set()
        if end is None and rejections.held and not rejections.undecided:
            end = self._unacceptable(rejections.message)  # all that was asked was turned away
        if not isinstance(end, UserError):
            yield from self._named(rejections.release(), questions, names, rejections)
        if end is not None:
            raise end

    def _outcomes(
        self, questions: Mapping[str, Chat], rejections: Rejections
    ) -> Iterator[tuple[str, Reply | Unanswered | Exception]]:
        """Ask question by question, no more than may be under way; under suspicion one at a time."""
        waiting = dict(questions)
        under_way: dict[Future[Reply | Unanswered], str] = {}
        with self._pool() as pool:
            while True:
                room = 1 if rejections.suspicious else self.concurrency
                while waiting and len(under_way) < room and not self.halt.is_set():
                    key = rejections.choose(waiting)
                    under_way[pool.submit(self.ask, waiting.pop(key))] = key
                if not under_way:
                    return
                for future in wait_for(under_way, return_when=FIRST_COMPLETED).done:
                    yield under_way.pop(future), self._outcome(future)

    def _named(
        self,
        settled: Mapping[str, Reply | Unanswered],
        questions: Mapping[str, Chat],
        names: Mapping[str, list[str]],
        rejections: Rejections,
    ) -> Iterator[tuple[str, Reply | Unanswered]]:
        """Outcomes under the names of their questions; a prompt that was turned away for its length is declined."""
        for key, outcome in settled.items():
            final: Reply | Unanswered = outcome
            if rejections.accepted and isinstance(outcome, Unanswered) and outcome.fault == REJECTED:
                final = self._declined_for_length(questions[key], outcome)
            yield from ((name, final) for name in names[key])

    def _declined_for_length(self, chat: Chat, rejected: Unanswered) -> Reply | Unanswered:
        if not too_long(rejected):
            return rejected
        reply = Reply(text="", declined="prompt_too_long", cost=0)
        self.ledger.keep(chat.key(self.endpoint), self._request_facts(chat), reply)
        return reply

    @contextlib.contextmanager
    def _pool(self) -> Iterator[ThreadPoolExecutor]:
        self.halt.clear()
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="ask")
        try:
            yield pool
        finally:
            self.halt.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _outcome(self, future: Future[Reply | Unanswered]) -> Reply | Unanswered | Exception:
        """The result, or why the run has to end; anything else that was raised is a bug and goes on."""
        try:
            return future.result()
        except BudgetReached as error:
            return Stopped(f"budget: {error}")
        except (Stopped, UserError, _Halted) as error:
            return error

    def ask(self, chat: Chat) -> Reply | Unanswered:
        """Ask one question, as often as the policy says; raises as `ask_all`, and BudgetReached."""
        try:
            return self._ask(chat)
        except Exception:
            self.halt.set()  # before this thread takes the next question
            raise

    def _ask(self, chat: Chat) -> Reply | Unanswered:
        key = chat.key(self.endpoint)
        if known := self.ledger.answer(key):
            return known
        fault = None
        for attempt in range(self.policy.attempts):
            if fault is not None:
                self._pause(attempt, fault)
            if self.halt.is_set():
                raise _Halted(key)
            outcome = self._attempt(chat, key)
            if isinstance(outcome, Reply):
                return outcome
            fault = outcome
            if fault.kind == REJECTED:
                break
            if fault.kind == "unreachable" and attempt >= _NEVER_THERE and not self.ledger.totals().answered:
                raise UserError(
                    got=f"{self.endpoint.public_url}: {fault.message}",
                    wanted="an endpoint that takes connections",
                    fix="check --base-url and that the server is up",
                )
        assert fault is not None, "a policy has at least one attempt"
        return Unanswered(fault.kind, fault.message)

    def _pause(self, failures: int, fault: _Fault) -> None:
        if (fault.retry_after_s or 0.0) > self.policy.patience_s:
            raise Stopped(f"the endpoint asks to wait {fault.retry_after_s:,.0f} s ({fault.message})")
        (self.wait or self.halt.wait)(self.policy.wait_s(failures, fault.retry_after_s))

    def _attempt(self, chat: Chat, key: str) -> Reply | _Fault:
        """One request, from its opening in the ledger to its closing."""
        _connected(self.endpoint)
        ceiling = self.price.ceiling(chat) if self.price else None
        call = self.ledger.begin(key, purpose=self.purpose, ceiling=ceiling)
        started = time.perf_counter()
        fault: _Fault | None = _Fault("interrupted", "the request was interrupted", charged=None)
        usage = cost = None
        try:
            reply = self._request(chat)
            cost = self._cost(reply.usage) if reply.cost is None else reply.cost
            reply = replace(reply, cost=cost, latency_s=round(time.perf_counter() - started, 4))
            fault = None
            self.ledger.answered(call, key, self._request_facts(chat), reply)
            return reply
        except _Broken as error:
            fault = error.fault
            usage = fault.unusable.usage if fault.unusable else None
            cost = 0 if fault.charged is False else self._cost(usage)
            return fault
        except UserError:
            fault, cost = _Fault("rejected", "a user's mistake", charged=False), 0
            raise
        finally:
            if fault is not None:
                spent_s = time.perf_counter() - started
                self.ledger.failed(call, fault.kind, cost=cost, usage=usage, latency_s=spent_s)

    def _request_facts(self, chat: Chat) -> dict[str, Any]:
        return chat.body(self.endpoint) | {"base_url": self.endpoint.public_url}

    def _cost(self, usage: Usage | None) -> int | None:
        return self.price.cost(usage) if self.price and usage else None

    def _request(self, chat: Chat) -> Reply:
        """Send and read.

        The body is read as a stream, so that a server which drips bytes for ever meets the deadline: the timeouts of
        the HTTP client are between two bytes, not for the whole answer.
        """
        import httpx2
        import openai

        deadline = time.monotonic() + self.endpoint.timeout_s
        try:
            return read_reply(b"".join(self._stream(chat, deadline)), chat)
        except Unusable as error:
            raise _Broken(_Fault(error.kind, str(error), charged=None, unusable=error)) from error
        except openai.APIStatusError as error:
            return self._refused(error)
        except (openai.APITimeoutError, httpx2.TimeoutException) as error:
            raise _Broken(_Fault("timeout", f"no answer within {self.endpoint.timeout_s:g} s", charged=None)) from error
        except openai.APIConnectionError as error:
            reached = not isinstance(error.__cause__, httpx2.ConnectError)
            kind, why = ("connection", error) if reached else ("unreachable", error.__cause__)
            raise _Broken(_Fault(kind, str(why), charged=None if reached else False)) from error
        except httpx2.HTTPError as error:  # while the body came in: openai does not wrap these
            raise _Broken(_Fault("connection", f"the connection broke ({error!r})", charged=None)) from error

    def _stream(self, chat: Chat, deadline: float) -> Iterator[bytes]:
        import httpx2

        body = chat.body(self.endpoint)
        create = _connected(self.endpoint).chat.completions.with_streaming_response.create
        with create(model=body["model"], messages=body["messages"], extra_body=body) as response:
            for chunk in response.iter_bytes():
                yield chunk
                if time.monotonic() > deadline:
                    raise httpx2.ReadTimeout("the answer came too slowly")

    def _refused(self, error: APIStatusError) -> Reply:
        """What a status other than 200 means: again later, an answer that declines, a rejection, a user's mistake."""
        code, status = error.code or "", error.status_code
        message = f"{status}: {self._message(error)}"
        if code == "insufficient_quota":
            raise self._mistake(message, "an account with credit", "top it up, or use another key") from None
        if status in _AGAIN or status >= 500:
            kind = "rate_limited" if status == 429 else "server_error"
            charged = None if status in _PERHAPS_CHARGED else False
            wait_s = retry_after(error.response.headers)
            raise _Broken(_Fault(kind, message, charged, wait_s)) from None
        if declined := _declined(code, status):
            return Reply(text="", declined=declined, cost=0)  # turned away before anything was generated
        if status in (401, 403):
            fix = f"set {self.endpoint.key_variable} to a key for {self.endpoint.public_url}"
            raise self._mistake(message, "a key that may use this model", fix) from None
        if status == 404:
            fix = "check --base-url (it ends in /v1 as a rule) and the name behind openai:"
            raise self._mistake(message, f"model {self.endpoint.model!r} at {self.endpoint.public_url}", fix) from None
        if status in _PERHAPS_THE_ITEM:
            raise _Broken(_Fault(REJECTED, message, charged=False)) from None
        raise self._unacceptable(message) from None

    def _unacceptable(self, message: str) -> UserError:
        fix = "read the message; --omit leaves out a parameter that this model does not take, fewer shots are shorter"
        return self._mistake(message, "requests that the endpoint takes", fix)

    def _mistake(self, message: str, wanted: str, fix: str) -> UserError:
        return UserError(got=f"{self.endpoint.public_url} says {message}", wanted=wanted, fix=fix)

    def _message(self, error: APIStatusError) -> str:
        """The server's words, without the key where it repeats it; Gemini's stand in a list of one, some in no JSON."""
        body: Any = error.body
        if isinstance(body, list) and body and isinstance(body[0], dict):
            body = body[0].get("error", body[0])
        text = str((body.get("message") if isinstance(body, dict) else None) or body or error.message)
        key = os.environ.get(self.endpoint.key_variable)
        return (text.replace(key, "***") if key else text)[:300]


def _declined(code: str, status: int) -> Declined | None:
    """What a rejected request says by a code of its own about this one prompt: filtered, or too long for the model."""
    if code in ("content_filter", "content_policy_violation"):
        return "content_filter"
    if code == "context_length_exceeded" or status == 413:
        return "prompt_too_long"
    return None


@functools.lru_cache(maxsize=8)
def _connected(endpoint: Endpoint) -> OpenAI:
    """The openai client, made at the first request: importing it takes a second, and a cached run needs no key."""
    try:
        import openai
    except ImportError as error:
        raise UserError(
            got=f"no package openai ({error})", wanted="it, for API models", fix="pip install 'fulltune[api]'"
        ) from error
    key = os.environ.get(endpoint.key_variable)
    if not key and not endpoint.loopback:
        raise UserError(
            got=f"no {endpoint.key_variable} in the environment",
            wanted=f"the API key for {endpoint.public_url}",
            fix=f"export {endpoint.key_variable}=..., or name another variable with --api-key-env",
        )
    timeout = openai.Timeout(endpoint.timeout_s, connect=min(_CONNECT_S, endpoint.timeout_s))
    web = openai.DefaultHttpxClient(
        timeout=timeout,
        trust_env=not endpoint.loopback,  # no proxy to this machine
        verify=not endpoint.base_url.startswith("http://"),  # plain HTTP needs no certificates, which load slowly
        follow_redirects=False,  # the key goes to the host that was named and to no other
    )
    return openai.OpenAI(
        api_key=key or "none", base_url=endpoint.base_url, max_retries=0, timeout=timeout, http_client=web
    )


def connect(endpoint: Endpoint, price: Price | None, ledger: Ledger, **options: Any) -> Client:
    """A client; `options` as in `Client`. UserError for a budget in money where the price is not known."""
    if ledger.budget.cost is not None and price is None:
        raise UserError(
            got=f"a budget in money for {endpoint.model!r}, whose price is not known",
            wanted="its price, or a budget in requests",
            fix="pass --prices FILE, or --max-requests N",
        )
    return Client(endpoint, price, ledger, **options)
