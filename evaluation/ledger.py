"""Every request to an API and every answer it brought, in one SQLite file: the bill, the budget and the cache.

`baselines` opens a call before it sends a request and closes it afterwards; the answer and its cost are written in one
transaction, so a process that is killed at any point has either both or neither. What it leaves open was perhaps
charged and perhaps not: the next run of the same kind marks it lost and counts it against the budget at the most it
can have cost, but never as exact cost.

    begin -> [sent] -> end: answered (with the answer, found again by its key) | failed      or, after a kill: lost
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evaluation.chat import Reply, Usage
from evaluation.prices import usd
from tasks.base import UserError

FILE = "calls.sqlite"
_SCHEMA = 1
_TABLES = """
CREATE TABLE calls (
    id INTEGER PRIMARY KEY, run TEXT NOT NULL, purpose TEXT NOT NULL, key TEXT NOT NULL,
    started TEXT NOT NULL, state TEXT NOT NULL, fault TEXT, ceiling INTEGER, cost INTEGER,
    prompt_tokens INTEGER, completion_tokens INTEGER, latency_s REAL
);
CREATE INDEX calls_of_run ON calls (run);
CREATE TABLE answers (key TEXT PRIMARY KEY, asked TEXT NOT NULL, request TEXT NOT NULL, reply TEXT NOT NULL);
"""


class BudgetReached(Exception):
    """The next request could exceed the budget."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that a run may spend, over all its restarts; None is no limit. `cost` is in picodollars."""

    cost: int | None = None
    requests: int | None = None


@dataclass(frozen=True, slots=True)
class Totals:
    """What a run (or one purpose of it) has come to.

    Attributes:
        calls: requests sent, failed ones included; `retries` of them repeat an earlier one.
        answered: requests that brought an answer.
        faults: requests that did not, by kind.
        lost: requests that were under way, or about to be sent, when the process was killed.
        prompt_tokens, completion_tokens: as the server counted them.
        cost: picodollars of the requests whose cost is known.
        uncertain: the most that the others can have cost (no usage in the answer, dropped connections, lost ones).
    """

    calls: int = 0
    retries: int = 0
    answered: int = 0
    faults: Mapping[str, int] = field(default_factory=dict)
    lost: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: int = 0
    uncertain: int = 0

    def as_json(self, *, priced: bool) -> dict[str, Any]:
        """For meta files and metrics.json; costs are null where no price is known."""
        counts = {name: getattr(self, name) for name in ("calls", "retries", "lost", "prompt_tokens")}
        money = {"cost_usd": usd(self.cost), "cost_usd_at_most": usd(self.cost + self.uncertain)}
        return {
            **counts,
            "completion_tokens": self.completion_tokens,
            "faults": dict(self.faults),
            **(money if priced else dict.fromkeys(money)),
        }


