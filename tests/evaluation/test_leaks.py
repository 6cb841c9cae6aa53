from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import tasks
from evaluation.leaks import GRAM, LeakReport, find_leaks, question_of, seen_in_training, words_of
from tasks.base import Record, Segment, Task
from tasks.sources import load

SENTENCE = "the quick brown fox jumps over the lazy dog while nine sleepy cats look on from a warm wall"


def render(record: Record) -> list[Segment]:
    return [Segment(f"<Q>{record['word']}<A>", loss=False), Segment(record["answer"], loss=True)]


def prompt(record: Record, shots: Sequence[Record]) -> str:
    return "\n".join([f"Rules. {SENTENCE[:60]}.", *(s["word"] for s in shots), f"Q: {record['word']}"])


@pytest.fixture
def task(fake_task: Task) -> Task:
    return replace(fake_task, render=render, reference=lambda record: str(record["answer"]), baseline_prompt=prompt)


def rows(split: str, *texts: str, answer: str = "yes") -> list[Record]:
    return [Record(f"t-{split}-{i}", {"word": text, "answer": answer}) for i, text in enumerate(texts)]


def kinds(report: LeakReport) -> dict[str, tuple[str, str | None]]:
    return {leak.id: (leak.kind, leak.source) for leak in report.leaks}


def test_the_three_kinds_the_strictest_first(task: Task) -> None:
    words = SENTENCE.split()
    changed = " ".join([*words[:-1], "roof"])
    half = " ".join([*words[:10], *reversed(words[10:])])
    train = rows("train", "something else", SENTENCE)
    test = rows("test", f" {SENTENCE}\n", SENTENCE.upper().replace(" ", ", ") + "!", changed, half, "new to all")
    found = find_leaks(task, {"train": train, "test": test})
    assert kinds(found) == {
        "t-test-0": ("exact", "t-train-1"),
        "t-test-1": ("normalised", "t-train-1"),
        "t-test-2": ("overlap", "t-train-1"),
    }
    assert [leak.share for leak in found.leaks] == [1.0, 1.0, pytest.approx(11 / 12)]
    assert found.overlaps[0].as_json() == {
        "split": "test",
        "seen_in": "train",
        "rows": 5,
        "exact": 1,
        "normalised": 1,
        "overlap": 1,
        "answers": 5,
    }


@pytest.mark.parametrize(("kept", "leaks"), [(7, True), (6, False)])
def test_seventy_per_cent_of_the_grams_is_the_bound(task: Task, kept: int, leaks: bool) -> None:
    """17 words are 10 grams; with `kept` + 7 words of the training text in a row, `kept` of them are the same."""
    words = [f"w{i}" for i in range(17)]
    other = [*words[: kept + GRAM - 1], *(f"x{i}" for i in range(17 - kept - GRAM + 1))]
    found = find_leaks(task, {"train": rows("train", " ".join(words)), "test": rows("test", " ".join(other))})
    assert bool(found.leaks) is leaks


def test_grams_count_wherever_they_are_and_not_across_rows(task: Task) -> None:
    """Half from one row and half from another is seen; a gram that would span two rows is none."""
    left = [f"a{i}" for i in range(8)]
    right = [f"b{i}" for i in range(8)]
    split = {"train": rows("train", " ".join(left), " ".join(right)), "test": rows("test", " ".join(left + right))}
    assert find_leaks(task, split).leaks == ()  # 2 of 9 grams
    together = {
        "train": rows("train", " ".join([*left, "x"]), " ".join(left[1:])),
        "test": rows("test", *[" ".join(left)]),
    }
    assert kinds(find_leaks(task, together)) == {"t-test-0": ("overlap", "t-train-0")}


def test_a_short_question_leaks_as_a_whole_or_not_at_all(task: Task) -> None:
    found = find_leaks(
        task,
        {"train": rows("train", "how many cats", "yes"), "test": rows("test", "how many dogs", "How many CATS?", "")},
    )
    assert kinds(found) == {"t-test-1": ("normalised", "t-train-0")}


