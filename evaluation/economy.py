"""What answers cost, what tuning cost, and after how many answers it has paid for itself.

Called by compare. Every figure comes from something recorded (token counts, a ledger of an API, seconds of a run) and
from a price that the user names; where either is missing the figure is None and the report says "not measured" or
"unknown", never a guess.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import numpy as np

from evaluation.predictions import Prediction

HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Usage:
    """What one answer of a model takes on average; None: not measured.

    Attributes:
        prompt_tokens, completion_tokens: per answer.
        cost_per_1000_usd: of 1,000 such answers; `cost_basis` says where it comes from.
        latency_s, latency_p95_s: median and 95th percentile of single requests, where each was timed.
        seconds_per_answer: wall time of the whole prediction over its answers: answers in batches wait for each other.
    """

    prompt_tokens: float | None = None
    completion_tokens: float | None = None
    cost_per_1000_usd: float | None = None
    cost_basis: Literal["ledger", "worker hours"] | None = None
    latency_s: float | None = None
    latency_p95_s: float | None = None
    seconds_per_answer: float | None = None


@dataclass(frozen=True, slots=True)
class BreakEven:
    """Tuned model against one API model: `answers` after which tuning is paid; None with the reason in `why`."""

    api: str
    api_per_1000_usd: float
    answers: int | None
    why: str


@dataclass(frozen=True, slots=True)
class Economy:
    """What tuning the subject took and cost, and against which API it pays when."""

    worker_hours: float | None = None
    usd_per_worker_hour: float | None = None
    tuning_usd: float | None = None
    subject_per_1000_usd: float | None = None
    break_even: tuple[BreakEven, ...] = ()


def usage(
    details: Mapping[str, Any],
    answers: Sequence[Prediction],
    usd_per_worker_hour: float | None,
    *,
    predicted: int | None = None,
) -> Usage:
    """The averages of one model's predictions.

    Args:
        details: may hold totals: `seconds`, `workers`, `answers_cost_usd` of all `predicted` answers.
        answers: those that are scored.
        usd_per_worker_hour: price of a worker.
        predicted: number of answers in the file; None: those that are scored.
    """
    total = len(answers) if predicted is None else predicted
    prompts = [answer.prompt_tokens for answer in answers if answer.prompt_tokens is not None]
    written = [answer.completion_tokens for answer in answers if answer.completion_tokens is not None]
    latencies = _numbers(answers, "latency_s")
    cost, basis = _cost(details, answers, total, usd_per_worker_hour)
    seconds = number(details.get("seconds"))
    return Usage(
        prompt_tokens=fmean(prompts) if prompts else None,
        completion_tokens=fmean(written) if written else None,
        cost_per_1000_usd=cost,
        cost_basis=basis,
        latency_s=float(np.median(latencies)) if latencies else None,
        latency_p95_s=float(np.quantile(latencies, 0.95)) if latencies else None,
        seconds_per_answer=seconds / total if seconds and total else None,
    )


def _cost(
    details: Mapping[str, Any], answers: Sequence[Prediction], predicted: int, usd_per_worker_hour: float | None
) -> tuple[float | None, Literal["ledger", "worker hours"] | None]:
    """USD per 1,000 answers: what each was charged, else what all were, else the workers' hours at their price."""
    charged = _numbers(answers, "cost_usd")
    if charged:
        return 1000.0 * fmean(charged), "ledger"
    if not predicted:
        return None, None
    total = number(details.get("answers_cost_usd"))
    if total is not None:
        return 1000.0 * total / predicted, "ledger"
    seconds, workers = number(details.get("seconds")), number(details.get("workers"))
    if usd_per_worker_hour is None or not seconds or not workers:
        return None, None
    return 1000.0 * seconds / HOUR_S * workers * usd_per_worker_hour / predicted, "worker hours"


def economy(
    details: Mapping[str, Any],
    subject: Usage,
    others: Mapping[str, Usage],
    usd_per_worker_hour: float | None,
) -> Economy:
    """What the subject's tuning cost and where it breaks even.

    Args:
        details: of the subject; `worker_hours` is what its training run took.
        subject: its usage.
        others: label -> usage of the other rows; those charged by a ledger are APIs.
        usd_per_worker_hour: price of one worker (a GPU, or a CPU process) for an hour.
    """
    hours = number(details.get("worker_hours"))
    cost = hours * usd_per_worker_hour if hours is not None and usd_per_worker_hour is not None else None
    apis = {label: row.cost_per_1000_usd for label, row in others.items() if row.cost_basis == "ledger"}
    return Economy(
        worker_hours=hours,
        usd_per_worker_hour=usd_per_worker_hour,
        tuning_usd=cost,
        subject_per_1000_usd=subject.cost_per_1000_usd,
        break_even=tuple(
            break_even(label, price, cost, subject.cost_per_1000_usd)
            for label, price in apis.items()
            if price is not None
        ),
    )


def break_even(api: str, api_usd: float, tuning_usd: float | None, tuned_usd: float | None) -> BreakEven:
    """After how many answers tuning has paid for itself, prices being USD per 1,000 answers."""
    if tuning_usd is None:
        return BreakEven(api, api_usd, None, "unknown: the tuning run has no hours or no price per worker hour")
    if tuned_usd is None:
        return BreakEven(api, api_usd, None, "unknown: the cost of the tuned model's own answers was not measured")
    if tuned_usd >= api_usd:
        return BreakEven(api, api_usd, None, "never: an answer of the tuned model costs as much or more")
    answers = math.ceil(1000.0 * tuning_usd / (api_usd - tuned_usd))
    return BreakEven(api, api_usd, answers, "tuning cost / (API cost - tuned cost) per answer")


def number(value: Any) -> float | None:
    """A finite number that is not negative; None for everything else."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    return float(value) if good else None


def _numbers(answers: Sequence[Prediction], name: str) -> list[float]:
    return [value for answer in answers if (value := number(answer.extra.get(name))) is not None]
