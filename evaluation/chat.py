"""What is asked of a chat endpoint and what comes back, as plain values: no network in here.

First piece of the API path: `chat` says what a request is and how a response is read, `retries` when to ask again,
`ledger` what it cost, `baselines` sends it. The protocol is OpenAI's chat completions, which Gemini, vLLM and
`transformers serve` speak as well.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard
from urllib.parse import urlsplit, urlunsplit

from tasks.base import UserError

OPENAI_URL = "https://api.openai.com/v1"
PREFIX = "openai:"

OMITTABLE = ("temperature", "stop", "seed")  # not the limit of tokens: the budget counts on it
_KEY_VERSION = 1  # of what `Chat.key` covers; another number forgets every cached answer
_STOPS = 4  # as many as the protocol allows; the answer is cut at the others here
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_PRIVATE_NAMES = (".localhost", ".local", ".internal", ".lan", ".home.arpa")  # and all without a dot
# OpenAI's own models refuse the old name for the limit, other servers do not know the new one.
_NEW_LIMIT_HOSTS = ("api.openai.com", ".openai.azure.com")
# What servers add to a name: date or number of a snapshot (2024-08-06, 20241022, 0613, 001) or of a preview
# (preview-05-20, preview-09-2025), `latest`, a revision (@main).
_MOVING = re.compile(r"[-:](?:latest|preview)$")
_SNAPSHOT = re.compile(
    r"(?:[-.](?:\d{4}-\d{2}-\d{2}|\d{8}|\d{3,4})|-(?:preview|exp)(?:-\d{2}-\d{2}(?:\d{2})?)?|[-:]latest|@\w+)$"
)

# Answers that are no answer: the model or its filter declined, or the prompt does not fit.
Declined = Literal["refusal", "content_filter", "prompt_too_long"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A model behind a URL.

    Attributes:
        base_url: up to and including the version, as in https://api.openai.com/v1.
        model: the name the server knows it by.
        key_variable: environment variable that holds the API key; the key itself is never kept or written.
        omit: parameters that this endpoint refuses, of OMITTABLE; they are left out.
        timeout_s: of one request, from sending to the last byte.
    """

    base_url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    omit: tuple[str, ...] = ()
    timeout_s: float = 120.0

    @property
    def host(self) -> str:
        return urlsplit(self.base_url).hostname or ""

    @property
    def loopback(self) -> bool:
        return self.host in _LOOPBACK

    @property
    def private(self) -> bool:
        """On this machine or in its network, where the same URL and name may soon be another model."""
        try:
            return not ipaddress.ip_address(self.host).is_global
        except ValueError:
            return "." not in self.host or self.host.endswith(_PRIVATE_NAMES)

    @property
    def public_url(self) -> str:
        """The URL without user, password and query: what may be written to files."""
        parts = urlsplit(self.base_url)
        host = f"[{self.host}]" if ":" in self.host else self.host
        place = host if parts.port is None else f"{host}:{parts.port}"
        return urlunsplit((parts.scheme, place, parts.path.rstrip("/"), "", ""))


def endpoint(model: str, base_url: str | None, **options: Any) -> Endpoint:
    """The endpoint that `openai:NAME` and a base URL name; `options` as in `Endpoint`."""
    name = model.removeprefix(PREFIX)
    if not model.startswith(PREFIX) or not name:
        raise UserError(got=f"model {model!r}", wanted="openai:NAME", fix="for example openai:gpt-4o with --base-url")
    url = base_url or OPENAI_URL
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise UserError(got=f"base URL {url!r}", wanted="http(s)://host[:port]/v1", fix="check --base-url")
    return Endpoint(url.rstrip("/"), name, **options)


