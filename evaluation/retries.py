"""When to ask again and after how long: exponential backoff with jitter, and what the server itself asks for.

Used by `baselines` between the attempts of one question. The loop is ours, not the openai client's (its retries are
switched off) and not a library's: money has to be reserved before every single attempt and booked after it, and a
retry that happens inside a client is one the ledger never sees.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


@dataclass(frozen=True, slots=True)
class Policy:
    """How patient a client is.

    Attributes:
        attempts: requests for one question, the first included.
        first_s, longest_s: the wait after the first failure, doubled after each further one, and its upper end.
        patience_s: the longest Retry-After that is waited for; a longer one ends the run, which can go on later.
        jitter: a number in [0, 1), so that threads that failed together do not come back together.
    """

    attempts: int = 8
    first_s: float = 1.0
    longest_s: float = 60.0
    patience_s: float = 300.0
    jitter: Callable[[], float] = random.random

    def wait_s(self, failures: int, retry_after_s: float | None) -> float:
        """Seconds before the next attempt, after so many failed ones (at least 1).

        Half of the exponential wait is fixed and half is chance ("equal jitter"); a Retry-After is waited out in full
        with up to a second on top.
        """
        if retry_after_s is not None:
            return retry_after_s + self.first_s * self.jitter()
        longest = min(self.longest_s, self.first_s * 2.0 ** (failures - 1))
        return longest * (0.5 + 0.5 * self.jitter())


def retry_after(headers: Mapping[str, str], now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> float | None:
    """Seconds that a response asks to wait: `retry-after-ms`, or Retry-After in seconds or as an HTTP date (RFC 9110
    10.2.3); None without one that can be read. A date is taken against the server's own Date where it sends one.
    """
    try:
        return max(0.0, float(headers["retry-after-ms"]) / 1000.0)
    except (KeyError, ValueError):
        pass
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        date = _date(value)
        seconds = (date - (_date(headers.get("date", "")) or now())).total_seconds() if date else float("nan")
    return max(0.0, seconds) if seconds == seconds else None


def _date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
