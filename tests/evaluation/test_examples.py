from __future__ import annotations

import pytest

from evaluation.examples import DIFF_CHARS, Mark, marks


def test_marks_say_what_is_missing_and_what_is_extra() -> None:
    assert marks("inform(name[Dota])", "inform(name[Doom])") == [
        Mark("same", "inform(name["),
        Mark("missing", "Dota"),
        Mark("extra", "Doom"),
        Mark("same", "])"),
    ]


def test_an_equal_text_has_no_marks() -> None:
    assert marks("a b", "a b") == [Mark("same", "a b")]
    assert marks("a", "") == []


@pytest.mark.parametrize("output", ["something else entirely", "a b " * DIFF_CHARS], ids=["unlike", "long"])
def test_what_cannot_be_compared_is_shown_plain(output: str) -> None:
    assert marks("a b c", output) == [Mark("same", output)]


@pytest.mark.parametrize(("gold", "output"), [("a, b, c", "a, c, b, d"), ("x[1]", "x[1, 2]"), ("日本 語", "日本 go")])
def test_marks_rebuild_both_texts(gold: str, output: str) -> None:
    found = marks(gold, output)
    assert "".join(mark.text for mark in found if mark.kind != "missing") == output
    assert "".join(mark.text for mark in found if mark.kind != "extra") == gold
