"""One finding of a preflight, and what all of them come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.base import UserError


@dataclass(frozen=True, slots=True)
class Check:
    """A question that was put to the machines.

    Attributes:
        ok: False is a no-go.
        got: what was found, with its figures.
        wanted: what it was held against; "" where a figure is only told.
        fix: what to change; for a no-go only.
    """

    name: str
    ok: bool
    got: str
    wanted: str = ""
    fix: str = ""


def judged(name: str, *, ok: bool, got: str, wanted: str, fix: str) -> Check:
    """A check that carries its fix only where there is something to mend."""
    return Check(name, ok, got, wanted, "" if ok else fix)


def refused(name: str, error: UserError) -> Check:
    """A mistake of the user's as a no-go."""
    return Check(name, False, error.got, error.wanted, error.fix)


def is_go(checks: Sequence[Check]) -> bool:
    """Go where no check says no; nothing checked is no go."""
    return bool(checks) and all(check.ok for check in checks)
