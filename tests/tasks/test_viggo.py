"""The ViGGO task: training text and prompt pinned with the task's version, one golden case per error, the grammar."""

from __future__ import annotations

import collections
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.base import Completion, Record
from tasks.sources import load
from tasks.viggo import ERRORS, FORMAT_ERRORS, TASK
from tasks.viggo_form import ATTRIBUTES, FUNCTIONS, Representation, parse

RECORD = Record(
    "viggo-test-0",
    {
        "mr": "inform(name[Rust: O'Dell (Part 2)], release_year[2011], esrb[E 10+ (for Everyone 10 and Older)], "
        "rating[good], genres[puzzle, racing], platforms[PC, Xbox], has_mac_release[no])",
        "ref": "Rated E 10+ and out for Xbox and PC since 2011, Rust: O'Dell (Part 2) is a fine racing puzzle game "
        "that does not run on a Mac.",
    },
)
SHOT = Record("viggo-train-0", {"mr": "request_attribute(developer[])", "ref": "Do you care who makes a game?"})
GOLD = TASK.reference(RECORD)
RIGHT = {metric: float(metric != "format_violation") for metric in TASK.metric_names}
WRONG = {metric: float(metric == "format_violation") for metric in TASK.metric_names}

# completion, finish_reason, error, what differs from an answer that is right (from the second part: wrong) everywhere
READABLE: dict[str, tuple[str, str | None, str | None, dict[str, float]]] = {
    "gold": (GOLD, "stop", None, {}),
    "gold in white space": (f"\n {GOLD}\t", None, None, {}),
    "gold at the token limit": (GOLD, "length", None, {}),
    "spaces": (GOLD.replace(", rat", " ,rat").replace("[2011]", " [ 2011 ]"), None, None, {"exact": 0}),
    "case and list order": (GOLD.replace("PC, Xbox", "xbox,pc").replace("good", "GOOD"), None, None, {"exact": 0}),
    "E10+": (GOLD.replace("E 10+", "E10+"), None, None, {"exact": 0}),
    "wrong_value": (GOLD.replace("good", "poor"), None, "wrong_value", {"values": 0, "exact": 0}),
    "empty value": (GOLD.replace("mac_release[no]", "mac_release[]"), None, "wrong_value", {"values": 0, "exact": 0}),
    "wrong_value that is not in the sentence": (
        GOLD.replace("2011", "2012"),
        None,
        "wrong_value",
        {"values": 0, "exact": 0, "grounded": 6 / 7},
    ),
    "wrong item of a list": (
        GOLD.replace("PC, Xbox", "PC, Atari"),
        None,
        "wrong_value",
        {"values": 0, "exact": 0, "grounded": 6 / 7},
    ),
    "wrong_order": (
        GOLD.replace("release_year[2011], ", "").replace(", platforms", ", release_year[2011], platforms"),
        None,
        "wrong_order",
        {"attributes_ordered": 0, "exact": 0, "format_violation": 1},
    ),
    "missing_attribute": (
        GOLD.replace(", rating[good]", ""),
        None,
        "missing_attribute",
        {"attributes": 0, "attributes_ordered": 0, "values": 0, "exact": 0},
    ),
    "no attribute at all": (
        "inform()",
        None,
        "missing_attribute",
        {"attributes": 0, "attributes_ordered": 0, "values": 0, "exact": 0},
    ),
    "missing_attribute and out of order": (
        "inform(rating[good], name[Rust])",
        None,
        "missing_attribute",
        {"attributes": 0, "attributes_ordered": 0, "values": 0, "exact": 0, "format_violation": 1},
    ),
    "extra_attribute": (
        GOLD.replace(", has_mac", ", has_linux_release[no], has_mac"),
        None,
        "extra_attribute",
        {"attributes": 0, "attributes_ordered": 0, "values": 0, "exact": 0},
    ),
    "attribute written twice": (
        GOLD.replace("rating[good]", "rating[good], rating[good]"),
        None,
        "extra_attribute",
        {"attributes": 0, "attributes_ordered": 0, "values": 0, "exact": 0},
    ),
    "wrong_function": (
        GOLD.replace("inform", "confirm"),
        None,
        "wrong_function",
        {"function": 0, "attributes": 0, "attributes_ordered": 0, "values": 0, "exact": 0},
    ),
    "unknown_function": (
        GOLD.replace("inform", "Inform"),
        None,
        "unknown_function",
        {"function": 0, "attributes": 0, "attributes_ordered": 0, "values": 0, "exact": 0, "format_violation": 1},
    ),
    "unknown_attribute": (
        GOLD.replace("genres", "genre"),
        None,
        "unknown_attribute",
        {"attributes": 0, "attributes_ordered": 0, "values": 0, "exact": 0, "format_violation": 1, "grounded": 5 / 6},
    ),
}
UNREADABLE: dict[str, tuple[str, str | None, str]] = {
    "empty": ("", "stop", "empty"),
    "white space": (" \n\t ", None, "empty"),
    "empty at the token limit": ("", "length", "empty"),
    "truncated in a value": (GOLD[:60], "length", "truncated"),
    "truncated before the end": (GOLD[:-1], "length", "truncated"),
    "cut off without a reason": (GOLD[:-1], "stop", "not_a_function"),
    "prose before": (f"The representation is {GOLD}", None, "not_a_function"),
    "prose after": (f"{GOLD}\nI hope this helps!", None, "not_a_function"),
    "full stop": (f"{GOLD}.", None, "not_a_function"),
    "code fence": (f"```\n{GOLD}\n```", None, "not_a_function"),
    "two functions": (f"{GOLD} {GOLD}", None, "not_a_function"),
    "round brackets": ("inform(name(Rust))", None, "not_a_function"),
    "comma at the end": ("inform(name[Rust],)", None, "not_a_function"),
    "prose": ("I do not know.", None, "not_a_function"),
    "stop token": (f"{GOLD}<END_A>", None, "not_a_function"),
}


