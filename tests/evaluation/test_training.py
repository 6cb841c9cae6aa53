"""What a report says of the training: one run, or several stages that made the model together."""

from __future__ import annotations

from typing import Any

import pytest

from evaluation.training import Stage, facts, sentences, setting, worker_hours

CONFIG: dict[str, Any] = {
    "task": "viggo",
    "data": {"source": "hub", "limit": 500},
    "train": {"seed": 7, "learning_rate": 1e-5},
    "ray": {"num_workers": 4, "name": "a"},
}
STEPS = [{"step": 1, "tokens": 1800, "tokens_per_s": 1.0}, {"step": 1, "valid_loss": 0.3}]
ROWS = {"data": {"train": {"rows": 499}}}


def test_facts_of_a_run() -> None:
    found = facts([Stage(CONFIG, STEPS, ROWS)])
    covers = found.pop("worker_hours_cover")
    assert found == {"seed": 7, "training_rows": 499, "worker_hours": 2.0, "setting": setting([CONFIG])}
    assert "validation, start-up, saving and lost work are not included" in covers
    assert "stages" not in covers
    assert facts([Stage(CONFIG, (), {})]) == {"seed": 7, "training_rows": 500, "setting": setting([CONFIG])}
    assert facts([Stage({}, STEPS, {})]) == {}
    assert facts([]) == {}


def test_stages_are_counted_together() -> None:
    first = Stage(
        CONFIG | {"ray": {"num_workers": 2}, "train": {"seed": 1}}, STEPS, {"data": {"train": {"rows": 1000}}}
    )
    found = facts([first, Stage(CONFIG, STEPS, ROWS)])
    assert (found["training_rows"], found["worker_hours"], found["seed"]) == (1499, 3.0, 7)
    assert found["stages"] == 2
    assert "all 2 stages together" in sentences(found)[0]


def test_hours_and_rows_of_a_stage_that_are_unknown_make_the_sum_unknown() -> None:
    first = Stage(CONFIG | {"data": {}}, (), {})
    assert set(facts([first, Stage(CONFIG, STEPS, ROWS)])) == {"seed", "setting", "stages"}
    assert sentences({}) == []


def test_hours_are_unknown_where_nothing_was_logged() -> None:
    assert worker_hours([{"tokens": 5, "tokens_per_s": None}], 2) is None
    assert worker_hours([{"tokens": 5, "tokens_per_s": 1.0}], None) is None


def test_hours_do_not_depend_on_how_often_steps_are_logged() -> None:
    def line(step: int, seconds: float = 2.0, attempt: int = 1) -> dict[str, Any]:
        return {"step": step, "tokens": 100, "tokens_per_s": 100 / seconds, "attempt": attempt}

    every = [line(step) for step in range(1, 1801)]
    assert worker_hours(every, 3) == 3.0
    assert worker_hours(every[49::50], 3) == 3.0
    tail = [*every[49:1750:50], {"step": 1800, "valid_loss": 0.5}]
    assert worker_hours(tail[:-2] + tail[-1:], 3) == 3.0, "steps after the last logged one"
    resumed = [*every[49:900:50], line(950), *(line(step, 4.0, 2) for step in range(950, 1801, 50))]
    assert worker_hours(resumed, 1) == 1.5, "steps up to 900 at two seconds, those of the second attempt at four"
    skipped = [*every[:899], {"step": 900, "skipped": "loss", "value": "nan"}, *every[900:]]
    assert worker_hours(skipped, 3) == 3.0, "a step without an update took its time too"


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
    assert (setting([other]) == setting([CONFIG])) is same
    assert (setting([other, CONFIG]) == setting([CONFIG, CONFIG])) is same


def test_the_folder_that_a_later_stage_starts_from_is_no_part_of_the_setting() -> None:
    here, there = (CONFIG | {"model": {"name_or_path": f"/{name}/export", "dtype": "auto"}} for name in "ab")
    assert setting([CONFIG, here]) == setting([CONFIG, there])
    assert setting([here]) != setting([there])
