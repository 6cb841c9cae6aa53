"""Finds test questions that a model has seen: between splits, and between a few-shot prompt and the rows it is asked.

Called by `fulltune tasks NAME`; what it finds can be written as leaks.json for the report. Only questions are compared:
two different questions may well have the same answer.

    exact       the same question to the letter, white space at the ends aside
    normalised  the same words: compatibility forms folded (NFKC), case and punctuation ignored
    overlap     at least 70 % of the question's 8-grams of words occur somewhere in the other split

Words are lower-cased and without punctuation, as in the contamination check of GPT-3 (Brown et al. 2020, appendix C);
8-grams and 70 % are the rule of PaLM (Chowdhery et al. 2022, section 8), which unlike "any 13-gram" does not flag every
row of templated data. A question of fewer than 8 words has no 8-gram: for it only the two stricter kinds apply.
Scripts written without spaces (Han, kana) count each character as a word.
"""

from __future__ import annotations

import os.path
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tasks.base import SPLITS, Record, Task

GRAM = 8
SHARE = 0.7
PROMPT = "prompt"  # what the rows of a split are compared with besides other splits: the examples of their own prompt

Kind = Literal["exact", "normalised", "overlap"]
Hashes = npt.NDArray[np.uint64]

_SPACELESS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_WORD = re.compile(rf"[{_SPACELESS}]|[^\W_{_SPACELESS}]+")


@dataclass(frozen=True, slots=True)
class Leak:
    """A question that stands elsewhere as well.

    Attributes:
        id: of the record that leaks.
        kind: the strictest that applies.
        seen_in: the split it was found in, or "prompt".
        source: id of the record there that is (most) like it; None for the rules of a prompt.
        share: of its 8-grams that occur there; 1.0 for exact and normalised.
        same_answer: whether that record has the same reference.
    """

    id: str
    kind: Kind
    seen_in: str
    source: str | None
    share: float
    same_answer: bool

    @property
    def reason(self) -> str:
        """One sentence for leaks.json."""
        where = f"{self.source} ({self.seen_in})" if self.source else f"the {self.seen_in}"
        answer = "same answer" if self.same_answer else "another answer"
        if self.kind == "exact":
            return f"the same question as {where}, {answer}"
        if self.kind == "normalised":
            return f"the same words as the question of {where}, {answer}"
        return f"{self.share:.0%} of its {GRAM}-grams occur in {self.seen_in}, most of them in {where}"


@dataclass(frozen=True, slots=True)
class Overlap:
    """How much of one split stands in another.

    Attributes:
        split, seen_in: the two; `rows` is the number of rows of `split`.
        kinds: how many of them leak, by kind.
        answers: how many have a reference that is one of a row there as well: no leak, but good to know.
    """

    split: str
    seen_in: str
    rows: int
    kinds: Mapping[Kind, int]
    answers: int

    def as_json(self) -> dict[str, Any]:
        kinds = {str(kind): count for kind, count in self.kinds.items()}
        return {"split": self.split, "seen_in": self.seen_in, "rows": self.rows, **kinds, "answers": self.answers}


@dataclass(frozen=True, slots=True)
class LeakReport:
    """Every pair of splits that was compared, and the leaks found, in that order."""

    overlaps: tuple[Overlap, ...]
    leaks: tuple[Leak, ...]

    def reasons(self) -> dict[str, str]:
        """leaks.json: id -> reason. A record that leaks in several ways has the reasons in one line."""
        found: dict[str, str] = {}
        for leak in self.leaks:
            found[leak.id] = f"{found[leak.id]}; {leak.reason}" if leak.id in found else leak.reason
        return found


def find_leaks(
    task: Task, splits: Mapping[str, Sequence[Record]], shots: Mapping[str, Sequence[Record]] | None = None
) -> LeakReport:
    """Compare each split with the splits before it (train, valid, test), and valid and test with the prompt.

    Args:
        task: whose questions and prompts these are.
        splits: split -> its records.
        shots: split -> the worked examples that its rows are prompted with.

    Time and memory are linear in the words of all questions.
    """
    vocabulary: dict[str, int] = {}
    texts = {name: _Texts.of(task, splits[name], vocabulary) for name in SPLITS if name in splits}
    overlaps: list[Overlap] = []
    leaks: list[Leak] = []
    for name, asked in texts.items():
        earlier = list(texts)[: list(texts).index(name)]
        seen = [(other, texts[other]) for other in earlier]
        if name != "train":
            seen.append((PROMPT, _prompt_texts(task, splits[name], (shots or {}).get(name, ()), vocabulary)))
        for other, where in seen:
            found = list(_compared(asked, where, other))
            counts = Counter(leak.kind for leak in found)
            kinds: dict[Kind, int] = {kind: counts[kind] for kind in ("exact", "normalised", "overlap")}
            known = set(where.answers)
            same = sum(answer in known for answer in asked.answers)
            overlaps.append(Overlap(name, other, len(asked.ids), kinds, same))
            leaks += found
    return LeakReport(tuple(overlaps), tuple(leaks))


def seen_in_training(
    task: Task, asked: Sequence[Record], trained: Iterable[tuple[str, Task, Iterable[Record]]]
) -> dict[str, str]:
    """Records whose question a model was trained on: id -> reason, as in leaks.json.

    Args:
        task, asked: what a report asks.
        trained: (name, task, records) of everything trained on; another task's questions are those that it asks.
    """
    vocabulary: dict[str, int] = {}
    questions = _Texts.of(task, asked, vocabulary)
    leaks: list[Leak] = []
    for name, other, records in trained:
        leaks += _compared(questions, _Texts.of(other, records, vocabulary), name)
    return LeakReport((), tuple(leaks)).reasons()


