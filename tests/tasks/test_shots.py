from __future__ import annotations

import pytest

import tasks
from tasks.base import UserError
from tasks.shots import pick
from tasks.sources import load

VIGGO = tasks.get("viggo")
TRAIN = load(VIGGO, "train", "bundled", limit=40)


def test_examples_are_the_same_every_time_and_never_asked() -> None:
    found = pick(VIGGO, 5, TRAIN, TRAIN[:30])
    assert found == pick(VIGGO, 5, TRAIN, TRAIN[:30])
    assert {record.id for record in found} <= {record.id for record in TRAIN[30:]}
    assert len({record.id for record in found}) == 5


def test_no_examples_need_no_rows() -> None:
    assert pick(VIGGO, 0, [], TRAIN) == []


def test_too_many_examples_is_a_user_error() -> None:
    with pytest.raises(UserError, match="10 training rows"):
        pick(VIGGO, 11, TRAIN, TRAIN[:30])