@dataclass(frozen=True, slots=True)
class Chat:
    """One question: a single user message.

    Attributes:
        max_tokens: of the answer.
        stop: texts that end the answer; they are not part of it.
        temperature: 0 is greedy decoding, as far as a server goes along with it.
        repeat: which of several askings of the same question this is; each is answered and cached by itself.
    """

    prompt: str
    max_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    repeat: int = 0

    def body(self, to: Endpoint) -> dict[str, Any]:
        """The JSON body of the request; lone surrogates, which UTF-8 cannot hold, become question marks."""
        limit = "max_completion_tokens" if to.host.endswith(_NEW_LIMIT_HOSTS) else "max_tokens"
        fields: dict[str, Any] = {
            "model": to.model,
            "messages": [{"role": "user", "content": self.prompt.encode(errors="replace").decode()}],
            "temperature": self.temperature,
            limit: self.max_tokens,
        }
        if self.stop:
            fields["stop"] = list(self.stop[:_STOPS])
        if self.temperature > 0:
            fields["seed"] = self.repeat
        return {name: value for name, value in fields.items() if name not in to.omit}

    def key(self, to: Endpoint) -> str:
        """Identifies the answer: the URL, every field of the body, what is cut off here, and which asking it is."""
        facts = [_KEY_VERSION, to.public_url, self.body(to), self.stop, self.repeat]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that the server counted: `completion` with those of thinking, `prompt` with the `cached` ones, which may
    cost less.
    """

    prompt: int
    completion: int
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model answered.

    Attributes:
        text: the answer without the stop text; of a refusal, its words.
        finish_reason: "stop", "length" (cut off), "content_filter" ..., None where the server does not say.
        declined: why this is no answer to the question, None for one that is.
        snapshot, fingerprint: the model and back end that the server says it used.
        usage: None where the server does not say.
        cost: in picodollars (1e-12 USD); None where the usage or the price is not known.
        latency_s: of the request that brought it.
    """

    text: str
    finish_reason: str | None = None
    declined: Declined | None = None
    snapshot: str | None = None
    fingerprint: str | None = None
    usage: Usage | None = None
    cost: int | None = None
    latency_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A question that no attempt got an answer to; asking again later may."""

    fault: str
    message: str


class Unusable(Exception):
    """A response of status 200 that holds no answer; `usage` is what it cost all the same, if it says so."""

    def __init__(self, kind: str, message: str, usage: Usage | None = None) -> None:
        super().__init__(message)
        self.kind, self.usage = kind, usage


def read_reply(raw: bytes, chat: Chat) -> Reply:
    """Read a response body; cost and latency are the caller's.

    Raises:
        Unusable: "malformed" (not JSON), "wrong_schema", "error_in_body" or "no_choices".
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Unusable("malformed", f"{raw[:80]!r} is not JSON ({error})") from error
    if not isinstance(body, dict):
        raise Unusable("wrong_schema", f"a JSON {type(body).__name__} instead of an object")
    usage = _usage(body.get("usage"))
    choices: Any = body.get("choices")
    if not choices and body.get("error"):
        raise Unusable("error_in_body", str(body["error"])[:200], usage)
    if choices == []:
        raise Unusable("no_choices", "an empty list of choices", usage)
    try:
        choice = choices[0]
        message, finish = choice["message"], choice.get("finish_reason")
        content, refusal = _text(message.get("content")), message.get("refusal")
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise Unusable("wrong_schema", f"choices are {str(choices)[:80]!r} ({error!r})", usage) from error
    text, cut = _cut(content if refusal is None or content else str(refusal), chat.stop)
    declined: Declined | None = "content_filter" if finish == "content_filter" else "refusal" if refusal else None
    return Reply(
        text=text,
        finish_reason="stop" if cut else None if finish is None else str(finish),
        declined=declined,
        snapshot=_name(body.get("model")),
        fingerprint=_name(body.get("system_fingerprint")),
        usage=usage,
    )


def _usage(value: Any) -> Usage | None:
    """What is billed. Gemini leaves the tokens of its thinking out of the completion, and a completion of nothing but
    thinking out altogether; both are billed as output and show in the total only.
    """
    if not isinstance(value, Mapping):
        return None
    prompt, visible, total = (value.get(f"{name}_tokens") for name in ("prompt", "completion", "total"))
    if not _count(prompt) or not (_count(visible) or (visible is None and _count(total))):
        return None
    completion = max(visible or 0, total - prompt if _count(total) else 0)
    details = value.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else 0
    return Usage(prompt, completion, min(cached, prompt) if _count(cached) else 0)


def _count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _text(content: Any) -> str:
    """The text of a message: a string, a list of parts, or nothing (a model that used its tokens to think)."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")


def _cut(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """The text up to the first stop, for servers that ignore stops, and whether there was one."""
    places = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def same_model(asked: str, reported: str) -> bool:
    """Whether a reported name can be the asked model: `gpt-4o-2024-08-06` is `gpt-4o`, `models/x` is `x`.

    Servers put a provider in front and name the snapshot behind an alias, or leave it out; anything else, also another
    snapshot than the one that was asked for, is another model.
    """
    plain, found = (name.lower().rstrip("/").rpartition("/")[2] for name in (asked, reported))
    alias = _MOVING.sub("", plain)
    return found in (plain, _SNAPSHOT.sub("", plain)) or _SNAPSHOT.sub("", found) in (plain, alias)
