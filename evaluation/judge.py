"""Measures that a language model takes part in: the judge's grade, and the extractor's reading of an answer.

Runs after the task's own scorer, over the same records and predictions: the task declares what is asked and how a
reply is read (`Rubric`, `Extraction`), an endpoint answers, and the values are merged into the scores. A reply that
cannot be read, a refusal, a question that got no answer: each is counted under its name and leaves the item without
a value, never with a 0, and `n` of the metric says over how many items the mean was taken.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from evaluation.agreement import agreement
from evaluation.baselines import Client, Stopped
from evaluation.chat import Chat, Reply, Unanswered
from evaluation.pool import ItemScore
from evaluation.predictions import Predictions
from evaluation.prices import FREE, usd
from evaluation.score import Scores, summarise
from tasks.base import Completion, Metric, Record, Task, UserError

NOT_ASKED = "not_asked"  # the run ended before this question: budget, or an endpoint that is down


@dataclass(frozen=True, slots=True)
class Reader:
    """One assisted measure with the model that takes part in it.

    Attributes:
        version: of the task's prompt and parser.
        ask: (record, completion) -> the text for the model.
        value: (record, reply) -> the item's value, None where the reply cannot be read.
        blank: value of an empty answer, given without asking; None: the model is asked.
        repeats: how often each question is asked; the item's value is the mean of the readable replies.
        temperature: of these questions; above 0, each repeat has a seed of its own.
    """

    metric: Metric
    version: str
    ask: Callable[[Record, Completion], str]
    value: Callable[[Record, str], float | None]
    max_tokens: int
    client: Client
    blank: float | None = None
    repeats: int = 1
    temperature: float = 0.0


def judging(
    task: Task, client: Client, *, repeats: int = 1, temperature: float = 0.0, max_new_tokens: int | None = None
) -> Reader:
    """The judge of a task, by its limit unless another is given; UserError if the task declares no rubric."""
    rubric = task.rubric
    if rubric is None:
        raise UserError(got=f"a judge for task {task.name!r}", wanted="a task with a rubric", fix="leave out --judge")
    if repeats < 1 or temperature < 0:
        raise UserError(
            got=f"{repeats} repeats at temperature {temperature:g}", wanted="at least 1, at least 0", fix="mend them"
        )
    return Reader(
        metric=rubric.metric,
        version=rubric.version,
        ask=rubric.prompt,
        value=lambda _, reply: rubric.read(reply),
        max_tokens=_limit(max_new_tokens, rubric.max_new_tokens),
        client=client,
        blank=rubric.blank,
        repeats=repeats,
        temperature=temperature,
    )


def extracting(task: Task, client: Client, *, max_new_tokens: int | None = None) -> Reader:
    """The extractor of a task, by its limit unless another is given; UserError if the task declares no extraction."""
    extraction = task.extraction
    if extraction is None:
        raise UserError(
            got=f"an extractor for task {task.name!r}", wanted="a task with an extraction", fix="leave out --extractor"
        )
    return Reader(
        metric=extraction.metric,
        version=extraction.version,
        ask=lambda _, completion: extraction.prompt(completion),
        value=extraction.score,
        max_tokens=_limit(max_new_tokens, extraction.max_new_tokens),
        client=client,
        blank=0.0,
    )


def _limit(given: int | None, of_task: int) -> int:
    if given is not None and given < 1:
        raise UserError(
            got=f"replies of {given} tokens", wanted="at least 1", fix=f"leave it out for the task's {of_task}"
        )
    return of_task if given is None else given


@dataclass(frozen=True, slots=True)
class Reading:
    """What came of one item: replies (None where none came), and per reply a value or the name of its failure."""

    id: str
    replies: tuple[str | None, ...]
    values: tuple[float | None, ...]
    failures: tuple[str | None, ...]

    @property
    def readable(self) -> list[float]:
        return [value for value in self.values if value is not None]


def read_all(
    readers: Iterable[Reader], task: Task, records: Sequence[Record], predictions: Predictions, scores: Scores
) -> Scores:
    """The scores with the values of all readers merged in.

    Args:
        task: that was scored; its assisted metrics are added for the readers that ran.
        records: that were scored, in the order of `scores.items`.
    """
    for reader in readers:
        scores = _merge(reader, task, records, predictions, scores)
    return scores


def _merge(reader: Reader, task: Task, records: Sequence[Record], predictions: Predictions, scores: Scores) -> Scores:
    name = reader.metric.name
    readings, outcomes, stopped = _read(reader, records, predictions)
    items = tuple(
        replace(item, metrics={**item.metrics, name: sum(values) / len(values)} if values else item.metrics)
        for item, reading in zip(scores.items, readings, strict=True)
        for values in [reading.readable]
    )
    facts = _facts(reader, readings, [(key, reply) for key, reply in outcomes if isinstance(reply, Reply)])
    failed = sum(not reading.readable for reading in readings)
    warnings = [f"{name}: {stopped}"] if stopped else []
    if failed:
        kinds = ", ".join(f"{kind} {count}" for kind, count in facts["failures"].items())
        warnings.append(f"{name}: {failed} of {len(readings)} items have no value ({kinds}); the mean leaves them out")
    warnings += [f"{name}: {fault}: {message}" for fault, message in _said(outcomes).items()]
    return replace(
        scores,
        items=items,
        metrics={**scores.metrics, **_summary(reader.metric, task, items)},
        warnings=(*scores.warnings, *warnings),
        assisted={**scores.assisted, name: facts},
        readings={**scores.readings, name: tuple(dataclasses.asdict(reading) for reading in readings)},
    )


def _summary(metric: Metric, task: Task, items: Sequence[ItemScore]) -> Mapping[str, Any]:
    own = [replace(item, metrics={k: v for k, v in item.metrics.items() if k == metric.name}) for item in items]
    return summarise(replace(task, metrics=(metric,)), own)


def _read(
    reader: Reader, records: Sequence[Record], predictions: Predictions
) -> tuple[list[Reading], list[tuple[str, Reply | Unanswered]], str | None]:
    """Ask about every record; returns the readings in order, the outcomes beside the keys of their questions, and why
    not everything was asked, if so.
    """
    completions = {
        record.id: found.as_completion() if (found := predictions.by_id.get(record.id)) else Completion("")
        for record in records
    }
    asked = [r for r in records if reader.blank is None or completions[r.id].text.strip()]
    chats = {
        f"{repeat} {record.id}": Chat(
            reader.ask(record, completions[record.id]),
            reader.max_tokens,
            temperature=reader.temperature,
            repeat=repeat,
        )
        for record in asked
        for repeat in range(reader.repeats)
    }
    outcomes: dict[str, Reply | Unanswered] = {}
    stopped = None
    try:
        bar: dict[str, Any] = {"unit": "reply", "disable": not sys.stderr.isatty(), "leave": False}
        bar |= {"total": len(chats), "desc": reader.metric.name}
        for name, outcome in tqdm(reader.client.ask_all(chats), **bar):
            outcomes[name] = outcome
    except Stopped as reason:
        stopped = str(reason)
    wanted = {record.id for record in asked}
    readings = [
        _reading(reader, record, [outcomes.get(f"{repeat} {record.id}") for repeat in range(reader.repeats)])
        if record.id in wanted
        else Reading(record.id, (), (reader.blank,), (None,))
        for record in records
    ]
    where = reader.client.endpoint
    return readings, [(chats[name].key(where), outcome) for name, outcome in outcomes.items()], stopped


def _said(outcomes: Sequence[tuple[str, Reply | Unanswered]]) -> dict[str, str]:
    """What was said about the first question of each fault."""
    return {lost.fault: lost.message for _, lost in reversed(outcomes) if isinstance(lost, Unanswered)}


def _reading(reader: Reader, record: Record, outcomes: Sequence[Reply | Unanswered | None]) -> Reading:
    judged = [_judged(reader, record, outcome) for outcome in outcomes]
    texts = [outcome.text if isinstance(outcome, Reply) else None for outcome in outcomes]
    return Reading(record.id, tuple(texts), tuple(value for value, _ in judged), tuple(kind for _, kind in judged))


def _judged(reader: Reader, record: Record, outcome: Reply | Unanswered | None) -> tuple[float | None, str | None]:
    """The value of one reply, or the name of its failure."""
    if outcome is None:
        return None, NOT_ASKED
    if isinstance(outcome, Unanswered):
        return None, outcome.fault
    if outcome.declined:
        return None, outcome.declined
    if outcome.finish_reason == "length":
        return None, "truncated"  # it may have weighed a grade it would not have given
    try:
        value = reader.value(record, outcome.text)
    except Exception as error:
        raise RuntimeError(f"{reader.metric.name}: the reader of {record.id!r} failed: {error!r}") from error
    return value, "unreadable" if value is None else None


def _facts(reader: Reader, readings: Sequence[Reading], replies: Sequence[tuple[str, Reply]]) -> dict[str, Any]:
    """What the report says about this measure: how it was made, what failed, what it cost.

    `calls` to `cost_usd_at_most` are the bill of this command; `answers_cost_usd` is what the replies cost when they
    were first given, so a run from the cache still shows what the measure takes. Equal questions are asked and charged
    once: `shared` answers cost nothing more.
    """
    client = reader.client
    values = Counter(value for reading in readings for value in reading.readable)
    failures = Counter(kind for reading in readings for kind in reading.failures if kind)
    asked = dict(replies)
    costs = [reply.cost for reply in asked.values() if reply.cost is not None and client.price != FREE]
    repeated = agreement([reading.readable for reading in readings]) if reader.repeats > 1 else None
    return {
        "version": reader.version,
        "model": client.endpoint.model,
        "base_url": client.endpoint.public_url,
        "snapshots": dict(Counter(reply.snapshot for _, reply in replies if reply.snapshot)),
        "temperature": reader.temperature,
        "repeats": reader.repeats,
        "items": len(readings),
        "blank": sum(not reading.replies for reading in readings),
        "failures": dict(sorted(failures.items())),
        "values": {f"{value:g}": values[value] for value in sorted(values)},
        "agreement": repeated.as_json() if repeated else None,
        "price": client.price.as_json() if client.price else None,
        **client.ledger.totals(client.purpose).as_json(priced=client.price is not None),
        "answers": len(replies),
        "shared": len(replies) - len(asked),
        "answers_cost_usd": usd(sum(costs)) if costs else None,
    }
