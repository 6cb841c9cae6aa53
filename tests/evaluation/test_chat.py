"""What is read out of a response: the billed tokens, and whether the model that answered is the one that was asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from evaluation.chat import Chat, Usage, read_reply, same_model


def usage(**counts: Any) -> Usage | None:
    message = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": counts}
    return read_reply(json.dumps(message).encode(), Chat("p", 10)).usage


@pytest.mark.parametrize(
    ("counts", "wanted"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 103}, Usage(9, 94)),
        ({"prompt_tokens": 21, "completion_tokens": 0, "total_tokens": 81}, Usage(21, 60)),
        ({"prompt_tokens": 21, "total_tokens": 81}, Usage(21, 60)),
        ({"prompt_tokens": 9, "completion_tokens": 30, "total_tokens": 39}, Usage(9, 30)),
        ({"prompt_tokens": 9, "completion_tokens": 30}, Usage(9, 30)),
        ({"prompt_tokens": 9, "completion_tokens": 30, "total_tokens": 12}, Usage(9, 30)),
        ({"prompt_tokens": 9, "completion_tokens": 30, "total_tokens": None}, Usage(9, 30)),
        ({"prompt_tokens": 9}, None),
        ({"completion_tokens": 30, "total_tokens": 39}, None),
        ({"prompt_tokens": 9, "completion_tokens": "30", "total_tokens": 39}, None),
    ],
)
def test_thinking_is_output_also_where_only_the_total_counts_it(counts: dict[str, Any], wanted: Usage | None) -> None:
    assert usage(**counts) == wanted


@pytest.mark.parametrize(
    ("asked", "reported"),
    [
        ("gpt-4o", "gpt-4o"),
        ("gpt-4o", "gpt-4o-2024-08-06"),
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("gpt-3.5-turbo", "gpt-3.5-turbo-0125"),
        ("gpt-4", "gpt-4-0613"),
        ("claude-3-5-sonnet", "claude-3-5-sonnet-20241022"),
        ("claude-3-5-sonnet-latest", "claude-3-5-sonnet-20241022"),
        ("gemini-2.0-flash", "models/gemini-2.0-flash-001"),
        ("models/gemini-2.5-flash", "gemini-2.5-flash"),
        ("gemini-2.5-flash", "gemini-2.5-flash-preview-05-20"),
        ("gemini-2.5-flash", "gemini-2.5-flash-preview-09-2025"),
        ("text-model", "text-model@001"),
        ("/runs/tuned/", "/runs/tuned@main"),
        ("qwen3", "qwen3:latest"),
        ("openai/GPT-4o", "gpt-4o"),
    ],
)
def test_a_snapshot_an_alias_and_a_provider_are_the_same_model(asked: str, reported: str) -> None:
    assert same_model(asked, reported)


@pytest.mark.parametrize(
    ("asked", "reported"),
    [
        ("gpt-4", "gpt-4o-2024-08-06"),
        ("gpt-4", "gpt-4o"),
        ("gpt-4o", "gpt-4"),
        ("gpt-4o", "gpt-4o-mini"),
        ("gpt-4o", "gpt-4o-mini-2024-07-18"),
        ("gpt-4o-mini", "gpt-4o"),
        ("gpt-4", "gpt-4-turbo-2024-04-09"),
        ("gpt-4", "gpt-4-32k"),
        ("gpt-4", "gpt-4-1106-preview"),
        ("gpt-4o-2024-05-13", "gpt-4o-2024-08-06"),
        ("gemini-2.5-flash", "gemini-2.5-flash-lite"),
        ("llama-3-8b", "llama-3-80b"),
        ("m", "another-m"),
    ],
)
def test_a_relative_is_another_model(asked: str, reported: str) -> None:
    assert not same_model(asked, reported)
