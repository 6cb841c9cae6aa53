"""Pins what a task's numbers depend on, so that a changed prompt, training text or scorer raises its version.

A fixture is a small JSON file beside a task: rows of it, answers with the verdict that is expected of each, and one
fingerprint per version. Tests read it (`check_answer`, `check_version`); `fulltune tasks TASK --pin FIXTURE` adds the
fingerprint of a new version. The texts of `why` are no part of a fingerprint: their wording may improve at any time.

    {"rows": [{...}], "answers": [{"row": 0, "text": "...", "finish_reason": "length", "error": "truncated"}],
     "options": [{"calculator": false}], "versions": {"1": "5c1f..."}}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.base import Completion, Extraction, Record, Score, Task, UserError
from tasks.contract import ContractError, faults_of_score

__all__ = ["Answer", "Fixture", "check_answer", "check_version", "fingerprint", "pin", "read_fixture"]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer and the error category that it has to be given; None where it is right."""

    record: Record
    completion: Completion
    error: str | None


@dataclass(frozen=True, slots=True)
class Fixture:
    """The content of a fixture file.

    Attributes:
        path: where it stands.
        records: its rows; ids are `<task>-fixture-<index>`.
        answers: with their expected verdicts.
        options: settings of the task that are pinned besides its defaults.
        versions: version -> fingerprint.
    """

    path: Path
    records: tuple[Record, ...]
    answers: tuple[Answer, ...]
    options: tuple[Mapping[str, Any], ...]
    versions: Mapping[str, str]