def test_every_split_is_compared_with_those_before_it(task: Task) -> None:
    splits = {"test": rows("test", "a", "c"), "train": rows("train", "a"), "valid": rows("valid", "a", "c")}
    found = find_leaks(task, splits)
    assert [(one.split, one.seen_in) for one in found.overlaps] == [
        ("valid", "train"),
        ("valid", "prompt"),
        ("test", "train"),
        ("test", "valid"),
        ("test", "prompt"),
    ]
    assert found.reasons() == {
        "t-valid-0": "the same question as t-train-0 (train), same answer",
        "t-test-0": "the same question as t-train-0 (train), same answer; "
        "the same question as t-valid-0 (valid), same answer",
        "t-test-1": "the same question as t-valid-1 (valid), same answer",
    }


def test_examples_and_rules_of_the_prompt_are_compared(task: Task) -> None:
    shots = {"test": rows("train", "An example, in the prompt")}
    test = rows("test", "an example in the prompt", SENTENCE[:60], "free", "also free")
    found = find_leaks(task, {"test": test}, shots)
    assert kinds(found) == {"t-test-0": ("normalised", "t-train-0"), "t-test-1": ("overlap", None)}
    assert found.reasons()["t-test-1"] == "100% of its 8-grams occur in prompt, most of them in the prompt"


def test_another_answer_is_said(task: Task) -> None:
    splits = {"train": rows("train", "q"), "test": rows("test", "q", answer="no")}
    assert find_leaks(task, splits).leaks[0].same_answer is False
    assert "another answer" in find_leaks(task, splits).reasons()["t-test-0"]


def test_words_are_folded_and_scripts_without_spaces_are_split() -> None:
    assert words_of("Ｔｈｅ ﬁrst—STRASSE, x_y 12%") == ["the", "first", "strasse", "x", "y", "12"]
    assert words_of("東京はA4です。") == ["東", "京", "は", "a4", "で", "す"]
    assert words_of("...") == []


def test_a_question_is_the_prompt_without_special_tokens(task: Task) -> None:
    assert question_of(task, rows("test", "one")[0]) == "one"
    assert question_of(replace(task, kind="cpt"), rows("test", "one", answer="two")[0]) == "one two"


def test_empty_splits_compare(task: Task) -> None:
    assert find_leaks(task, {"train": [], "test": rows("test", SENTENCE)}).leaks == ()
    assert find_leaks(task, {"train": rows("train", SENTENCE), "test": []}).leaks == ()
    assert find_leaks(task, {"train": rows("train", SENTENCE)}) == LeakReport((), ())


def test_real_viggo_has_near_copies_and_no_copies(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    viggo = tasks.get("viggo")
    splits = {split: load(viggo, split, str(real_data / "viggo")) for split in ("train", "valid", "test")}
    found = find_leaks(viggo, splits)
    assert {(one.split, one.seen_in): dict(one.kinds) for one in found.overlaps}["test", "train"] == {
        "exact": 0,
        "normalised": 0,
        "overlap": 3,
    }


def test_what_was_trained_on_is_looked_through_by_each_source_with_its_own_task(task: Task) -> None:
    def asks(record: Record) -> list[Segment]:
        return [Segment(f"<Q>{record['text']}<A>", loss=False), Segment("x", loss=True)]

    other = replace(task, render=asks, reference=lambda record: "x")
    trained = [
        ("train of a", other, [Record("o-train-0", {"text": "What is one?"})]),
        ("train of b", task, rows("train", "What is two?", SENTENCE)),
    ]
    asked = rows("test", "what is ONE", "What is two?", "What is three?", SENTENCE + " again")
    assert seen_in_training(task, asked, trained) == {
        "t-test-0": "the same words as the question of o-train-0 (train of a), another answer",
        "t-test-1": "the same question as t-train-0 (train of b), same answer",
        "t-test-3": "92% of its 8-grams occur in train of b, most of them in t-train-1 (train of b)",
    }
    assert seen_in_training(task, asked, []) == {}
