from __future__ import annotations

from typing import Any

import pytest

from evaluation.training import facts, setting, worker_hours

CONFIG: dict[str, Any] = {
    "task": "viggo",
    "data": {"source": "hub", "limit": 500},
    "train": {"seed": 7, "learning_rate": 1e-5},
    "ray": {"num_workers": 4, "name": "a"},
}


def test_facts_of_a_run() -> None:
    steps = [{"step": 1, "tokens": 1800, "tokens_per_s": 1.0}, {"step": 1, "valid_loss": 0.3}]
    found = facts(CONFIG, steps, {"data": {"train": {"rows": 499}}})
    assert found == {"seed": 7, "training_rows": 499, "worker_hours": 2.0, "setting": setting(CONFIG)}
    assert facts(CONFIG, (), {}) == {"seed": 7, "training_rows": 500, "setting": setting(CONFIG)}
    assert facts({}, steps, {}) == {}


def test_hours_are_unknown_where_nothing_was_logged() -> None:
    assert worker_hours([{"tokens": 5, "tokens_per_s": None}], 2) is None
    assert worker_hours([{"tokens": 5, "tokens_per_s": 1.0}], None) is None


@pytest.mark.parametrize(
    ("section", "key", "value", "same"),
    [
        ("train", "seed", 8, True),
        ("data", "limit", 9, True),
        ("ray", "name", "b", True),
        ("train", "learning_rate", 1, False),
    ],
)
def test_a_setting_is_the_recipe_without_seed_size_and_place(section: str, key: str, value: Any, same: bool) -> None:
    other = CONFIG | {section: CONFIG[section] | {key: value}}
    assert (setting(other) == setting(CONFIG)) is same