class Ledger:
    """The calls of one run; safe to use from several threads.

    Args:
        folder: holds the file; other runs use the same one and find each other's answers.
        run: names the run; calls that an earlier process of this run left open are marked lost.
        budget: what all calls of the run together may reach.
    """

    def __init__(self, folder: Path, run: str, budget: Budget = Budget()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.run, self.budget = folder / FILE, run, budget
        self._changed = threading.Condition()
        self._db = _open(self.path)
        with self._db:
            self._db.execute("UPDATE calls SET state = 'lost' WHERE run = ? AND state = 'sent'", (run,))
        totals = self.totals()
        self._spent, self._requests = totals.cost + totals.uncertain, totals.calls
        self._open: dict[int, int] = {}  # call -> its ceiling

    def answer(self, key: str) -> Reply | None:
        """The answer to this question, whichever run asked it."""
        with self._changed:
            row = self._db.execute("SELECT reply FROM answers WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        fields = json.loads(row[0])
        return Reply(**fields | {"usage": Usage(**fields["usage"]) if fields["usage"] else None})

    def asked(self, keys: Iterable[str]) -> list[str]:
        """When those of the questions that have an answer here were asked, by whichever run, in order."""
        with self._changed:
            rows = [self._db.execute("SELECT asked FROM answers WHERE key = ?", (key,)).fetchone() for key in keys]
        return sorted(row[0] for row in rows if row is not None)

    def begin(self, key: str, *, purpose: str, ceiling: int | None) -> int:
        """Open a call before its request is sent; returns its number.

        Waits while only calls under way stand between this one and the budget: they mostly cost less than they could.

        Raises:
            BudgetReached: the request is not to be sent.
        """
        most = ceiling or 0
        with self._changed:
            while not self._affordable(most) and self._open and self._requests_left():
                self._changed.wait()
            if not self._requests_left():
                raise BudgetReached(f"{self._requests} requests are sent, as many as allowed")
            if not self._affordable(most):
                raise BudgetReached(
                    f"${usd(self._spent):.6g} of ${usd(self.budget.cost or 0):.6g} are spent and the next request can "
                    f"cost up to ${usd(most):.6g}"
                )
            with self._db:
                cursor = self._db.execute(
                    "INSERT INTO calls (run, purpose, key, started, state, ceiling) VALUES (?, ?, ?, ?, 'sent', ?)",
                    (self.run, purpose, key, _now(), ceiling),
                )
            call = int(cursor.lastrowid or 0)
            self._requests += 1
            self._open[call] = most
            return call

    def _requests_left(self) -> bool:
        return self.budget.requests is None or self._requests < self.budget.requests

    def _affordable(self, most: int) -> bool:
        reserved = sum(self._open.values())
        return self.budget.cost is None or self._spent + reserved + most <= self.budget.cost

    def answered(self, call: int, key: str, request: Mapping[str, Any], reply: Reply) -> None:
        """Close a call that brought an answer, and keep the answer."""
        with self._changed, self._db:
            self._close(call, "answered", None, reply.cost, reply.usage, reply.latency_s)
            self._keep(key, request, reply)

    def keep(self, key: str, request: Mapping[str, Any], reply: Reply) -> None:
        """Keep an answer that became one after its call was closed."""
        with self._changed, self._db:
            self._keep(key, request, reply)

    def _keep(self, key: str, request: Mapping[str, Any], reply: Reply) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO answers (key, asked, request, reply) VALUES (?, ?, ?, ?)",
            (key, _now(), json.dumps(request), json.dumps(asdict(reply))),
        )

    def accepted(self, purpose: str) -> bool:
        """Whether a model has worked on a request of this run, whatever it answered.

        One that was turned away and counts as answered all the same (a filter) has a cost of 0 and no tokens.
        """
        with self._changed:
            row = self._db.execute(
                "SELECT 1 FROM calls WHERE run = ? AND purpose = ? AND state = 'answered' "
                "AND (cost IS NULL OR prompt_tokens IS NOT NULL) LIMIT 1",
                (self.run, purpose),
            ).fetchone()
        return row is not None

    def failed(self, call: int, fault: str, *, cost: int | None, usage: Usage | None, latency_s: float) -> None:
        """Close a call that brought none; a `cost` of None may be anything up to its ceiling."""
        with self._changed, self._db:
            self._close(call, "failed", fault, cost, usage, latency_s)

    def _close(
        self, call: int, state: str, fault: str | None, cost: int | None, usage: Usage | None, latency_s: float
    ) -> None:
        tokens = (usage.prompt, usage.completion) if usage else (None, None)
        self._db.execute(
            "UPDATE calls SET state = ?, fault = ?, cost = ?, prompt_tokens = ?, completion_tokens = ?, latency_s = ? "
            "WHERE id = ?",
            (state, fault, cost, *tokens, round(latency_s, 4), call),
        )
        most = self._open.pop(call)
        self._spent += most if cost is None else cost
        self._changed.notify_all()

    def totals(self, purpose: str | None = None) -> Totals:
        """What the run has come to so far, or one purpose of it."""
        with self._changed:
            rows = self._db.execute(
                "SELECT state, fault, key, ceiling, cost, prompt_tokens, completion_tokens FROM calls "
                "WHERE run = ? AND (? IS NULL OR purpose = ?)",
                (self.run, purpose, purpose),
            ).fetchall()
        faults = Counter(fault for _, fault, *_ in rows if fault)
        return Totals(
            calls=len(rows),
            retries=len(rows) - len({key for _, _, key, *_ in rows}),
            answered=sum(state == "answered" for state, *_ in rows),
            faults=dict(sorted(faults.items())),
            lost=sum(state == "lost" for state, *_ in rows),
            prompt_tokens=sum(prompt or 0 for *_, prompt, _ in rows),
            completion_tokens=sum(completion or 0 for *_, completion in rows),
            cost=sum(cost or 0 for *_, cost, _, _ in rows),
            uncertain=sum(ceiling or 0 for _, _, _, ceiling, cost, _, _ in rows if cost is None),
        )

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _open(path: Path) -> sqlite3.Connection:
    """The database, made if it is new; other processes are waited for."""
    db = sqlite3.connect(path, timeout=60.0, check_same_thread=False)
    try:
        # Whole after a kill at any point, and after a power cut but for its last seconds; waits for no disk.
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        with db:
            db.execute("BEGIN IMMEDIATE")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in _TABLES.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {_SCHEMA}")
    except sqlite3.DatabaseError as error:
        raise UserError(got=f"{path}: {error}", wanted="a ledger of API calls", fix="choose another --cache") from error
    if version not in (0, _SCHEMA):
        raise UserError(
            got=f"{path}: a ledger of version {version}", wanted=f"version {_SCHEMA}", fix="choose another --cache"
        )
    return db


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
