"""What every task has to keep to, whatever its data: the rules behind `check_task`.

Called by tests: for the built-in tasks by one contract test, for anybody's own task by the test that `fulltune
new-task` writes. A rule looks at a task and some of its records and yields what is wrong, in words. What a task's
answers are worth is pinned elsewhere, in `tasks.versions`. Plain text (`kind="cpt"`) has no prompt and no answer, so
the rules about them pass over it; so do they over a record without a reference where a judge has a rubric instead.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from tasks.base import Completion, Record, Score, Task

__all__ = ["RULES", "ContractError", "check_task", "faults_of_score", "rules_for"]

Rule = Callable[[Task, Sequence[Record]], Iterator[str]]

SECONDS = 10  # of CPU for one answer, however hostile: a scorer that is not linear takes minutes for a megabyte
_SOME = 20
_MOST_FAULTS = 5  # of one rule: the same fault in every record is said often enough by then
_MEGABYTE = 1_000_000
_MOST_WHY = 2_000

HOSTILE = {
    "empty": "",
    "white space": " \n\t",
    "control characters": "".join(map(chr, range(32))) + "\x7f\x80\x9f",
    "lone surrogates": "\ud800 answer \udfff",
    "right to left": "\u202e\u05d0\u05d1\ufeff",
    "null": "\x00",
    "digits of other scripts": "\u0661\u0662\u00b2\u2460 #### \u0663",
    "huge number": "#### 1" + "0" * 10_000 + "e999999999",
    "percent and braces": "%s {0} {name} \\boxed{",
    "a million letters": "x" * _MEGABYTE,
    "a million brackets": "[" * _MEGABYTE,
    "a million parentheses": "(" * _MEGABYTE,
    "a million openings": "f(a[" * (_MEGABYTE // 4),
    "a million spaces": "a" + " " * _MEGABYTE + "b",
    "a million lines": "\n" * _MEGABYTE + "x",
    "a million digits": "1" * _MEGABYTE,
    "a million commas": "1," * (_MEGABYTE // 2),
    "a million quotes": "'" * _MEGABYTE,
    "a million numbers": "#### 7 " * (_MEGABYTE // 7),
}
_AROUND = ("{0}{0}", "Sure! {0}", "{0}\n\nHope this helps.", "```\n{0}\n```", "{0}\ud800")


class ContractError(AssertionError):
    """A task breaks its contract; the message lists every fault found."""


def check_task(task: Task, records: Sequence[Record]) -> None:
    """Hold a task to every rule, on these records.

    Raises:
        ContractError: some rule is broken, or there is no record to try the rules on.
    """
    faults = [fault for rule in rules_for(task) for fault in islice(rule(task, records), _MOST_FAULTS)]
    if not records:
        faults.append("no records to check it on")
    if faults:
        raise ContractError(f"task {task.name!r} breaks its contract:\n" + "\n".join(f"- {fault}" for fault in faults))


def faults_of_score(task: Task, score: Score) -> Iterator[str]:
    """What is wrong with the form of a verdict: metrics, category, and that it can be written to scores.jsonl."""
    if sorted(score.metrics) != sorted(task.metric_names):
        yield f"metrics {sorted(score.metrics)}, declared are {sorted(task.metric_names)}"
        return
    for name, value in score.metrics.items():
        kind = task.metric(name).kind
        if not math.isfinite(value) or (kind == "proportion" and value not in (0, 1)):
            yield f"{name} is {value}, and its kind is {kind!r}"
        elif kind == "fraction" and not 0 <= value <= 1:
            yield f"{name} is {value}, not between 0 and 1"
    if score.error is not None and score.error not in task.errors:
        yield f"error {score.error!r} is not among the declared {list(task.errors)}"
    if score.error in task.format_errors and score.metrics.get("format_violation") != 1:
        yield f"error {score.error!r} is one of form, but format_violation is not 1"
    if not 0 < len(score.why) < _MOST_WHY:
        yield f"why has {len(score.why)} characters; wanted one sentence"
    try:
        json.dumps([score.parsed, score.why], allow_nan=False, ensure_ascii=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        yield f"parsed or why cannot be written as JSON in UTF-8: {error}"


def declarations_agree(task: Task, _records: Sequence[Record]) -> Iterator[str]:
    """Names, metrics, errors, tokens and options fit together."""
    for what, missing in {
        "name": not task.name,
        "version": not task.version,
        "columns": not task.columns,
        "one-line description": not task.description or "\n" in task.description,
        "positive max_new_tokens": task.max_new_tokens <= 0,
        "metric format_violation": task.kind == "sft" and "format_violation" not in task.metric_names,
        "headline metric (or more than two)": not 1 <= sum(metric.headline for metric in task.metrics) <= 2,
        "meaning for every error": not all(task.errors.values()),
        "configure() for its options": bool(task.options) and task.configure is None,
        "special token that is the stop": bool(task.special_tokens) and task.stop not in task.special_tokens,
    }.items():
        if missing:
            yield f"no {what}"
    for what, names in {"metric": task.metric_names, "special token": task.special_tokens}.items():
        if len(set(names)) != len(names):
            yield f"a {what} twice: {names}"
    if unknown := set(task.format_errors) - set(task.errors):
        yield f"format errors {sorted(unknown)} are not among the errors"
    if task.options and task.configure and task.configure(**task.options).metric_names != task.metric_names:
        yield f"configure(**{dict(task.options)}) gives other metrics"


def published_rows_are_sourced(task: Task, _records: Sequence[Record]) -> Iterator[str]:
    """Numbers of others name a metric of the task, and where they are from."""
    for row in task.published:
        if row.metric not in task.metric_names:
            yield f"published row of {row.model!r}: no metric {row.metric!r}"
        elif not (row.model and row.setting and row.source):
            yield f"published row without model, setting or source: {row}"
        elif isinstance(row.value, float) and task.metric(row.metric).kind != "mean" and not 0 <= row.value <= 1:
            yield f"published row of {row.model!r}: {row.value} is no share"


def the_reference_is_right(task: Task, records: Sequence[Record]) -> Iterator[str]:
    """The gold answer gets the best value of every metric that can be good or bad."""
    for record in records:
        if task.rubric is not None and not task.reference(record):
            continue
        score = task.score(record, Completion(task.reference(record), "stop"))
        yield from _at(record, "the reference", faults_of_score(task, score))
        if score.error is not None:
            yield f"{record.id}: the reference is scored {score.error}: {score.why}"
        for metric in task.metrics:
            best = None if metric.higher_is_better is None else float(metric.higher_is_better)
            if metric.kind != "mean" and best is not None and score.metrics.get(metric.name) != best:
                yield f"{record.id}: the reference has {metric.name} {score.metrics.get(metric.name)}, not {best}"


def hostile_answers_are_scored(task: Task, records: Sequence[Record]) -> Iterator[str]:
    """No answer makes the scorer raise or hang, and its verdict has the right form."""
    for record in records[:1]:
        for case, text in HOSTILE.items():
            for finish_reason in (None, "length"):
                yield from _tried(task, record, Completion(text, finish_reason), case)


def changed_answers_are_scored(task: Task, records: Sequence[Record]) -> Iterator[str]:
    """So is the reference with prose around it, in a fence, twice, or cut off at any place."""
    for record in records[:_SOME]:
        for around in _AROUND:
            yield from _tried(task, record, Completion(around.format(task.reference(record))), repr(around))
    for record in records[:1]:
        text = task.reference(record)
        for end in range(len(text)):
            yield from _tried(task, record, Completion(text[:end], "length"), f"cut off after {end} characters")


def an_empty_answer_breaks_the_form(task: Task, records: Sequence[Record]) -> Iterator[str]:
    """Nothing at all is a format violation."""
    for record in records[:1]:
        score = task.score(record, Completion(""))
        if score.error not in task.format_errors or score.metrics.get("format_violation") != 1:
            yield f"an empty answer is scored {score.error}, which is no error of form"


def special_tokens_are_absent_from_the_data(task: Task, records: Sequence[Record]) -> Iterator[str]:
    """A record cannot hold a token that marks where questions and answers begin and end."""
    for record in records:
        text = " ".join(str(record[column]) for column in task.columns)
        if found := [token for token in task.special_tokens if token in text]:
            yield f"{record.id} holds the special token {found[0]}"


def training_text_supervises_the_answer(task: Task, records: Sequence[Record]) -> Iterator[str]:
    """The question carries no loss; the answer and the stop token do."""
    for record in records:
        segments = task.render(record)
        supervised = "".join(segment.text for segment in segments if segment.loss)
        if not supervised or not supervised.endswith(task.stop):
            yield f"{record.id}: the supervised text {supervised[-40:]!r} does not end in the stop {task.stop!r}"
        if task.decode_text(task.encode_text(supervised)) != supervised:
            yield f"{record.id}: decode_text does not undo encode_text"
        whole = "".join(segment.text for segment in segments)
        if task.kind == "sft" and (segments[0].loss or task.structured_prompt(record) + supervised != whole):
            yield f"{record.id}: wanted the prompt without loss, then the answer with loss, and nothing after it"


def the_prompt_does_not_give_the_answer_away(task: Task, records: Sequence[Record]) -> Iterator[str]:
    """The baseline prompt holds the references of its examples and not the record's own, and no special token."""
    shots = records[:3]
    answers = {task.reference(shot) for shot in shots}
    for record in [record for record in records if task.reference(record) not in (*answers, "")][:_SOME]:
        prompt = rest = task.baseline_prompt(record, shots)
        for shot in shots:
            if task.reference(shot) not in prompt:
                yield f"{record.id}: the prompt lacks the answer of its example {shot.id}"
            rest = rest.replace(task.reference(shot), "")
        if len(task.reference(record)) > 8 and task.reference(record) in rest:  # "yes" may well stand in a rule
            yield f"{record.id}: its answer stands in its own prompt"
        if found := [token for token in task.special_tokens if token in prompt]:
            yield f"{record.id}: the prompt holds the special token {found[0]}"
        if prompt != task.baseline_prompt(record, shots) or len(task.baseline_prompt(record, ())) >= len(prompt):
            yield f"{record.id}: the prompt is not the same twice, or not longer with examples than without"


