from __future__ import annotations

from pathlib import Path

import pytest

from evaluation import prices
from evaluation.chat import Chat, endpoint, same_model
from evaluation.chat import Usage as U
from tasks.base import UserError


def of(model: str, url: str | None = None, file: Path | None = None) -> prices.Price | None:
    return prices.find(endpoint(f"openai:{model}", url), file)


def test_a_bill_by_hand() -> None:
    """gpt-4o: 1,000 prompt tokens of which 400 cached, 200 completion tokens: 600 x 2.5 + 400 x 1.25 + 200 x 10."""
    price = of("gpt-4o")
    assert price is not None
    assert prices.usd(price.cost(U(1000, 200, 400))) == pytest.approx((600 * 2.5 + 400 * 1.25 + 200 * 10) / 1e6, abs=0)


def test_sums_of_many_small_amounts_are_exact() -> None:
    price = of("gpt-4.1-nano")
    assert price is not None
    one = price.cost(U(1, 1))
    assert prices.usd(one * 2_000_000) == 1.0
    assert sum([one] * 1000) == 1000 * one == prices.picodollars(0.0005)


@pytest.mark.parametrize(
    ("model", "known"),
    [
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("gpt-4o-2024-05-13", "gpt-4o-2024-05-13"),
        ("gpt-4-0613", "gpt-4"),
        ("gpt-4-turbo-preview", "gpt-4-turbo"),
        ("gpt-3.5-turbo-0125", "gpt-3.5-turbo"),
        ("models/gemini-2.0-flash-001", "gemini-2.0-flash"),
        ("openai/gpt-4.1-mini", "gpt-4.1-mini"),
    ],
)
def test_a_snapshot_costs_what_its_family_costs(model: str, known: str) -> None:
    assert of(model) == prices.TABLE[known]


@pytest.mark.parametrize(
    ("model", "input", "output"),
    [("gpt-3.5-turbo-1106", 1.0, 2.0), ("gpt-3.5-turbo-0613", 1.5, 2.0), ("gpt-3.5-turbo-0301", 1.5, 2.0)],
)
def test_older_snapshots_have_their_own_price(model: str, input: float, output: float) -> None:
    price = of(model)
    assert price is not None
    assert (price.as_json()["input_usd_per_million"], price.as_json()["output_usd_per_million"]) == (input, output)


@pytest.mark.parametrize("model", ["gpt-4o-2031-01-01", "gemini-2.5-flash-preview-05-20", "gpt-4o-latest"])
@pytest.mark.parametrize("url", [None, "http://localhost:4000/v1"])
def test_the_price_of_an_unlisted_snapshot_is_not_known(model: str, url: str | None) -> None:
    assert of(model, url) is None


def test_snapshots_are_of_their_family_and_not_listed_twice() -> None:
    assert set(prices.SNAPSHOTS.values()) <= set(prices.TABLE)
    assert not set(prices.SNAPSHOTS) & set(prices.TABLE)
    assert all(same_model(family, name) for name, family in prices.SNAPSHOTS.items())


def test_unknown_elsewhere_free_on_this_machine() -> None:
    assert of("llama-2-7b", "https://example.com/v1") is None
    assert of("llama-2-7b", "http://127.0.0.1:8000/v1") == prices.FREE
    assert of("gpt-4o", "http://localhost:4000/v1") == prices.TABLE["gpt-4o"], "a proxy on this machine is not free"


def test_every_price_says_its_day_and_its_source() -> None:
    assert all(price.as_of and price.source for price in prices.TABLE.values())
    assert all(0 < price.cached_input <= price.input <= price.output for price in prices.TABLE.values())


def test_the_users_file_wins(tmp_path: Path) -> None:
    file = tmp_path / "prices.json"
    file.write_text('{"gpt-4o": {"input": 1, "output": 2.25, "as_of": "2026-11-01"}, "own": {"input": 0, "output": 0}}')
    price = of("gpt-4o-2024-08-06", None, file)
    assert price is not None
    assert price.as_json() == {
        "input_usd_per_million": 1.0,
        "output_usd_per_million": 2.25,
        "cached_input_usd_per_million": 1.0,
        "as_of": "2026-11-01",
        "source": "prices.json",
    }
    assert of("own", "https://example.com/v1", file) is not None
    assert of("gpt-4.1", None, file) == prices.TABLE["gpt-4.1"]


@pytest.mark.parametrize("text", ["[1]", "x: {input: 1}", "x: {input: a, output: 1}", "x: {input: -1, output: 1}", "{"])
def test_a_file_that_holds_no_prices_is_a_user_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match="per million"):
        of("gpt-4o", None, file)


@pytest.mark.parametrize("text", ["abc", "\u65e5\u672c\u8a9e" * 50, "\U0001f600", "", "\ud800"])
def test_a_ceiling_is_above_any_bill(text: str) -> None:
    """A byte-level tokenizer makes at most one token per byte."""
    price = prices.TABLE["gpt-4o"]
    worst = U(len(text.encode(errors="replace")) + 20, 10)
    assert price.ceiling(Chat(text, 10)) >= price.cost(worst)
