"""predictions.jsonl: what models wrote, one line per record, in one schema for every model.

`predict` writes it (our model, a base model with shots, GPT-4 alike), anything else may; `score` and `compare` read
it. Stands between generation and scoring, so that everything after generation needs files only.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from evaluation import jsonl
from tasks.base import Completion, UserError

log = logging.getLogger(__name__)


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
    """How a set of predictions meets the references: counts for the report and `warnings` in words."""

    missing: int
    unknown: int
    truncated: int
    warnings: tuple[str, ...]


def read_predictions(path: Path) -> Predictions:
    """Read predictions.jsonl; of lines with the same id the last one wins, and a warning says how many.

    Raises:
        UserError: the file is missing or a line is not a prediction; the message names file and line.
    """
    by_id: dict[str, Prediction] = {}
    duplicates = 0
    for number, row in jsonl.read_objects(path):
        prediction = _prediction(row, where=f"{path}, line {number}")
        duplicates += prediction.id in by_id
        by_id[prediction.id] = prediction
    if duplicates:
        log.warning("%s: %d lines repeat an id; the last one counts", path, duplicates)
    return Predictions(name=str(path), by_id=by_id, duplicates=duplicates)


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write predictions.jsonl, whole or not at all."""
    with jsonl.atomic(path) as file:
        for prediction in predictions:
            file.write(prediction.as_line() + "\n")


def match(predictions: Predictions, scored: Collection[str], known: Collection[str], task_version: str) -> Matched:
    """Compare the ids and versions of predictions with those of the references.

    Args:
        predictions: of one model.
        scored: ids of the records that are scored (within `--limit`).
        known: ids of all records of the references; beyond `scored` they are neither missing nor unknown.
        task_version: of the task that scores.

    Raises:
        UserError: no prediction belongs to any reference.
    """
    by_id = predictions.by_id
    unknown = [name for name in by_id if name not in known]
    if len(unknown) == len(by_id):
        raise _no_match(predictions, known)
    missing = sum(name not in by_id for name in scored)
    versions = [p.task_version for p in by_id.values() if p.task_version not in (None, task_version)]
    warnings = []
    if predictions.duplicates:
        warnings.append(f"{predictions.duplicates} lines repeat an id; the last one counts")
    if missing:
        warnings.append(f"{missing} of {len(scored)} records have no prediction; they count as empty answers")
    if unknown:
        warnings.append(f"{len(unknown)} predictions have ids that are not in the references, e.g. {unknown[0]!r}")
    if versions:
        warnings.append(
            f"{len(versions)} predictions were made for task version {', '.join(sorted({str(v) for v in versions}))}; "
            f"they are scored by version {task_version}"
        )
    truncated = sum(by_id[name].as_completion().truncated for name in scored if name in by_id)
    return Matched(missing=missing, unknown=len(unknown), truncated=truncated, warnings=tuple(warnings))


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


def _prediction(row: dict[str, Any], *, where: str) -> Prediction:
    for name in ("id", "completion"):
        if not isinstance(row.get(name), str):
            raise _wrong(where, name, row.get(name, "nothing"), 'a string ("completion": "" for an empty answer)')
    for name in _TEXTS:
        if not isinstance(row.get(name), str | None):
            raise _wrong(where, name, row[name], "a string or null")
    for name in _COUNTS:
        value = row.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise _wrong(where, name, value, "a whole number or null")
    known = {name: row[name] for name in _KNOWN if name in row}
    return Prediction(**known, extra={name: value for name, value in row.items() if name not in _KNOWN})


def _wrong(where: str, name: str, value: Any, wanted: str) -> UserError:
    shown = value if value == "nothing" else repr(value)[:80]
    return UserError(got=f"{where}: {name!r} is {shown}", wanted=f"{name!r}: {wanted}", fix="mend or delete the line")
