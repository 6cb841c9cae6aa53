"""predictions.jsonl: what models wrote, one line per record, in one schema for every model.

`predict` writes it (our model, a base model with shots, GPT-4 alike), anything else may; `score` and `compare` read
it. Stands between generation and scoring, so that everything after generation needs files only.

A file is read whole (`read_predictions`), or as an index from id to place (`indexed_predictions`), which for a hundred
thousand answers takes a tenth of the memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any

from evaluation import jsonl
from tasks.base import Completion, UserError


@dataclass(frozen=True, slots=True)
class Prediction:
    """One line of predictions.jsonl. `completion` excludes the stop token; `extra` holds keys beyond the contract."""

    id: str
    completion: str
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    task_version: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def as_completion(self) -> Completion:
        return Completion(text=self.completion, finish_reason=self.finish_reason)

    def as_line(self) -> str:
        """The JSON line, without its line feed; keys that say nothing are left out."""
        known = {name: getattr(self, name) for name in _KNOWN}
        return jsonl.dump({name: value for name, value in known.items() if value is not None} | dict(self.extra))


_KNOWN = tuple(f.name for f in fields(Prediction) if f.name != "extra")
_TEXTS = ("model", "finish_reason", "task_version")
_COUNTS = ("prompt_tokens", "completion_tokens")


@dataclass(frozen=True, slots=True)
class Predictions:
    """The predictions of one model.

    Attributes:
        name: what messages call it (the path it came from).
        by_id: the last prediction for every id.
        duplicates: number of lines that a later line with the same id replaced.
    """

    name: str
    by_id: Mapping[str, Prediction]
    duplicates: int = 0


@dataclass(frozen=True, slots=True)
class Matched:
    """How predictions met the references: counts for the report and `warnings` in words.

    Attributes:
        scored: records that are scored.
        missing: scored records without a prediction.
        unknown: predictions that belong to no record of the references, scored or not.
        truncated: scored predictions that were cut off by the token limit.
    """

    scored: int
    missing: int
    unknown: int
    truncated: int
    warnings: tuple[str, ...]


def read_predictions(path: Path) -> Predictions:
    """Read predictions.jsonl; of lines with the same id the last one wins, and `duplicates` says how many did not.

    Raises:
        UserError: the file is missing or a line is not a prediction; the message names file and line.
    """
    by_id: dict[str, Prediction] = {}
    duplicates = 0
    name = str(path)
    for number, row in jsonl.read_objects(path):
        _check(row, where=f"{name}, line {number}")
        prediction = _prediction(row)
        duplicates += prediction.id in by_id
        by_id[prediction.id] = prediction
    return _counted(path, by_id, duplicates)


@contextmanager
def indexed_predictions(path: Path) -> Iterator[Predictions]:
    """`read_predictions`, but every line is checked and then left in the file, to be read again when it is asked for.

    The file must not change meanwhile. Quick when predictions are asked for in about the order of the file.
    """
    offsets: dict[str, int] = {}
    duplicates = 0
    name = str(path)
    for number, offset, row in jsonl.read_objects_at(path):
        _check(row, where=f"{name}, line {number}")
        duplicates += row["id"] in offsets
        offsets[row["id"]] = offset
    with path.open("rb") as file:
        yield _counted(path, _Indexed(path, file, offsets), duplicates)


def _counted(path: Path, by_id: Mapping[str, Prediction], duplicates: int) -> Predictions:
    return Predictions(name=str(path), by_id=by_id, duplicates=duplicates)


class _Indexed(Mapping[str, Prediction]):
    """Predictions by id, of which only the places in the file are in memory."""

    def __init__(self, path: Path, file: IO[bytes], offsets: dict[str, int]) -> None:
        self._where, self._file, self._offsets = f"{path}, read again", file, offsets

    def __getitem__(self, name: str) -> Prediction:
        self._file.seek(self._offsets[name])
        return _prediction(jsonl.parse_object(self._file.readline(), where=self._where))

    def __contains__(self, name: object) -> bool:
        return name in self._offsets

    def __iter__(self) -> Iterator[str]:
        return iter(self._offsets)

    def __len__(self) -> int:
        return len(self._offsets)


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write predictions.jsonl, whole or not at all."""
    with jsonl.atomic(path) as file:
        for prediction in predictions:
            file.write(prediction.as_line() + "\n")


