"""Arguments that commands with API models share: where the endpoint is, what it may cost, where answers are kept."""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.base import Task, UserError

if TYPE_CHECKING:
    from evaluation.chat import Endpoint
    from evaluation.judge import Reader
    from evaluation.ledger import Budget, Ledger

CACHE = Path.home() / ".cache" / "fulltune" / "api"
OWN_CACHE = "of `predict` and a model in this network, .OUT.api beside OUT"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Budget, concurrency, cache and prices."""
    options = parser.add_argument_group("API models")
    options.add_argument("--budget-usd", type=float, help="spend no more than this; the run stops before it could")
    options.add_argument("--max-requests", type=int, help="send no more requests than this, failed ones included")
    options.add_argument("--concurrency", type=int, default=4, help="requests under way at a time (4)")
    options.add_argument("--timeout-s", type=float, default=120.0, help="of one request (120)")
    options.add_argument("--api-key-env", default="OPENAI_API_KEY", help="variable with the key (OPENAI_API_KEY)")
    options.add_argument("--omit", default="", help="parameters that the model does not take: temperature,stop,seed")
    options.add_argument("--cache", type=Path, help=f"folder of answers and ledger ({CACHE}; {OWN_CACHE})")
    options.add_argument("--prices", type=Path, help="YAML or JSON {model: {input, output}} in USD per million tokens")


def add_readers(parser: argparse.ArgumentParser) -> None:
    """Extractor and judge."""
    options = parser.add_argument_group("measures that a language model takes part in")
    for role, does in (("extractor", "finds the final answer"), ("judge", "grades answers by the task's rubric")):
        options.add_argument(f"--{role}", metavar="openai:NAME", help=f"a model that {does}")
        options.add_argument(f"--{role}-base-url", metavar="URL", help="of its API; default: OpenAI's own")
        options.add_argument(
            f"--{role}-max-new-tokens", type=int, metavar="N", help="of a reply, thinking included; default: the task's"
        )
    options.add_argument("--judge-repeats", type=int, default=1, help="ask the judge so often; shows its agreement")
    options.add_argument("--judge-temperature", type=float, default=0.0, help="of the judge (0)")
    add_options(parser)


@contextmanager
def readers(arguments: argparse.Namespace) -> Iterator[Callable[[Task], Callable[[str], Sequence[Reader]]]]:
    """task -> label of a row -> its readers, all under the one budget of this command."""
    roles = [role for role in ("extractor", "judge") if getattr(arguments, role)]
    if not roles:
        yield lambda task: lambda label: ()
        return
    from evaluation.ledger import Ledger

    ledger = Ledger(arguments.cache or CACHE, str(uuid.uuid4()), budget(arguments))
    try:
        yield lambda task: lambda label: [_reader(arguments, role, task, ledger, label) for role in roles]
    finally:
        ledger.close()


def _reader(arguments: argparse.Namespace, role: str, task: Task, ledger: Ledger, label: str) -> Reader:
    from ray_jobs.readers import reader

    where = endpoint(arguments, getattr(arguments, role), getattr(arguments, f"{role}_base_url"))
    return reader(
        role,
        task,
        where,
        ledger,
        label,
        price_file=arguments.prices,
        concurrency=arguments.concurrency,
        max_new_tokens=getattr(arguments, f"{role}_max_new_tokens"),
        repeats=arguments.judge_repeats,
        temperature=arguments.judge_temperature,
    )


def cache_of(arguments: argparse.Namespace, where: Endpoint, out: Path) -> Path:
    """The folder of answers for a predictions file.

    A model served in this network gets one for this file alone: what answers at the same URL under the same name is
    another model after the next training. A file that was begun with the common folder goes on with it.
    """
    from evaluation import prediction_file

    own = out.with_name(f".{out.stem}.api")
    if arguments.cache is not None:
        return Path(arguments.cache)
    begun_elsewhere = not own.exists() and out.exists() and prediction_file.read_meta(out).get("calls")
    return own if where.private and not begun_elsewhere else CACHE


def endpoint(arguments: argparse.Namespace, model: str, base_url: str | None) -> Endpoint:
    """The endpoint that `openai:NAME` and the options describe."""
    from evaluation import chat

    omit = tuple(name for name in arguments.omit.split(",") if name)
    strange = [name for name in omit if name not in chat.OMITTABLE]
    if strange:
        raise UserError(got=f"--omit {strange[0]!r}", wanted=f"some of {', '.join(chat.OMITTABLE)}", fix="leave it out")
    if arguments.concurrency < 1 or arguments.timeout_s <= 0:
        given = f"--concurrency {arguments.concurrency}, --timeout-s {arguments.timeout_s:g}"
        raise UserError(got=given, wanted="numbers above 0", fix="leave them out for 4 and 120")
    options = {"key_variable": arguments.api_key_env, "omit": omit, "timeout_s": arguments.timeout_s}
    return chat.endpoint(model, base_url, **options)


def budget(arguments: argparse.Namespace) -> Budget:
    """What may be spent."""
    from evaluation import prices
    from evaluation.ledger import Budget

    for name in ("budget_usd", "max_requests"):
        value = getattr(arguments, name)
        if value is not None and not value >= 0:
            raise UserError(
                got=f"--{name.replace('_', '-')} {value}", wanted="a number from 0 on", fix="leave it out for no limit"
            )
    cost = None if arguments.budget_usd is None else prices.picodollars(arguments.budget_usd)
    return Budget(cost, arguments.max_requests)
