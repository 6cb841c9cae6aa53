"""What a token costs: a dated table of list prices, and the user's own where it is out of date.

Used by `baselines` to charge the ledger and to know before a call what it can cost at most. Money is counted in whole
picodollars (1e-12 USD): a price with six decimals per million tokens is a whole number of them per token, so sums are
exact. Prices are facts of a day; the report prints the day.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from evaluation.chat import Chat, Endpoint, Usage, same_model
from tasks.base import UserError

PICO = 10**12  # picodollars per dollar
_MILLION = 10**6
_FRAME_TOKENS = 64  # of a chat template around one message, more than any of them takes


@dataclass(frozen=True, slots=True)
class Price:
    """Picodollars per token, with the day and the source of the figures."""

    input: int
    output: int
    cached_input: int
    as_of: str
    source: str

    def cost(self, usage: Usage) -> int:
        """Of one answered request."""
        fresh = usage.prompt - usage.cached
        return fresh * self.input + usage.cached * self.cached_input + usage.completion * self.output

    def ceiling(self, chat: Chat) -> int:
        """What a request can cost at most: a token is never less than a byte, an answer never more than its limit."""
        return (len(chat.prompt.encode(errors="replace")) + _FRAME_TOKENS) * self.input + chat.max_tokens * self.output

    def as_json(self) -> dict[str, Any]:
        """In USD per million tokens, for the meta file."""
        names = ("input", "output", "cached_input")
        per_million = {f"{name}_usd_per_million": float(Decimal(getattr(self, name)) / _MILLION) for name in names}
        return {**per_million, "as_of": self.as_of, "source": self.source}


def usd(picodollars: int) -> float:
    """Dollars, for people and files."""
    return float(Decimal(picodollars) / PICO)


def picodollars(dollars: float) -> int:
    """The other way round."""
    return int(Decimal(str(dollars)) * PICO)


def _price(input: str, output: str, cached: str | None, as_of: str, source: str) -> Price:
    amounts = [int(Decimal(amount) * _MILLION) for amount in (input, output, cached or input)]
    return Price(amounts[0], amounts[1], amounts[2], as_of, source)


# USD per million tokens: input, output, cached input. List prices for prompts under 200,000 tokens.
_OPENAI, _GEMINI = ("2025-09", "OpenAI's pricing page"), ("2025-09", "Google's Gemini API pricing page")
_RETIRED = ("2024-01", "OpenAI's pricing page, older models")
TABLE: Mapping[str, Price] = {
    "gpt-3.5-turbo": _price("0.50", "1.50", None, *_OPENAI),
    "gpt-3.5-turbo-1106": _price("1", "2", None, *_RETIRED),
    "gpt-3.5-turbo-0613": _price("1.50", "2", None, *_RETIRED),
    "gpt-3.5-turbo-0301": _price("1.50", "2", None, *_RETIRED),
    "gpt-4": _price("30", "60", None, *_OPENAI),
    "gpt-4-1106-preview": _price("10", "30", None, *_OPENAI),
    "gpt-4-0125-preview": _price("10", "30", None, *_OPENAI),
    "gpt-4-turbo": _price("10", "30", None, *_OPENAI),
    "gpt-4o": _price("2.50", "10", "1.25", *_OPENAI),
    "gpt-4o-2024-05-13": _price("5", "15", None, *_OPENAI),
    "gpt-4o-mini": _price("0.15", "0.60", "0.075", *_OPENAI),
    "gpt-4.1": _price("2", "8", "0.50", *_OPENAI),
    "gpt-4.1-mini": _price("0.40", "1.60", "0.10", *_OPENAI),
    "gpt-4.1-nano": _price("0.10", "0.40", "0.025", *_OPENAI),
    "gpt-5": _price("1.25", "10", "0.125", *_OPENAI),
    "gpt-5-mini": _price("0.25", "2", "0.025", *_OPENAI),
    "gpt-5-nano": _price("0.05", "0.40", "0.005", *_OPENAI),
    "gemini-2.0-flash": _price("0.10", "0.40", None, *_GEMINI),
    "gemini-2.5-flash": _price("0.30", "2.50", None, *_GEMINI),
    "gemini-2.5-flash-lite": _price("0.10", "0.40", None, *_GEMINI),
    "gemini-2.5-pro": _price("1.25", "10", None, *_GEMINI),
}
# Snapshots whose list price is that of another name in the table. Any other snapshot has no known price: some cost
# three times what their family costs today.
SNAPSHOTS: Mapping[str, str] = {
    "gpt-3.5-turbo-0125": "gpt-3.5-turbo",
    "gpt-4-0314": "gpt-4",
    "gpt-4-0613": "gpt-4",
    "gpt-4-turbo-preview": "gpt-4-turbo",
    "gpt-4-turbo-2024-04-09": "gpt-4-turbo",
    "gpt-4o-2024-08-06": "gpt-4o",
    "gpt-4o-2024-11-20": "gpt-4o",
    "gpt-4o-mini-2024-07-18": "gpt-4o-mini",
    "gpt-4.1-2025-04-14": "gpt-4.1",
    "gpt-4.1-mini-2025-04-14": "gpt-4.1-mini",
    "gpt-4.1-nano-2025-04-14": "gpt-4.1-nano",
    "gpt-5-2025-08-07": "gpt-5",
    "gpt-5-mini-2025-08-07": "gpt-5-mini",
    "gpt-5-nano-2025-08-07": "gpt-5-nano",
    "gemini-2.0-flash-001": "gemini-2.0-flash",
}
FREE = Price(0, 0, 0, as_of="always", source="an endpoint on this machine")


def find(endpoint: Endpoint, file: Path | None = None) -> Price | None:
    """The price of a model: from the user's file, else the table, else nothing on loopback; None: not known.

    Never that of a relative: a snapshot costs what its family costs only where SNAPSHOTS says so.
    """
    own = read(file) if file else {}
    name = endpoint.model.rpartition("/")[2]
    for table in (own, TABLE):
        for known in (endpoint.model, name, SNAPSHOTS.get(name, name)):
            if known in table:
                return table[known]
    # what answers on this machine to the name of a priced model is a proxy
    priced = any(same_model(known, name) for known in (*own, *TABLE))
    return FREE if endpoint.loopback and not priced else None


def read(file: Path) -> dict[str, Price]:
    """Prices from YAML or JSON: `{model: {input: 2.5, output: 10, cached_input: 1.25, as_of: 2026-01-31}}`, in USD per
    million tokens; `cached_input` and `as_of` may be left out.

    Raises:
        UserError: not such a file.
    """
    import yaml

    try:
        rows = yaml.safe_load(file.read_text(encoding="utf-8"))
        return {str(model): _own(row, file) for model, row in rows.items()}
    except (OSError, AttributeError, KeyError, TypeError, ValueError, InvalidOperation, yaml.YAMLError) as error:
        raise UserError(
            got=f"{file}: {error!r}",
            wanted="{model: {input: USD, output: USD, cached_input: USD}} per million tokens, as YAML or JSON",
            fix="mend the file",
        ) from error


def _own(row: Mapping[str, Any], file: Path) -> Price:
    amounts = {name: str(row[name]) for name in ("input", "output", "cached_input") if row.get(name) is not None}
    if any(Decimal(amount) < 0 for amount in amounts.values()):
        raise ValueError(f"a negative price in {amounts}")
    as_of = str(row.get("as_of", "not said"))
    return _price(amounts["input"], amounts["output"], amounts.get("cached_input"), as_of, file.name)