class Matching:
    """Hands out the completions of one model record by record, and counts how they meet the references.

    Args:
        predictions: of one model.
        task_version: of the task that scores.
    """

    def __init__(self, predictions: Predictions, task_version: str) -> None:
        self._predictions, self._version = predictions, task_version
        self._known: set[str] = set()
        self._scored = self._missing = self._found = self._truncated = 0
        self._versions: Counter[str] = Counter()

    def completion(self, record_id: str) -> Completion:
        """The completion of a record that is scored; an empty one if there is no prediction."""
        self._scored += 1
        if not self.know(record_id):
            self._missing += 1
            return _EMPTY
        prediction = self._predictions.by_id[record_id]
        if prediction.task_version not in (None, self._version):
            self._versions[str(prediction.task_version)] += 1
        completion = prediction.as_completion()
        self._truncated += completion.truncated
        return completion

    def know(self, record_id: str) -> bool:
        """Count a record of the references, scored or not; returns whether it has a prediction.

        Raises:
            UserError: the id came before.
        """
        if record_id in self._known:
            raise UserError(f"references hold the id {record_id!r} twice", "unique ids", "rename one row")
        self._known.add(record_id)
        found = record_id in self._predictions.by_id
        self._found += found
        return found

    def result(self) -> Matched:
        """Counts and warnings, once all records have been counted.

        Raises:
            UserError: there was no record, or no prediction belongs to any.
        """
        if not self._scored:
            raise UserError("no references", "at least one record", "check --references and --split")
        if not self._found:
            raise _no_match(self._predictions, self._known)
        unknown = len(self._predictions.by_id) - self._found
        return Matched(self._scored, self._missing, unknown, self._truncated, tuple(self._warnings(unknown)))

    def _warnings(self, unknown: int) -> Iterator[str]:
        if self._predictions.duplicates:
            yield f"{self._predictions.duplicates} lines repeat an id; the last one counts"
        if self._missing:
            yield f"{self._missing} of {self._scored} records have no prediction; they count as empty answers"
        if unknown:
            stranger = next(name for name in self._predictions.by_id if name not in self._known)
            yield f"{unknown} predictions have ids that are not in the references, e.g. {stranger!r}"
        if self._versions:
            yield (
                f"{self._versions.total()} predictions were made for task version {', '.join(sorted(self._versions))}; "
                f"they are scored by version {self._version}"
            )


_EMPTY = Completion(text="")


def _no_match(predictions: Predictions, known: Collection[str]) -> UserError:
    if not predictions.by_id:
        return UserError(
            got=f"{predictions.name}: no predictions",
            wanted="one line per record, with its id and completion",
            fix='run `fulltune predict` first; write "completion": "" for an answer that is empty',
        )
    return UserError(
        got=f"{predictions.name}: none of {len(predictions.by_id)} ids is in the references, "
        f"e.g. {_sample(predictions.by_id)}",
        wanted=f"ids of the references, e.g. {_sample(known)}",
        fix="pass the --references and --split that the predictions were made for "
        "(a row without id is called <task>-<split>-<index>)",
    )


def _sample(ids: Collection[str]) -> str:
    return ", ".join(repr(name) for name, _ in zip(ids, range(3), strict=False))


def _prediction(row: dict[str, Any]) -> Prediction:
    """The prediction in a row that `_check` has passed."""
    known = {name: row[name] for name in _KNOWN if name in row}
    return Prediction(**known, extra={name: value for name, value in row.items() if name not in _KNOWN})


def _check(row: dict[str, Any], *, where: str) -> None:
    """Raises UserError unless the row is a prediction."""
    for name in ("id", "completion"):
        if not isinstance(row.get(name), str):
            hint = ' ("completion": "" for an empty answer)' if name == "completion" else ""
            raise _wrong(where, name, row.get(name, "nothing"), f"a string{hint}")
    for name in _TEXTS:
        if row.get(name) is not None and not isinstance(row[name], str):
            raise _wrong(where, name, row[name], "a string or null")
    for name in _COUNTS:
        value = row.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise _wrong(where, name, value, "a whole number or null")


def _wrong(where: str, name: str, value: Any, wanted: str) -> UserError:
    shown = value if value == "nothing" else repr(value)[:80]
    return UserError(got=f"{where}: {name!r} is {shown}", wanted=f"{name!r}: {wanted}", fix="mend or delete the line")
