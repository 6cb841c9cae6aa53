"""`fulltune predict` for a model behind an API: the task's own prompt with k shots -> predictions.jsonl + .meta.json.

The same schema as for our own models, so `score` and `compare` ask no questions. Lines are written as answers come
and put in order at the end. A run that ends early (budget, a kill, a server that is down) keeps what it has; the same
command goes on with the rest, under the same budget. No Ray and no torch in here.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from evaluation import prediction_file, prices
from evaluation.baselines import Client, Stopped, connect
from evaluation.chat import Chat, Endpoint, Reply, Unanswered, same_model
from evaluation.ledger import Budget, Ledger
from evaluation.predictions import Prediction
from evaluation.prices import Price
from evaluation.rejections import REJECTED
from evaluation.retries import Policy
from tasks import shots as worked_examples
from tasks.base import Record, Task, UserError
from tasks.sources import load

PURPOSE = "predict"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiRequest:
    """What is to be predicted, with what, and for how much.

    Attributes:
        label: name of the model in reports.
        role: which row of a report it is ("base", "tuned", "other"); None leaves that to the words of the label.
        budget: of this predictions file, over all runs that worked on it.
        cache: folder of the ledger, which holds every answer ever paid for.
        price_file: prices that win over the built-in table.
    """

    task: Task
    split: str
    source: str
    endpoint: Endpoint
    out: Path
    label: str
    cache: Path
    shots: int = 0
    limit: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    role: str | None = None
    budget: Budget = Budget()
    concurrency: int = 4
    price_file: Path | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the answers; a file made under another identity is not continued."""
        names = {"task": self.task.name, "task_version": self.task.version, "task_options": dict(self.task.options)}
        asked = Chat("", self.task.max_new_tokens, self.task.baseline_stop).body(self.endpoint)
        settings = {name: value for name, value in asked.items() if name != "messages"}
        data = {"split": self.split, "source": self.source, "columns": dict(self.columns), "shots": self.shots}
        return {**names, **data, "prompt": "natural", "base_url": self.endpoint.public_url, **settings}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a prediction run ended: `unanswered` counts by fault, `stopped` says why it ended before its end."""

    answered: int
    unanswered: Mapping[str, int]
    missing: int
    stopped: str | None
    warnings: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return self.missing == 0


def predict(request: ApiRequest, *, say: Callable[[str], None], **client_options: Any) -> Outcome:
    """Predict what is missing in `request.out`.

    Args:
        say: takes lines for the user.
        client_options: as in `baselines.Client` (policy, wait).

    Raises:
        UserError: the file is another model's or in use by another run, the endpoint rejects the requests, or the
            ledger of the file is gone.
    """
    with prediction_file.only_run(request.out):  # two would each have the whole budget, and pay for the same questions
        return _predict(request, say, client_options)


def _predict(request: ApiRequest, say: Callable[[str], None], client_options: Mapping[str, Any]) -> Outcome:
    task = request.task
    records = load(task, request.split, request.source, columns=dict(request.columns) or None, limit=request.limit)
    chats = _chats(request, records)
    done = prediction_file.answered(request.out, request.identity)
    facts = _facts(request)
    before = prediction_file.read_meta(request.out) if request.out.exists() else {}
    run = str(before.get("run") or uuid.uuid4())
    with _ledger(request, run) as ledger:
        if before.get("calls") and not ledger.totals().calls:
            raise UserError(
                got=f"{ledger.path}: nothing about the {before['calls']} calls of {request.out}",
                wanted="the ledger that the file was begun with",
                fix="pass its --cache, or choose another --out",
            )
        client = _client(request, ledger, client_options)
        facts |= {"run": run, "price": client.price.as_json() if client.price else None}
        seconds = float(before.get("seconds", 0.0))
        before.pop("role", None)  # what it is now, or none
        prediction_file.write_meta(request.out, before | facts | {"seconds": seconds})
        request.out.touch()
        missing = {name: chat for name, chat in chats.items() if name not in done}
        say(f"{request.label}: {len(missing)} prompts" + (f" ({len(done)} answered before)" if done else ""))
        _say_cached(request, ledger, missing, say)
        started = time.perf_counter()
        lost: list[Unanswered] = []

        def so_far(spent_s: float) -> dict[str, Any]:
            return before | facts | {"seconds": round(seconds + spent_s, 2)}

        keep_time = prediction_file.timekeeper(request.out, so_far)  # for a kill, which no `finally` sees
        try:
            stopped = _ask(request, client, missing, _shared(chats, request.endpoint), lost, keep_time)
        finally:
            rows = prediction_file.finish(request.out, [record.id for record in records])
            spent = {"seconds": round(seconds + time.perf_counter() - started, 2)}
            prediction_file.write_meta(request.out, facts | spent | account(rows, ledger, client, lost))
    wanted = {record.id for record in records}
    have = sum(row.id in wanted for row in rows)
    warnings = (*_warnings(rows, request.endpoint), *_rejections(lost))
    return Outcome(have, _counts(lost), len(wanted) - have, stopped, warnings)


def _say_cached(request: ApiRequest, ledger: Ledger, missing: Mapping[str, Chat], say: Callable[[str], None]) -> None:
    """Which answers an earlier run got, and when: the same URL and name may have been another model then."""
    dates = ledger.asked(chat.key(request.endpoint) for chat in missing.values())
    if dates:
        first, last = (f"{date[:16].replace('T', ' ')} UTC" for date in (dates[0], dates[-1]))
        say(f"{request.label}: {len(dates)} answers from the cache, asked on {first} .. {last}")


def _chats(request: ApiRequest, records: Sequence[Record]) -> dict[str, Chat]:
    """One question per record. The worked examples avoid the whole split, so they do not depend on `limit`."""
    task, shots = request.task, []
    if request.shots:
        columns = dict(request.columns) or None
        asked = load(task, request.split, request.source, columns=columns)
        train = load(task, "train", request.source, columns=columns)
        shots = worked_examples.pick(task, request.shots, train, asked)
    return {r.id: Chat(task.baseline_prompt(r, shots), task.max_new_tokens, task.baseline_stop) for r in records}


def _shared(chats: Mapping[str, Chat], endpoint: Endpoint) -> frozenset[str]:
    """Records whose question equals that of an earlier one: it is asked and paid for once, and once is in the bill.

    By the order of the records, so that it does not depend on which process got the answer, or when.
    """
    first: dict[str, str] = {}
    for name, chat in chats.items():
        first.setdefault(chat.key(endpoint), name)
    return frozenset(chats).difference(first.values())


@contextmanager
def _ledger(request: ApiRequest, run: str) -> Iterator[Ledger]:
    ledger = Ledger(request.cache, run, request.budget)
    try:
        yield ledger
    finally:
        ledger.close()


def _client(request: ApiRequest, ledger: Ledger, options: Mapping[str, Any]) -> Client:
    price = prices.find(request.endpoint, request.price_file)
    settings = {"policy": Policy(), **options, "purpose": PURPOSE, "concurrency": request.concurrency}
    return connect(request.endpoint, price, ledger, **settings)


def _facts(request: ApiRequest) -> dict[str, Any]:
    """What the report shows of how the answers were made."""
    names = {"label": request.label, "task": request.task.name, "split": request.split, "source": request.source}
    # a chat endpoint puts its own template around the task's natural prompt, as `prompt: chat` does here
    row = {"shots": request.shots, "prompt": "chat", "model": request.endpoint.model}
    row |= {"role": request.role} if request.role else {}
    where = {"engine": "openai", "base_url": request.endpoint.public_url}
    return {**names, **row, **where, "identity": request.identity}


def _ask(
    request: ApiRequest,
    client: Client,
    missing: Mapping[str, Chat],
    shared: frozenset[str],
    lost: list[Unanswered],
    keep_time: Callable[[], None],
) -> str | None:
    """Ask and write, one line per answer as it comes; returns why not everything was asked, if so."""
    with (
        request.out.open("a", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
        tqdm(total=len(missing), unit="answer", disable=not sys.stderr.isatty(), leave=False) as bar,
    ):
        try:
            for identity, outcome in client.ask_all(missing):
                bar.update()
                keep_time()
                if isinstance(outcome, Unanswered):
                    lost.append(outcome)
                else:
                    line = prediction(identity, outcome, request, client.price, shared=identity in shared).as_line()
                    file.write(line + "\n")
                    file.flush()
        except Stopped as reason:
            return str(reason)
    return None


def prediction(
    identity: str, reply: Reply, request: ApiRequest, price: Price | None, *, shared: bool = False
) -> Prediction:
    """The line of one answer. A refusal's words are its completion; `declined` says that it is one.

    Answers from this machine say nothing of their cost: no API charges them, but what the machine costs is not known.

    Args:
        shared: the answer is that of another record with the same question, which has its cost and its latency.
    """
    cost = None if reply.cost is None or price == prices.FREE else prices.usd(0 if shared else reply.cost)
    extra = {
        "snapshot": reply.snapshot,
        "declined": reply.declined,
        "cost_usd": cost,
        "shared": shared or None,
        "latency_s": None if shared else reply.latency_s,
    }
    return Prediction(
        id=identity,
        completion=reply.text,
        model=request.label,
        prompt_tokens=reply.usage.prompt if reply.usage else None,
        completion_tokens=reply.usage.completion if reply.usage else None,
        finish_reason=reply.finish_reason or reply.declined,
        task_version=request.task.version,
        extra={name: value for name, value in extra.items() if value is not None},
    )


def account(rows: Sequence[Prediction], ledger: Ledger, client: Client, lost: Sequence[Unanswered]) -> dict[str, Any]:
    """What the answers cost and how they came.

    `calls` to `cost_usd_at_most` are this file's own bill; `answers_cost_usd` is what the answers cost when they were
    asked, by whichever run, and so what a user without a cache would pay. Equal questions are asked and charged once:
    `shared` answers cost nothing more.
    """
    totals = ledger.totals()
    latencies = [row.extra["latency_s"] for row in rows if "latency_s" in row.extra]
    costs = [row.extra["cost_usd"] for row in rows if "cost_usd" in row.extra]
    return {
        **totals.as_json(priced=client.price is not None),
        "answers": len(rows),
        "answers_cost_usd": round(sum(costs), 12) if costs else None,
        "latency_s": round(sum(latencies) / len(latencies), 4) if latencies else None,
        "shared": sum("shared" in row.extra for row in rows),
        "unanswered": _counts(lost),
        "unanswered_why": {row.fault: row.message for row in reversed(lost)},
        "declined": dict(Counter(row.extra["declined"] for row in rows if "declined" in row.extra)),
        "snapshots": dict(Counter(row.extra["snapshot"] for row in rows if "snapshot" in row.extra)),
    }


def _counts(lost: Sequence[Unanswered]) -> dict[str, int]:
    return dict(Counter(row.fault for row in lost))


def _rejections(lost: Sequence[Unanswered]) -> list[str]:
    said = [row.message for row in lost if row.fault == REJECTED]
    return [f"{len(said)} prompts were rejected and have no answer, the first one with {said[0]!r}"] if said else []


def _warnings(rows: Sequence[Prediction], endpoint: Endpoint) -> tuple[str, ...]:
    seen = {str(row.extra["snapshot"]) for row in rows if "snapshot" in row.extra}
    others = sorted(name for name in seen if not same_model(endpoint.model, name))
    found = [f"asked for {endpoint.model!r}, answered by {', '.join(map(repr, others))}"] if others else []
    if len(seen) > 1:
        found.append(f"answers come from several snapshots: {', '.join(sorted(seen))}")
    declined = sum("declined" in row.extra for row in rows)
    if declined:
        found.append(f"{declined} prompts were declined (refused, filtered, too long); their answers count as they are")
    return tuple(found)
