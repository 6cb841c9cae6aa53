from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tasks
from evaluation.compare import compare, headline_metric, measure, role_of
from evaluation.comparison import Comparison, Entry, LeakCheck, best
from evaluation.power import detectable_proportion
from evaluation.predictions import Prediction, read_predictions, write_predictions
from evaluation.score import score_file
from tasks.base import Record, Task, UserError

Build = Callable[..., Entry]


def _measure(
    entries: list[Entry],
    task: Task,
    records: list[Record],
    limit: int | None = None,
    leaks: dict[str, str] | None = None,
) -> Comparison:
    none: dict[str, Any] = dict.fromkeys(("source", "split", "spec"))
    empty: dict[str, Any] = {"title": "t", "loss_curve": (), "provenance": {}}
    return measure(entries, task=task, records=records, limit=limit, leaks=leaks, processes=1, **none, **empty)


@pytest.fixture
def three(entry: Build, many: list[Record]) -> list[Entry]:
    """On 120 records: base wrong on 90, tuned on 30 (all among base's), gpt-4 on 60."""
    return [
        entry("base", many, set(range(90)), shots=4, prompt="natural"),
        entry("gpt-4", many, set(range(60, 120)), seconds=3.5),
        entry("tuned", many, set(range(30)), prompt="structured"),
    ]


def test_results_json_has_every_figure(three: list[Entry], fake_task: Task, many: list[Record], tmp_path: Path) -> None:
    returned = compare(
        three,
        task=fake_task,
        records=many,
        out=tmp_path / "out",
        title="A title",
        loss_curve=[{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}],
        provenance={"git_sha": "abc"},
        source="bundled",
        split="test",
    )
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results == json.loads(json.dumps(returned))
    assert {name: type(value).__name__ for name, value in results.items()} == {
        **dict.fromkeys(("title", "headline", "task", "task_version", "source", "split", "subject", "base"), "str"),
        **dict.fromkeys(("metrics", "models", "published", "paired", "worst", "loss_curve", "items"), "list"),
        **{"schema": "int", "n": "int", "limit": "NoneType", "headline_metric": "str", "provenance": "dict"},
        **dict.fromkeys(("series", "economy", "leaks"), "dict"),
    }
    assert (results["n"], results["subject"], results["base"]) == (120, "tuned", "base")
    model = results["models"][2]
    assert set(model) == {
        *("label", "role", "note", "details", "task", "task_version", "n", "metrics", "missing", "duplicates"),
        *("errors", "unknown", "truncated", "tokens", "usage", "warnings"),
    }
    assert model["metrics"]["correct"]["mean"] == 0.75
    assert model["tokens"] == {"answers": 120, "completion": 480, "prompt": None, "per_answer": 4.0}
    item = results["items"][0]
    assert item["id"] == "backwards-test-0"
    assert item["models"]["tuned"]["error"] == "wrong"
    assert item["models"]["gpt-4"]["metrics"]["correct"] == 1.0
    assert len(results["items"]) == 120
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    plots = {"plots/metrics.png", "plots/errors.png", "plots/loss.png"}
    assert written == {"results.json", "report.html", "report.md"} | plots


def test_every_two_models_are_tested_on_every_metric_with_a_direction(
    three: list[Entry], fake_task: Task, many: list[Record]
) -> None:
    found = _measure(three, fake_task, many)
    assert {(p.metric, p.a, p.b) for p in found.pairs} == {
        (metric, a, b)
        for metric in ("correct", "shared", "format_violation")
        for a, b in (("base", "gpt-4"), ("base", "tuned"), ("gpt-4", "tuned"))
    }
    pair = found.pair("correct", "tuned", "base")
    assert pair is not None
    assert (pair.result.only_a, pair.result.only_b, pair.result.test) == (0, 60, "mcnemar_exact")
    assert pair.comparisons == 3
    assert pair.p_holm == pytest.approx(3 * 2 / 2**60)
    assert {p.result.test for p in found.pairs if p.metric == "shared"} == {"paired_bootstrap"}
    assert (pair.detectable.n, pair.detectable.discordant) == (120, 0.5)
    assert pair.detectable.difference == detectable_proportion(120, 0.5).difference


def test_only_items_that_both_models_have_are_paired(
    entry: Build, fake_task: Task, many: list[Record], tmp_path: Path
) -> None:
    given = [entry("base", many, set()), entry("tuned", many, set(), says="")]
    rows = list(read_predictions(given[1].predictions).by_id.values())
    write_predictions(given[1].predictions, [Prediction(row.id, "") for row in rows])
    found = _measure(given, fake_task, many)
    assert found.models[1].scores.metrics["politeness"].n == 0
    assert all(pair.result.n == 120 for pair in found.pairs)