def question_of(task: Task, record: Record) -> str:
    """What a model is asked, without special tokens; for plain text (`cpt`) all of it."""
    text = task.structured_prompt(record)
    if task.kind == "cpt":
        text = "".join(segment.text for segment in task.render(record))
    for token in task.special_tokens:
        text = text.replace(token, " ")
    return text.strip()


def words_of(text: str) -> list[str]:
    """The words of a text in their normal form; see the head of this module."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


@dataclass(frozen=True, slots=True)
class _Texts:
    """The questions of a split, ready to be compared.

    Attributes:
        ids: of the records; None where a text is no record (the rules of a prompt).
        questions, normal, answers: by row.
        grams: a hash of every 8-gram, (g,), in the order of the rows.
        rows: the row of every 8-gram, (g,).
    """

    ids: tuple[str | None, ...]
    questions: tuple[str, ...]
    normal: tuple[str, ...]
    answers: tuple[str, ...]
    grams: Hashes
    rows: npt.NDArray[np.int64]

    @classmethod
    def of(cls, task: Task, records: Iterable[Record], vocabulary: dict[str, int]) -> _Texts:
        rows = [(record.id, question_of(task, record), task.reference(record)) for record in records]
        return cls.made(rows, vocabulary)

    @classmethod
    def made(cls, rows: Sequence[tuple[str | None, str, str]], vocabulary: dict[str, int]) -> _Texts:
        normal, codes, lengths = [], [], []
        for _, question, _ in rows:
            words = words_of(question)
            normal.append(" ".join(words))
            codes.append(np.fromiter((vocabulary.setdefault(w, len(vocabulary)) for w in words), np.uint64, len(words)))
            lengths.append(len(words))
        grams, owners = _grams(codes, np.asarray(lengths, np.int64))
        ids, questions, answers = (tuple(column) for column in zip(*rows, strict=True)) if rows else ((), (), ())
        return cls(ids, questions, tuple(normal), answers, grams, owners)


def _grams(codes: Sequence[Hashes], lengths: npt.NDArray[np.int64]) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """Hashes of all 8-grams that lie within one text, (g,), and the text of each, (g,).

    A polynomial in mixed word codes, modulo 2^64: two of ten million different grams agree with a chance of 1 in 10^5.
    """
    owners = np.repeat(np.arange(len(lengths)), lengths)  # (words,)
    if len(owners) < GRAM:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    mixed = _mixed(np.concatenate(codes))  # (words,)
    size = len(mixed) - GRAM + 1
    hashes = np.zeros(size, np.uint64)
    for place in range(GRAM):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + mixed[place : place + size]
    whole = owners[:size] == owners[GRAM - 1 :]
    return hashes[whole], owners[:size][whole]


def _mixed(codes: Hashes) -> Hashes:
    """Small numbers spread over 64 bits: the finaliser of SplitMix64 (Steele et al. 2014)."""
    codes = (codes + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    codes = (codes ^ (codes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    codes = (codes ^ (codes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return codes ^ (codes >> np.uint64(31))


def _compared(asked: _Texts, seen: _Texts, seen_in: str) -> Iterator[Leak]:
    """The leaks of one split into another, in the order of its rows."""
    exact = {question: row for row, question in reversed(list(enumerate(seen.questions)))}
    normal = {words: row for row, words in reversed(list(enumerate(seen.normal)))}
    shares, nearest = _shares(asked, seen)
    for row, identity in enumerate(asked.ids):
        kind: Kind
        if asked.questions[row] in exact:
            kind, source = "exact", exact[asked.questions[row]]
        elif asked.normal[row] and asked.normal[row] in normal:
            kind, source = "normalised", normal[asked.normal[row]]
        elif shares[row] >= SHARE:
            kind, source = "overlap", nearest(row)
        else:
            continue
        share = float(shares[row]) if kind == "overlap" else 1.0
        same = asked.answers[row] == seen.answers[source]
        yield Leak(str(identity), kind, seen_in, seen.ids[source], share, same)


def _shares(asked: _Texts, seen: _Texts) -> tuple[npt.NDArray[np.float64], Callable[[int], int]]:
    """Share of every row's 8-grams that `seen` has, (n,), and a function row -> the row of `seen` most like it."""
    known, first = np.unique(seen.grams, return_index=True)  # (k,), (k,)
    places = np.searchsorted(known, asked.grams)  # (g,)
    places[places == len(known)] = 0
    hits = known[places] == asked.grams if len(known) else np.zeros(len(asked.grams), bool)  # (g,)
    totals = np.bincount(asked.rows, minlength=len(asked.ids))
    found = np.bincount(asked.rows[hits], minlength=len(asked.ids))
    starts = np.searchsorted(asked.rows, np.arange(len(asked.ids) + 1))

    def nearest(row: int) -> int:
        own = slice(starts[row], starts[row + 1])
        return int(np.bincount(seen.rows[first[places[own][hits[own]]]]).argmax())

    return found / np.maximum(totals, 1), nearest


def _prompt_texts(task: Task, asked: Sequence[Record], shots: Sequence[Record], vocabulary: dict[str, int]) -> _Texts:
    """The worked examples, and the rules of the prompt: what the prompts of two records begin with."""
    rows: list[tuple[str | None, str, str]] = [
        (shot.id, question_of(task, shot), task.reference(shot)) for shot in shots
    ]
    rules = [task.baseline_prompt(record, ()) for record in asked[:2]]
    if len(rules) == 2:
        rows.append((None, os.path.commonprefix(rules), ""))
    return _Texts.made(rows, vocabulary)