@pytest.mark.parametrize("case", READABLE)
def test_readable_answer(case: str) -> None:
    text, finish_reason, error, differs = READABLE[case]
    score = TASK.score(RECORD, Completion(text, finish_reason))
    assert dict(score.metrics) == pytest.approx({**RIGHT, **differs})
    assert score.error == error
    assert score.parsed["function"] == text.strip().split("(")[0]


@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_answer(case: str) -> None:
    text, finish_reason, error = UNREADABLE[case]
    score = TASK.score(RECORD, Completion(text, finish_reason))
    assert (score.metrics, score.error, score.parsed) == (WRONG, error, None)


def test_every_error_has_a_case() -> None:
    shown = {error for _, _, error, _ in READABLE.values()} | {error for _, _, error in UNREADABLE.values()}
    assert shown == {*ERRORS, None}


def test_format_violation_covers_the_format_errors() -> None:
    for text, finish_reason, error, differs in READABLE.values():
        if error in FORMAT_ERRORS:
            assert differs.get("format_violation") == 1, (text, finish_reason)


WHY = {
    "gold": "function, attributes, order and values are right",
    "wrong_value": "rating is 'poor', the reference has 'good'",
    "wrong_order": "the attributes come in the order "
    "name, esrb, rating, genres, release_year, platforms, has_mac_release",
    "missing_attribute": "rating is missing",
    "extra_attribute": "has_linux_release is in excess of the reference",
    "wrong_function": "the function is confirm, the reference has inform",
    "unknown_function": "Inform is not one of the nine functions",
    "unknown_attribute": "genre is not one of the fourteen attributes",
}


@pytest.mark.parametrize("case", WHY)
def test_why(case: str) -> None:
    text, finish_reason, _, _ = READABLE[case]
    assert TASK.score(RECORD, Completion(text, finish_reason)).why == WHY[case]


def test_why_of_an_unreadable_answer_shows_the_place() -> None:
    why = TASK.score(RECORD, Completion("inform(name[A], rating(good))")).why
    assert why.startswith("not one function(attribute[value], ...): expected '[' after the attribute rating")
    assert "at character 22: 'form(name[A], rating>>>(good))'" in why


def test_shuffled_attributes_are_right_without_and_wrong_with_order() -> None:
    gold = parse(GOLD)
    shuffled = Representation(gold.function, gold.slots[::-1])
    metrics = TASK.score(RECORD, Completion(str(shuffled))).metrics
    assert (metrics["attributes"], metrics["attributes_ordered"]) == (1.0, 0.0)


def test_a_reference_that_cannot_be_read_is_not_accepted_and_scores_without_raising() -> None:
    record = Record("x", {"mr": "no function", "ref": "A game."})
    assert not TASK.accepts or not TASK.accepts(record)
    assert TASK.score(record, Completion("inform(name[A])")).error == "wrong_function"
    assert TASK.score(record, Completion("")).error == "empty"


# --- golden texts


def _render_marked(record: Record) -> str:
    return "".join(f"{{{{{s.text}}}}}" if s.loss else s.text for s in TASK.render(record))


GOLDEN_TEXTS: dict[str, Callable[[], str]] = {
    "viggo_render.txt": lambda: _render_marked(RECORD),
    "viggo_prompt.txt": lambda: TASK.baseline_prompt(RECORD, []),
    "viggo_prompt_1_shot.txt": lambda: TASK.baseline_prompt(RECORD, [SHOT]),
}


@pytest.mark.parametrize("name", GOLDEN_TEXTS)
def test_text_is_the_golden_text(golden: Callable[[str, str], None], name: str) -> None:
    golden(name, GOLDEN_TEXTS[name]() + "\n")


def test_structured_prompt_ends_where_the_answer_begins() -> None:
    first, second = TASK.render(RECORD)
    assert TASK.structured_prompt(RECORD) == first.text == f"<START_Q>{RECORD['ref']}<END_Q><START_A>"
    assert second.text == GOLD + TASK.stop


def test_baseline_prompt_has_every_ingredient() -> None:
    prompt = TASK.baseline_prompt(RECORD, [SHOT])
    assert all(function in prompt for function in FUNCTIONS)
    assert ", ".join(ATTRIBUTES) in prompt
    assert f"Sentence: {SHOT['ref']}\nRepresentation: {SHOT['mr']}\n\n" in prompt
    assert prompt.endswith(f"Sentence: {RECORD['ref']}\nRepresentation:")
    assert GOLD not in prompt


# --- the real corpus


@pytest.mark.real_data
@pytest.mark.parametrize(("split", "count"), [("train", 5103), ("valid", 714), ("test", 1083)])
def test_gold_scores_perfectly_on_the_real_corpus(
    real_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], split: str, count: int
) -> None:
    monkeypatch.setenv("FULLTUNE_DATA", str(real_data))
    records = load(TASK, split, "hub")
    assert len(records) == count
    scores = [TASK.score(record, Completion(TASK.reference(record))) for record in records]
    totals: collections.Counter[str] = collections.Counter()
    for score in scores:
        assert score.error is None
        totals.update(score.metrics)
    share = totals.pop("grounded") / count
    assert totals == {**{name: count for name in totals}, "format_violation": 0}
    with capsys.disabled():
        print(f"\nviggo {split}: the gold answers are grounded to {share:.4f}")
    assert 0.95 < share <= 1.0  # the rest says "RPG" for role-playing, "sim" for simulation and the like
