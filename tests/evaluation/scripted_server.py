"""An OpenAI-compatible endpoint on loopback that does what a script says, request by request, and records everything.

A script maps the number of a request (from 0, over all connections) to an action; requests it does not name get
`otherwise`. An action writes the response itself, so it can also break it. No model is behind this: the answer to a
prompt is the prompt backwards, so that a test can tell whose answer is whose.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Seen:
    """One request as it arrived."""

    number: int
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def prompt(self) -> str:
        return str(self.body["messages"][0]["content"])


Action = Callable[["Handler", Seen], None]


@dataclass
class Server:
    """What the handler's threads share. `charged` lists the prompts of requests that were answered in full."""

    script: Mapping[int, Action]
    otherwise: Action
    seen: list[Seen] = field(default_factory=list)
    charged: list[str] = field(default_factory=list)
    most_at_once: int = 0
    now: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""

    def count(self, prompt: str) -> int:
        return sum(seen.prompt == prompt for seen in self.seen)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Server

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["content-length"]))
        state = self.state
        with state.lock:
            seen = Seen(len(state.seen), json.loads(raw), {k.lower(): v for k, v in self.headers.items()})
            state.seen.append(seen)
            state.now += 1
            state.most_at_once = max(state.most_at_once, state.now)
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                state.script.get(seen.number, state.otherwise)(self, seen)
        finally:
            with state.lock:
                state.now -= 1

    def send(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None:
        pass


def completion(prompt: str, **changes: Any) -> dict[str, Any]:
    """A whole response; `changes` replace fields of it, of its choice (content, finish_reason, refusal) or of usage."""
    message = {"role": "assistant", "content": changes.pop("content", prompt[::-1])}
    if "refusal" in changes:
        message["refusal"] = changes.pop("refusal")
    choice = {"index": 0, "message": message, "finish_reason": changes.pop("finish_reason", "stop")}
    usage = {"prompt_tokens": len(prompt), "completion_tokens": 3, "total_tokens": len(prompt) + 3}
    whole = {"id": "x", "object": "chat.completion", "created": 1, "model": "tiny-2026-01-01", "choices": [choice]}
    return {**whole, "usage": usage, "system_fingerprint": "fp_1", **changes}


def answer(**changes: Any) -> Action:
    """200 with a completion."""

    def act(handler: Handler, seen: Seen) -> None:
        handler.send(200, completion(seen.prompt, **changes))
        with handler.state.lock:
            handler.state.charged.append(seen.prompt)

    return act


def slow(seconds: float) -> Action:
    """200, after a while."""

    def act(handler: Handler, seen: Seen) -> None:
        time.sleep(seconds)
        answer()(handler, seen)

    return act


def status(code: int, error: Mapping[str, Any] | None = None, **headers: str) -> Action:
    """An error status; underscores in header names become hyphens."""

    def act(handler: Handler, seen: Seen) -> None:
        body = {"error": {"message": f"scripted {code}", **(error or {})}}
        handler.send(code, body, {name.replace("_", "-"): value for name, value in headers.items()})

    return act


def raw(body: bytes, *, code: int = 200, content_type: str = "application/json") -> Action:
    """200, or another status, with these bytes."""
    return lambda handler, seen: handler.send(code, body, {"content-type": content_type})


def json_body(body: Any) -> Action:
    """200 with this JSON."""
    return lambda handler, seen: handler.send(200, body)


def drop_before_headers(handler: Handler, seen: Seen) -> None:
    """The connection is reset before a byte of the answer."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def drop_in_body(handler: Handler, seen: Seen) -> None:
    """Headers promise a whole answer, half of it comes."""
    whole = json.dumps(completion(seen.prompt)).encode()
    handler.send_response(200)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", str(len(whole)))
    handler.end_headers()
    handler.wfile.write(whole[: len(whole) // 2])
    handler.wfile.flush()
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def drip(seconds: float, every: float = 0.02) -> Action:
    """200, one byte at a time for so long, never finished."""

    def act(handler: Handler, seen: Seen) -> None:
        handler.send_response(200)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", "100000")
        handler.end_headers()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(every)
        handler.close_connection = True

    return act


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Broken connections are what these tests are about."""


@contextlib.contextmanager
def serve(script: Mapping[int, Action] | None = None, otherwise: Action | None = None) -> Iterator[Server]:
    """The server, for the length of a block."""
    state = Server(script or {}, otherwise or answer())
    handler = type("Scripted", (Handler,), {"state": state})
    http = _Quiet(("127.0.0.1", 0), handler)
    state.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        http.shutdown()
        http.server_close()
        thread.join(timeout=10)
