"""The language models that take part in the measures of a benchmark: an extractor, a judge.

`ray_jobs.benchmark` names them, `evaluation.judge` runs them on the answers of every row. The command line's options
for them are in `ray_jobs.commands.endpoints`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

from evaluation import chat, judge, prices
from evaluation.baselines import connect
from evaluation.compare import Readers
from evaluation.judge import Reader
from evaluation.ledger import Budget, Ledger
from fulltune.schema import Section
from tasks.base import Task


class ReaderModel(Section):
    """A model behind an OpenAI-compatible API that reads answers."""

    model: str = Field(description="openai:NAME")
    base_url: str | None = Field(None, description="of the API, up to /v1")
    omit: tuple[str, ...] = Field((), description="parameters that the endpoint does not take")
    budget_usd: float | None = Field(None, ge=0, description="per task")
    max_requests: int | None = Field(None, ge=0, description="per task")
    max_new_tokens: int | None = Field(
        None, ge=1, description="of a reply, thinking included, in place of the task's: for models that think first"
    )
    concurrency: int = Field(4, ge=1)
    timeout_s: float = Field(120.0, gt=0, description="of one request, from sending to the last byte")
    api_key_env: str = "OPENAI_API_KEY"
    repeats: int = Field(1, ge=1, description="ask so often about each answer; shows the agreement")
    temperature: float = Field(0.0, ge=0)

    @property
    def endpoint(self) -> chat.Endpoint:
        """Where it is."""
        options = {"key_variable": self.api_key_env, "omit": self.omit, "timeout_s": self.timeout_s}
        return chat.endpoint(self.model, self.base_url, **options)

    @property
    def asking(self) -> dict[str, Any]:
        """How it is asked."""
        judging = {"repeats": self.repeats, "temperature": self.temperature}
        return {"concurrency": self.concurrency, "max_new_tokens": self.max_new_tokens, **judging}

    @property
    def budget(self) -> Budget:
        """What it may spend on a task."""
        money = None if self.budget_usd is None else prices.picodollars(self.budget_usd)
        return Budget(money, self.max_requests)


@contextmanager
def readers(
    models: Mapping[str, ReaderModel | None], task: Task, cache: Path, price_file: Path | None
) -> Iterator[Readers]:
    """Label of a row -> those of the `extractor` and the `judge` that the task has a use for."""
    declared = {"extractor": task.extraction is not None, "judge": task.rubric is not None}
    wanted = {role: model for role, model in models.items() if model is not None and declared[role]}
    with ExitStack() as stack:
        ledgers = {role: Ledger(cache, str(uuid.uuid4()), model.budget) for role, model in wanted.items()}
        for ledger in ledgers.values():
            stack.callback(ledger.close)

        def of(label: str) -> Sequence[Reader]:
            return [
                reader(role, task, model.endpoint, ledgers[role], label, price_file=price_file, **model.asking)
                for role, model in wanted.items()
            ]

        yield of


def reader(
    role: str,
    task: Task,
    endpoint: chat.Endpoint,
    ledger: Ledger,
    label: str,
    *,
    price_file: Path | None,
    concurrency: int,
    max_new_tokens: int | None = None,
    repeats: int = 1,
    temperature: float = 0.0,
) -> Reader:
    """The extractor or the judge of a task, for the answers of one row; the last two are the judge's."""
    price = prices.find(endpoint, price_file)
    client = connect(endpoint, price, ledger, purpose=f"{role}: {label}", concurrency=concurrency)
    if role == "extractor":
        return judge.extracting(task, client, max_new_tokens=max_new_tokens)
    return judge.judging(task, client, repeats=repeats, temperature=temperature, max_new_tokens=max_new_tokens)
