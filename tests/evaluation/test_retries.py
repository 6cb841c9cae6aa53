from __future__ import annotations

from datetime import UTC, datetime

import pytest

from evaluation.retries import Policy, retry_after

NOW = datetime(2026, 11, 22, 6, 0, 0, tzinfo=UTC)


def test_waits_double_up_to_the_longest() -> None:
    policy = Policy(first_s=1.0, longest_s=10.0, jitter=lambda: 1.0)
    assert [policy.wait_s(failures, None) for failures in range(1, 7)] == [1, 2, 4, 8, 10, 10]


def test_jitter_takes_away_at_most_half() -> None:
    assert Policy(jitter=lambda: 0.0).wait_s(3, None) == 2.0
    waits = {Policy().wait_s(3, None) for _ in range(50)}
    assert len(waits) > 10
    assert all(2.0 <= wait <= 4.0 for wait in waits)


def test_a_retry_after_is_waited_out_in_full() -> None:
    assert Policy(jitter=lambda: 0.0).wait_s(1, 90.0) == 90.0
    assert 90.0 <= Policy().wait_s(5, 90.0) < 91.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "30"}, 30.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "x", "retry-after": "9"}, 9.0),
        ({"retry-after": "Sun, 22 Nov 2026 06:02:00 GMT"}, 120.0),
        ({"retry-after": "Sun, 22 Nov 2026 05:00:00 GMT"}, 0.0),
        ({"retry-after": "Sun, 22 Nov 2026 06:02:00 GMT", "date": "Sun, 22 Nov 2026 06:01:50 GMT"}, 10.0),
        ({"retry-after": "Sunday, 22-Nov-26 06:02:00 GMT"}, 120.0),
        ({"retry-after": "Fri, 99 Nov 2026 06:02:00 GMT"}, None),
    ],
)
def test_retry_after_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, lambda: NOW) == seconds