def read_fixture(task: Task, path: Path) -> Fixture:
    """The fixture of a task.

    Raises:
        UserError: no such file, or not in the form shown at the head of this module.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [Record(f"{task.name}-fixture-{i}", dict(row)) for i, row in enumerate(content["rows"])]
        answers = [
            Answer(rows[answer["row"]], Completion(answer["text"], answer.get("finish_reason")), answer["error"])
            for answer in content["answers"]
        ]
        options, versions = content.get("options", []), content["versions"]
        return Fixture(path, tuple(rows), tuple(answers), tuple(map(dict, options)), dict(versions))
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(
            got=f"fixture {path}: {type(error).__name__}: {error}",
            wanted='{"rows": [...], "answers": [{"row": 0, "text": "...", "error": null}], "versions": {}}',
            fix="correct the file; `fulltune new-task NAME` writes one to look at",
        ) from error


def check_answer(task: Task, answer: Answer) -> None:
    """Raises ContractError unless the answer is judged as expected."""
    score = task.score(answer.record, answer.completion)
    faults = list(faults_of_score(task, score))
    if score.error != answer.error:
        faults.append(f"scored {score.error!r} ({score.why}), expected {answer.error!r}")
    if faults:
        raise ContractError(f"{answer.completion.text[:200]!r}: " + "; ".join(faults))


def check_version(task: Task, fixture: Fixture) -> None:
    """Raises ContractError unless the task is what its version was pinned as."""
    now, pinned = fingerprint(task, fixture), fixture.versions.get(task.version)
    if pinned == now:
        return
    command = f"`fulltune tasks TASK --pin {fixture.path}`, with TASK as it is written in a recipe"
    if pinned is None:
        raise ContractError(f"version {task.version} of task {task.name!r} is not pinned; pin it with {command}")
    raise ContractError(
        f"prompt, training text, scorer or fixture of task {task.name!r} changed under version {task.version}: its "
        f"numbers can no longer be compared. Raise `version` in the task file, then pin it with {command}. If only the "
        f"fixture grew, or nobody has used this version yet: delete its line from the fixture and pin it again"
    )


def pin(task: Task, path: Path) -> str:
    """Add the fingerprint of the task's version to a fixture file, and return it.

    Raises:
        UserError: the version is pinned already, as something else.
    """
    fixture = read_fixture(task, path)
    now, pinned = fingerprint(task, fixture), fixture.versions.get(task.version)
    if pinned not in (None, now):
        raise UserError(
            got=f"task {task.name} version {task.version}, which {path} pins as something else",
            wanted="a new version for a changed prompt, training text or scorer",
            fix="raise `version` in the task file; if only the fixture grew, delete this version's line from it first",
        )
    text = path.read_text(encoding="utf-8")
    if pinned is None:
        path.write_text(_with_version(text, fixture, task.version, now), encoding="utf-8")
    return now


def _with_version(text: str, fixture: Fixture, version: str, now: str) -> str:
    """The file with one more version; its other lines stay as a person laid them out."""
    lines = ",\n".join(f"  {json.dumps(v)}: {json.dumps(f)}" for v, f in {**fixture.versions, version: now}.items())
    head, _, tail = text.rpartition('"versions"')
    return f'{head}"versions": {{\n{lines}\n }}{tail[tail.index("}") + 1 :]}'


def fingerprint(task: Task, fixture: Fixture) -> str:
    """A hash of everything that decides a number: settings, training text, prompts, and verdicts on fixed answers."""
    variants = [task, *(task.configure(**options) for options in fixture.options if task.configure is not None)]
    content = [_pinned(variant, fixture) for variant in variants]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _pinned(task: Task, fixture: Fixture) -> dict[str, Any]:
    texts = [
        {
            "training": [[task.encode_text(segment.text), segment.loss] for segment in task.render(record)],
            "reference": task.reference(record),
            "prompts": [task.baseline_prompt(record, _others(fixture, record)[:shots]) for shots in (0, 1, 2)],
            "rubric": task.rubric and task.rubric.prompt(record, Completion(task.reference(record))),
        }
        for record in fixture.records[:_TEXTS]
    ]
    asked = [(answer.record, answer.completion) for answer in fixture.answers]
    asked += [(record, Completion(text)) for record in fixture.records[:_TEXTS] for text in _probes(task, record)]
    content = {
        "settings": [task.kind, task.special_tokens, task.stop, task.baseline_stop, task.max_new_tokens],
        "metrics": [[metric.name, metric.kind, metric.higher_is_better] for metric in task.metrics],
        "errors": [list(task.errors), sorted(task.format_errors)],
        "rubric": task.rubric and [task.rubric.version, list(task.rubric.grades)],
        "texts": texts,
        "verdicts": [_verdict(task.score(record, completion)) for record, completion in asked],
    }
    if task.extraction is not None:
        content["extraction"] = _extraction(task, task.extraction, fixture.records[:_TEXTS])
    return content


def _extraction(task: Task, extraction: Extraction, records: Sequence[Record]) -> list[Any]:
    """What the extractor is asked, and how replies made from the references are judged."""
    return [
        extraction.version,
        extraction.max_new_tokens,
        [extraction.prompt(Completion(task.reference(record))) for record in records],
        [extraction.score(record, reply) for record in records for reply in ("NONE", "?", *_probes(task, record))],
    ]


_TEXTS = 8  # records whose texts are pinned: all but a few show the same code at work again


def _probes(task: Task, record: Record) -> Iterator[str]:
    """Answers made from the reference, right and wrong and malformed, so that a short fixture pins a scorer as well."""
    text = task.reference(record)
    yield from (text, f" {text}\n", text.upper(), text.lower(), text[: len(text) // 2], f"{text}\n{text}")
    yield from (f"Sure! {text}", f"```\n{text}\n```", f"{text}\n\nHope this helps.", " ".join(reversed(text.split())))
    yield text.translate(str.maketrans("0123456789", "1234567890"))


def _others(fixture: Fixture, record: Record) -> list[Record]:
    return [other for other in fixture.records if other is not record]


def _verdict(score: Score) -> list[Any]:
    return [{name: round(float(value), 9) for name, value in score.metrics.items()}, score.parsed, score.error]
