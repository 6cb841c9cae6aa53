"""What every registered task has to keep to, whatever its data: a new task is tested by being in the registry."""

from __future__ import annotations

import json
import math
import time
from functools import cache

import pytest

import tasks
from tasks.base import SPLITS, Completion, Metric, Record, Score, Task
from tasks.sources import load

NAMES = tasks.names()
MEGABYTE = 1_000_000
WEIRD = {
    "empty": "",
    "white space": " \n\t",
    "control characters": "".join(map(chr, range(32))) + "\x7f\x80\x9f",
    "lone surrogates": "\ud800 answer \udfff",
    "right to left": "\u202e\u05d0\u05d1\ufeff",
    "null": "\x00",
    "digits of other scripts": "\u0661\u0662\u00b2\u2460 #### \u0663",
    "huge number": "#### 1" + "0" * 10_000 + "e999999999",
    "percent and braces": "%s {0} {name} \\boxed{",
    "a million letters": "x" * MEGABYTE,
    "a million brackets": "[" * MEGABYTE,
    "a million parentheses": "(" * MEGABYTE,
    "a million openings": "f(a[" * (MEGABYTE // 4),
    "a million spaces": "a" + " " * MEGABYTE + "b",
    "a million lines": "\n" * MEGABYTE + "x",
    "a million digits": "1" * MEGABYTE,
    "a million commas": "1," * (MEGABYTE // 2),
    "a million quotes": "'" * MEGABYTE,
    "a million numbers": "#### 7 " * (MEGABYTE // 7),
}


@cache
def sample(name: str) -> tuple[Task, tuple[Record, ...]]:
    """A task and records of it; a task without bundled data has a test of its own with records."""
    task = tasks.get(name)
    if task.generate is None:
        pytest.skip(f"task {name} has no bundled data")
    return task, tuple(record for split in SPLITS for record in load(task, split, "bundled", limit=200))


def check_score(task: Task, score: Score) -> None:
    assert tuple(sorted(score.metrics)) == tuple(sorted(task.metric_names))
    for name, value in score.metrics.items():
        assert math.isfinite(value), name
        if task.metric(name).kind == "proportion":
            assert value in (0, 1), name
        elif task.metric(name).kind == "fraction":
            assert 0 <= value <= 1, name
    assert score.error is None or score.error in task.errors
    if score.error in task.format_errors:
        assert score.metrics["format_violation"] == 1
    json.dumps(score.parsed, allow_nan=False, ensure_ascii=False).encode("utf-8")
    score.why.encode("utf-8")
    assert score.why
    assert len(score.why) < 2000


@pytest.mark.parametrize("name", NAMES)
def test_declarations(name: str) -> None:
    task = tasks.get(name)
    assert task.name == name
    assert task.version
    assert task.description
    assert "\n" not in task.description
    assert task.columns
    assert task.max_new_tokens > 0
    assert len(set(task.metric_names)) == len(task.metrics)
    assert "format_violation" in task.metric_names
    assert 1 <= sum(metric.headline for metric in task.metrics) <= 2
    assert set(task.format_errors) <= set(task.errors)
    assert all(meaning for meaning in task.errors.values())
    assert len(set(task.special_tokens)) == len(task.special_tokens)
    if task.special_tokens:
        assert task.stop in task.special_tokens
    if task.options:
        assert task.configure is not None
        assert tasks.get(name, **task.options).metric_names == task.metric_names


@pytest.mark.parametrize("name", NAMES)
def test_published_rows_name_metrics_of_the_task_and_a_source(name: str) -> None:
    task = tasks.get(name)
    for row in task.published:
        assert isinstance(task.metric(row.metric), Metric)
        assert row.source
        assert row.model
        assert row.setting
        if isinstance(row.value, float):
            assert 0 <= row.value <= 1


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_is_right(name: str) -> None:
    task, records = sample(name)
    for record in records:
        score = task.score(record, Completion(task.reference(record), "stop"))
        check_score(task, score)
        assert score.error is None, (record, score)
        for metric in task.metrics:
            if metric.higher_is_better is not None and metric.kind != "mean":
                assert score.metrics[metric.name] == float(metric.higher_is_better), (metric.name, record)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", WEIRD)
@pytest.mark.parametrize("finish_reason", [None, "length"])
def test_no_answer_makes_the_scorer_fail_or_hang(name: str, case: str, finish_reason: str | None) -> None:
    task, records = sample(name)
    start = time.process_time()
    check_score(task, task.score(records[0], Completion(WEIRD[case], finish_reason)))
    assert time.process_time() - start < 10


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("around", ["{}{}", "Sure! {}", "{}\n\nHope this helps.", "```\n{}\n```", "{}\ud800"])
def test_answers_in_prose_are_scored(name: str, around: str) -> None:
    task, records = sample(name)
    for record in records[:20]:
        text = task.reference(record)
        check_score(task, task.score(record, Completion(around.format(text, text))))


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_cut_anywhere_is_scored(name: str) -> None:
    task, records = sample(name)
    text = task.reference(records[0])
    for end in range(len(text)):
        check_score(task, task.score(records[0], Completion(text[:end], "length")))


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_answer_breaks_the_format(name: str) -> None:
    task, records = sample(name)
    score = task.score(records[0], Completion(""))
    assert score.error in task.format_errors
    assert score.metrics["format_violation"] == 1


@pytest.mark.parametrize("name", NAMES)
def test_special_tokens_are_absent_from_the_data(name: str) -> None:
    task, _ = sample(name)
    for split in SPLITS:
        for record in load(task, split, "bundled"):
            text = " ".join(str(record[column]) for column in task.columns)
            assert not [token for token in task.special_tokens if token in text], record


@pytest.mark.parametrize("name", NAMES)
def test_training_text_supervises_the_answer_and_the_stop_token(name: str) -> None:
    task, records = sample(name)
    for record in records:
        segments = task.render(record)
        supervised = "".join(segment.text for segment in segments if segment.loss)
        assert supervised
        assert supervised.endswith(task.stop)
        assert task.decode_text(task.encode_text(supervised)) == supervised
        if task.kind == "sft":
            assert segments[0].loss is False
            assert task.structured_prompt(record) + supervised == "".join(segment.text for segment in segments)


@pytest.mark.parametrize("name", NAMES)
def test_baseline_prompt_does_not_give_the_answer_away(name: str) -> None:
    task, records = sample(name)
    shots = records[:3]
    for record in records[10:30]:
        prompt = rest = task.baseline_prompt(record, shots)
        for shot in shots:
            assert task.reference(shot) in prompt
            rest = rest.replace(task.reference(shot), "")
        assert task.reference(record) not in rest
        assert not [token for token in task.special_tokens if token in prompt]
        assert prompt == task.baseline_prompt(record, shots)
        assert len(task.baseline_prompt(record, [])) < len(prompt)