def test_the_worst_twenty_are_wrong_and_shown_with_every_models_answer(
    three: list[Entry], fake_task: Task, many: list[Record]
) -> None:
    found = _measure(three, fake_task, many).worst
    assert len(found) == 20
    assert {example.outputs[0].error for example in found} == {"wrong"}
    assert all(example.outputs[0].label == "tuned" for example in found)
    assert all(any(output.error is None for output in example.outputs[1:]) for example in found)
    assert found[0].input == "w000"
    assert (found[0].gold, found[0].outputs[0].text) == ("000w", "nonsense")


def test_of_the_worst_those_that_are_further_off_come_first(entry: Build, fake_task: Task, many: list[Record]) -> None:
    given = entry("tuned", many[:5], {1, 2, 4}, says="w")  # has one letter of the gold word right
    rows = list(read_predictions(given.predictions).by_id.values())
    rows[2] = Prediction(rows[2].id, "zzz")
    write_predictions(given.predictions, rows)
    found = _measure([given], fake_task, many[:5]).worst
    assert [example.id for example in found] == [many[i].id for i in (2, 1, 4)]


def test_of_equally_bad_examples_those_that_another_model_got_come_first(
    entry: Build, fake_task: Task, many: list[Record]
) -> None:
    found = _measure([entry("base", many[:5], {0, 2}), entry("tuned", many[:5], {0, 1, 2, 3})], fake_task, many[:5])
    assert [example.id for example in found.worst] == [many[i].id for i in (1, 3, 0, 2)]


def test_a_faultless_model_has_no_worst_examples(entry: Build, fake_task: Task, many: list[Record]) -> None:
    assert _measure([entry("tuned", many, set())], fake_task, many).worst == ()


def test_limit_keeps_the_first_records_everywhere(three: list[Entry], fake_task: Task, many: list[Record]) -> None:
    found = _measure(three, fake_task, many, limit=40)
    assert (found.n, found.limit) == (40, 40)
    assert [model.scores.n for model in found.models] == [40, 40, 40]
    assert all(model.scores.warnings == () for model in found.models)
    assert found.models[1].usage.seconds_per_answer == pytest.approx(3.5 / 120), "the time is that of all answers"
    assert _measure(three, fake_task, many, limit=500).limit is None


def test_a_scored_folder_gives_the_figures_of_its_predictions(
    three: list[Entry], fake_task: Task, many: list[Record], tmp_path: Path
) -> None:
    score_file(fake_task, many, three[2].predictions, out=tmp_path / "scored")
    found = _measure([three[0], Entry("tuned", tmp_path / "scored")], fake_task, many)
    from_text = _measure([three[0], three[2]], fake_task, many)
    assert found.models[1].scores.metrics == from_text.models[1].scores.metrics
    assert [p.p_holm for p in found.pairs] == [p.p_holm for p in from_text.pairs]
    assert found.worst[0].outputs[0].text is None
    assert found.worst[0].outputs[0].why == from_text.worst[0].outputs[0].why


def test_a_scored_folder_with_holes_says_so(
    three: list[Entry], fake_task: Task, many: list[Record], tmp_path: Path
) -> None:
    score_file(fake_task, many, three[2].predictions, out=tmp_path / "scored", limit=100)
    found = _measure([Entry("tuned", tmp_path / "scored")], fake_task, many).models[0].scores
    assert (found.n, found.missing, found.errors["empty"]) == (120, 20, 20)
    assert "20 of 120 records have no score" in found.warnings[0]
    with pytest.raises(UserError, match="references"):
        _measure([Entry("tuned", tmp_path / "scored")], fake_task, [Record("other", {"word": "a"})])


def test_scores_of_another_task_are_refused(fake_task: Task, many: list[Record], tmp_path: Path) -> None:
    (tmp_path / "scores.jsonl").write_text(json.dumps({"id": many[0].id, "metrics": {"strange": 1.0}}) + "\n")
    with pytest.raises(UserError, match="'strange'"):
        _measure([Entry("tuned", tmp_path)], fake_task, many)


@pytest.mark.parametrize(
    ("label", "details", "role"),
    [
        ("tuned", {}, "tuned"),
        ("Llama-7B fine-tuned v2", {}, "tuned"),
        ("llama/base, 4 shots", {"prompt": "natural"}, "base"),
        ("base", {"prompt": "structured"}, "base"),
        ("database", {}, "other"),
        ("stage2", {"prompt": "structured"}, "tuned"),
        ("gpt-4", {"prompt": "natural"}, "other"),
        ("anything", {"role": "base"}, "base"),
        ("tuned", {"role": "other"}, "other"),
    ],
)
def test_roles(label: str, details: dict[str, str], role: str) -> None:
    assert role_of(Entry(label, Path("x"), details=details)) == role