_ANSWER_RULES: tuple[Rule, ...] = (
    the_reference_is_right,
    hostile_answers_are_scored,
    changed_answers_are_scored,
    an_empty_answer_breaks_the_form,
    the_prompt_does_not_give_the_answer_away,
)
RULES: tuple[Rule, ...] = (
    declarations_agree,
    published_rows_are_sourced,
    special_tokens_are_absent_from_the_data,
    training_text_supervises_the_answer,
    *_ANSWER_RULES,
)


def rules_for(task: Task) -> tuple[Rule, ...]:
    """The rules that apply to a task of this kind."""
    return tuple(rule for rule in RULES if task.kind == "sft" or rule not in _ANSWER_RULES)


def _tried(task: Task, record: Record, completion: Completion, case: str) -> Iterator[str]:
    start = time.process_time()
    try:
        score = task.score(record, completion)
    except Exception as error:  # the rule is that there is none
        yield f"{record.id}: the scorer raised on an answer ({case}): {error!r}"
        return
    took_s = time.process_time() - start
    if took_s > SECONDS:
        yield f"{record.id}: the scorer took {took_s:.0f} s for an answer ({case})"
    yield from _at(record, f"an answer ({case})", faults_of_score(task, score))


def _at(record: Record, what: str, faults: Iterator[str]) -> Iterator[str]:
    return (f"{record.id}, {what}: {fault}" for fault in faults)
