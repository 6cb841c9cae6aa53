"""The contract of a task: every registered task keeps it, on bundled rows and on the answers of its fixture; and every
rule notices a task that does not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import tasks
from tasks import contract
from tasks.base import SPLITS, Completion, Published, Record, Score, Segment, Task, UserError
from tasks.contract import ContractError, Rule, check_task, rules_for
from tasks.sources import load
from tasks.versions import Fixture, check_answer, check_version, fingerprint, pin, read_fixture

NAMES = tasks.names()
FIXTURES = Path(__file__).parents[1] / "fixtures" / "tasks"
TEMPLATE = Path(tasks.__file__).parent / "template"


@cache
def sample(name: str) -> tuple[Task, tuple[Record, ...]]:
    """A task and records of it; a task without bundled data is checked on the rows of its fixture."""
    task = tasks.get(name)
    if task.generate is None:
        return task, fixture(name).records
    return task, tuple(record for split in SPLITS for record in load(task, split, "bundled", limit=80))


@cache
def fixture(name: str) -> Fixture:
    return read_fixture(tasks.get(name), FIXTURES / f"{name}.json")


@pytest.mark.parametrize(("name", "rule"), [(name, rule) for name in NAMES for rule in rules_for(tasks.get(name))])
def test_a_task_keeps_the_rule(name: str, rule: Rule) -> None:
    task, records = sample(name)
    assert task.name == name
    assert list(rule(task, records)) == []


@pytest.mark.parametrize("name", NAMES)
def test_special_tokens_are_absent_from_all_bundled_rows(name: str) -> None:
    task = tasks.get(name)
    for split in SPLITS if task.generate else ():
        assert list(contract.special_tokens_are_absent_from_the_data(task, load(task, split, "bundled"))) == []


@pytest.mark.parametrize("name", NAMES)
def test_answers_of_the_fixture_are_judged_as_expected(name: str) -> None:
    for answer in fixture(name).answers:
        check_answer(tasks.get(name), answer)


@pytest.mark.parametrize("name", NAMES)
def test_every_error_has_an_answer(name: str) -> None:
    assert {answer.error for answer in fixture(name).answers} == {*tasks.get(name).errors, None}


@pytest.mark.parametrize("name", NAMES)
def test_prompt_and_scorer_change_only_with_the_version(name: str) -> None:
    check_version(tasks.get(name), fixture(name))


# --- the rules themselves: each is broken on purpose

TASK = tasks.get(f"{TEMPLATE / 'my_task.py'}:TASK")
FIXTURE = read_fixture(TASK, TEMPLATE / "my_task.json")
ROWS = tuple(load(TASK, "test", "bundled"))


def rendered(*segments: Segment) -> Task:
    return replace(TASK, render=lambda record: segments)


def scored(**changes: object) -> Task:
    def score(record: Record, completion: Completion) -> Score:
        return replace(TASK.score(record, completion), **changes)  # type: ignore[arg-type]

    return replace(TASK, score=score)


def raising(record: Record, completion: Completion) -> Score:
    if "[" in completion.text:
        raise ZeroDivisionError("a bug in a scorer")
    return TASK.score(record, completion)


def tells(record: Record, shots: Sequence[Record]) -> str:
    return TASK.baseline_prompt(record, shots) + TASK.reference(record)


RATE = Published("m", "s", "facts", 0.5, "a paper")
BROKEN: dict[str, tuple[Task, str]] = {
    "no version": (replace(TASK, version=""), "no version"),
    "two lines": (replace(TASK, description="a\nb"), "no one-line description"),
    "no violation": (replace(TASK, metrics=TASK.metrics[:3]), "no metric format_violation"),
    "metric twice": (replace(TASK, metrics=(*TASK.metrics, TASK.metrics[0])), "a metric twice"),
    "unknown format error": (replace(TASK, format_errors=frozenset({"odd"})), "['odd'] are not among the errors"),
    "stop is no token": (replace(TASK, stop="\n"), "no special token that is the stop"),
    "options": (replace(TASK, options={"size": 1}), "no configure()"),
    "published metric": (replace(TASK, published=(replace(RATE, metric="odd"),)), "no metric 'odd'"),
    "published source": (replace(TASK, published=(replace(RATE, source=""),)), "without model, setting or source"),
    "published share": (replace(TASK, published=(replace(RATE, value=58.0),)), "58.0 is no share"),
    "reference": (replace(TASK, reference=lambda record: "item=a"), "the reference is scored missing_key"),
    "metric missing": (scored(metrics={"facts": 1.0}), "metrics ['facts'], declared are"),
    "half": (scored(metrics={**dict.fromkeys(TASK.metric_names, 1.0), "facts": 0.5}), "facts is 0.5"),
    "category": (scored(error="odd"), "error 'odd' is not among the declared"),
    "why": (scored(why=""), "why has 0 characters"),
    "not JSON": (scored(parsed={1, 2}), "cannot be written as JSON"),
    "surrogate": (scored(parsed="\ud800"), "cannot be written as JSON"),
    "raises": (replace(TASK, score=raising), "the scorer raised"),
    "empty is fine": (replace(TASK, format_errors=frozenset({"not_pairs"})), "an empty answer is scored empty"),
    "token in the data": (replace(TASK, special_tokens=(*TASK.special_tokens, "Please")), "the special token Please"),
    "no loss": (rendered(Segment("a<END_A>", loss=False)), "does not end in the stop"),
    "no stop": (rendered(Segment("a", loss=False), Segment("b", loss=True)), "does not end in the stop"),
    "tail": (rendered(Segment("<END_A>", loss=True), Segment("b", loss=False)), "nothing after it"),
    "codec": (replace(TASK, encode_text=str.upper), "does not undo"),
    "tells": (replace(TASK, baseline_prompt=tells), "its answer stands in its own prompt"),
    "no examples": (replace(TASK, baseline_prompt=lambda record, shots: "Go."), "the prompt lacks the answer"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_task_is_noticed(case: str) -> None:
    task, fault = BROKEN[case]
    with pytest.raises(ContractError, match="breaks its contract") as error:
        check_task(task, ROWS)
    assert fault in str(error.value)


def test_a_scorer_that_hangs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "SECONDS", 0)
    assert any("the scorer took" in fault for fault in contract.hostile_answers_are_scored(TASK, ROWS))


def test_a_check_without_records_is_no_check() -> None:
    with pytest.raises(ContractError, match="no records"):
        check_task(TASK, [])


# --- versions


def test_the_template_keeps_the_contract_and_is_pinned() -> None:
    check_task(TASK, ROWS)
    check_version(TASK, FIXTURE)


CHANGES = {
    "prompt": replace(TASK, baseline_prompt=lambda record, shots: TASK.baseline_prompt(record, shots) + " "),
    "rendering": rendered(Segment("a", loss=False), Segment("b<END_A>", loss=True)),
    "verdict": scored(parsed="other"),
    "metric": replace(TASK, metrics=(replace(TASK.metrics[0], kind="fraction"), *TASK.metrics[1:])),
    "length": replace(TASK, max_new_tokens=49),
    "stop of the prompt": replace(TASK, baseline_stop=("\n\n",)),
    "codec": replace(TASK, encode_text=str.lower),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_without_a_new_version_is_noticed(what: str) -> None:
    with pytest.raises(ContractError, match=r"changed under version 1.*Raise `version`"):
        check_version(CHANGES[what], FIXTURE)
    with pytest.raises(ContractError, match=r"version 2 .* is not pinned"):
        check_version(replace(CHANGES[what], version="2"), FIXTURE)


@pytest.mark.parametrize("change", [{"prompt": lambda completion: completion.text}, {"score": lambda *_: 1.0}])
def test_the_extractor_is_part_of_a_version(change: dict[str, Any]) -> None:
    gsm8k = tasks.get("gsm8k")
    assert gsm8k.extraction is not None
    with pytest.raises(ContractError, match="changed under version 1"):
        check_version(replace(gsm8k, extraction=replace(gsm8k.extraction, **change)), fixture("gsm8k"))


def test_wording_may_improve() -> None:
    check_version(replace(scored(why="put better"), name="other", description="other"), FIXTURE)


def test_pinned_options_count() -> None:
    def configure(end: str = ".") -> Task:
        return replace(TASK, baseline_prompt=lambda record, shots: TASK.baseline_prompt(record, shots) + end)

    task = replace(TASK, options={"end": "."}, configure=configure)
    both = replace(FIXTURE, options=({"end": "!"},))
    assert fingerprint(task, both) != fingerprint(task, FIXTURE) == fingerprint(TASK, FIXTURE)


@pytest.fixture
def fixture_file(tmp_path: Path) -> Path:
    path = tmp_path / "my_task.json"
    path.write_text((TEMPLATE / "my_task.json").read_text(encoding="utf-8"), encoding="utf-8")
    return path


def test_pinning_adds_a_version_and_keeps_the_rest_of_the_file(fixture_file: Path) -> None:
    before = fixture_file.read_text()
    assert pin(TASK, fixture_file) == FIXTURE.versions["1"]
    assert fixture_file.read_text() == before
    newer = replace(CHANGES["prompt"], version="2")
    pin(newer, fixture_file)
    check_version(newer, read_fixture(newer, fixture_file))
    check_version(TASK, read_fixture(TASK, fixture_file))
    assert fixture_file.read_text().startswith(before.rpartition('"versions"')[0])


def test_a_pinned_version_is_not_pinned_as_something_else(fixture_file: Path) -> None:
    before = fixture_file.read_text()
    with pytest.raises(UserError, match="pins as something else"):
        pin(CHANGES["prompt"], fixture_file)
    assert fixture_file.read_text() == before


@pytest.mark.parametrize("change", [{"rows": []}, {"answers": [{"row": 0}]}, {"versions": None}, {"rows": 3}])
def test_a_fixture_in_another_form_is_a_user_error(fixture_file: Path, change: dict[str, object]) -> None:
    fixture_file.write_text(json.dumps({**json.loads(fixture_file.read_text()), **change}))
    with pytest.raises(UserError, match=r"fixture .*my_task\.json"):
        read_fixture(TASK, fixture_file)


def test_a_missing_fixture_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no_such"):
        read_fixture(TASK, tmp_path / "no_such.json")