def test_the_base_is_taken_at_its_best_setting(entry: Build, fake_task: Task, many: list[Record]) -> None:
    rows = [entry(f"base-{k}", many, set(range(100 - k))) for k in (0, 40, 8)]
    found = _measure([*rows, entry("tuned", many, set()), entry("gpt-4", many, set(range(10)))], fake_task, many)
    assert found.base is not None
    assert (found.subject.label, found.base.label) == ("tuned", "base-40")


def test_a_tie_on_the_headline_metric_leaves_the_base_that_is_better_on_the_rest(
    entry: Build, fake_task: Task, many: list[Record]
) -> None:
    """No base row gets anything right; the later one has the form, the earlier one has not."""
    zero = entry("base-0shot", many, set(range(120)), says="LOUD", role="base")
    four = entry("base-4shot", many, set(range(120)), says="w0", role="base")
    also = entry("base-8shot", many, set(range(120)), says="w0", role="base")
    found = _measure([zero, four, also, entry("tuned", many, set())], fake_task, many)
    assert found.base is not None
    assert found.base.label == "base-4shot", "the earlier one where nothing tells them apart"
    rows = {model.label: model for model in found.models}
    more = [fake_task.metric("correct"), replace(fake_task.metric("letters"), headline=True)]
    assert best([rows["base-8shot"], rows["base-0shot"]], more[0], more) is rows["base-0shot"], "headlines come first"
    assert best([rows["base-8shot"], rows["base-0shot"]], more[0]) is rows["base-8shot"]


def test_of_several_tuned_rows_the_last_is_the_subject(entry: Build, fake_task: Task, many: list[Record]) -> None:
    rows = [entry(label, many, set()) for label in ("tuned stage 1", "tuned stage 2", "gpt-4")]
    assert _measure(rows, fake_task, many).subject.label == "tuned stage 2"
    assert _measure(rows[2:], fake_task, many).subject.label == "gpt-4"


def test_the_headline_metric_is_the_marked_one(fake_task: Task) -> None:
    assert headline_metric(fake_task).name == "correct"
    assert headline_metric(tasks.get("viggo")).headline


def test_no_entries_and_repeated_labels_are_refused(three: list[Entry], fake_task: Task, many: list[Record]) -> None:
    with pytest.raises(UserError, match="nothing to compare"):
        _measure([], fake_task, many)
    with pytest.raises(UserError, match="'base' twice"):
        _measure([three[0], three[0]], fake_task, many)


def test_flagged_records_are_left_out_of_the_clean_figures(
    three: list[Entry], fake_task: Task, many: list[Record]
) -> None:
    leaks = {many[0].id: "in train", many[119].id: "in train", "of another split": "in train"}
    found = _measure(three, fake_task, many, leaks=leaks)
    assert set(found.leaks) == {many[0].id, many[119].id}
    rows = {row.label: (row.every.mean, row.clean.mean, row.clean.n) for row in found.clean}
    assert rows["tuned"] == (0.75, pytest.approx(89 / 118), 118)
    assert rows["base"] == (0.25, pytest.approx(29 / 118), 118)
    assert _measure(three, fake_task, many).clean == ()


@pytest.mark.parametrize(
    ("leaks", "checked", "said"),
    [
        ({}, None, "Whether these 120 records were seen in training was not checked."),
        (
            {},
            LeakCheck(("train of a (9 rows)",)),
            "Whether these 120 records were seen in training was checked against train of a (9 rows): none of them is "
            "flagged.",
        ),
        (
            {},
            LeakCheck((), ("train, a stream",)),
            "Whether these 120 records were seen in training was not checked (not looked through: train, a stream).",
        ),
        (
            {"backwards-test-0": "seen"},
            LeakCheck(("train (9 rows)",), ("more, a stream",)),
            "1 record of 120 is flagged: seen in training, or too like it. The table has the headline metric with and "
            "without them. All were checked against train (9 rows) (not looked through: more, a stream).",
        ),
    ],
)
def test_what_was_looked_through_for_leaks_is_said(
    entry: Build,
    fake_task: Task,
    many: list[Record],
    tmp_path: Path,
    leaks: dict[str, str],
    checked: LeakCheck | None,
    said: str,
) -> None:
    rows = [entry("tuned", many, set())]
    results = compare(rows, task=fake_task, records=many, out=tmp_path / "out", leaks=leaks, checked=checked)
    assert results["leaks"]["against"] == list(checked.against if checked else ())
    assert said in (tmp_path / "out" / "report.html").read_text()
    assert said in (tmp_path / "out" / "report.md").read_text().replace("\\", "")


def test_every_record_has_a_place_in_the_order_the_faultless_ones_last(
    three: list[Entry], fake_task: Task, many: list[Record]
) -> None:
    found = _measure(three, fake_task, many)
    assert sorted(found.order) == list(range(120))
    assert set(found.order[:30]) == set(range(30))
    assert (found.inputs[7], found.golds[7]) == ("w007", "700w")
