"""Whose fault a rejected request is: the item's, or the configuration's.

Used by `baselines` while it asks many questions. Status 400 and 422 say that a request is wrong, in words that every
server chooses for itself; what tells the two apart is the other items. Once one is accepted, key, model and
parameters are right, and a rejection is about its own item. Where none is, the first few are turned away in the same
words, and the shortest prompt of all as well, they are about what all requests have in common.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from evaluation.chat import Chat, Reply, Unanswered

REJECTED = "rejected"
SUSPICIOUS_AFTER = 4  # rejections in the same words with nothing accepted; the shortest prompt then decides

# Of a rejection that is the item's own: too long for the model, as OpenAI, vLLM, llama.cpp and Gemini say it.
_TOO_LONG = re.compile(
    r"context[ _](?:length|size|window)|maximum number of tokens|too many tokens|"
    r"(?:prompt|input|string)[^.]{0,40}too long",
    re.IGNORECASE,
)

Outcome = Reply | Unanswered


@dataclass(slots=True)
class Rejections:
    """What the outcomes of one run say about its rejections; not for several threads.

    Attributes:
        accepted: the endpoint has taken a request of this run, perhaps in an earlier process.
        held: rejections, by question, that wait for an item to be accepted.
        undecided: some question came to neither an acceptance nor a rejection.
        proven: the configuration is at fault.
    """

    accepted: bool
    held: dict[str, Unanswered] = field(default_factory=dict)
    undecided: bool = False
    proven: bool = False
    _shortest: str | None = None

    @property
    def suspicious(self) -> bool:
        """Whether nothing speaks against a wrong configuration: ask one question at a time, the shortest first."""
        if self.accepted or len(self.held) < SUSPICIOUS_AFTER:
            return False
        return len({re.sub(r"\d+", "0", lost.message) for lost in self.held.values()}) == 1

    @property
    def message(self) -> str:
        """What the endpoint said first."""
        return next(iter(self.held.values())).message

    def choose(self, waiting: Mapping[str, Chat]) -> str:
        """The question to be asked next: the first one, or under suspicion the shortest."""
        if not self.suspicious:
            return next(iter(waiting))
        self._shortest = min(waiting, key=lambda key: len(waiting[key].prompt))
        return self._shortest

    def take(self, key: str, outcome: Outcome) -> dict[str, Outcome]:
        """Note the outcome of a question; returns the questions that are settled by it, itself perhaps among them."""
        if isinstance(outcome, Unanswered) and outcome.fault == REJECTED and not self.accepted:
            self.held[key] = outcome
            self.proven = self.suspicious and key == self._shortest
            return {}
        if isinstance(outcome, Reply) and _taken(outcome):
            self.accepted = True
            released: dict[str, Outcome] = {**self.release()}
            return released | {key: outcome}
        self.undecided = self.undecided or not self.accepted
        return {key: outcome}

    def release(self) -> dict[str, Unanswered]:
        """The rejections that waited."""
        held, self.held = self.held, {}
        return held


def too_long(rejected: Unanswered) -> bool:
    """Whether a rejection that is the item's own says that the prompt does not fit."""
    return _TOO_LONG.search(rejected.message) is not None


def _taken(reply: Reply) -> bool:
    """Whether the request got past the endpoint's checks: not so where a filter or a length was refused before that."""
    return reply.declined is None or reply.usage is not None or reply.finish_reason is not None
