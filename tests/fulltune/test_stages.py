"""Stages: plain runs in a row, the later ones starting from what the earlier ones exported."""

from __future__ import annotations

import pytest

from fulltune import config
from fulltune.stages import expand
from tasks.base import UserError

TREE = {
    "task": "viggo",
    "model": {"init": "random", "config": {"hidden_size": 32}, "tokenizer": {"vocab_size": 400}},
    "train": {"learning_rate": 1e-3, "num_epochs": 2},
    "ray": {"name": "two", "storage_path": "/store"},
    "report": {"limit": 5},
}
STAGES = [
    {"name": "extra", "data": {"limit": 10}, "task": "gsm8k"},
    {"name": "final", "base": "@extra", "train": {"learning_rate": 1e-4}},
]


def stages_of(*stages):
    return expand(config.resolve(TREE | {"stages": list(stages)}, origin="test"))


def test_a_recipe_without_stages_is_itself():
    run = config.resolve(TREE, origin="test")
    assert expand(run) == [run]


def test_each_stage_is_the_recipe_with_its_changes():
    extra, final = stages_of(*STAGES)
    assert (extra.task, extra.data.limit, extra.train.learning_rate) == ("gsm8k", 10, 1e-3)
    assert (final.task, final.data.limit, final.train.learning_rate) == ("viggo", None, 1e-4)
    assert final.train.num_epochs == 2
    assert [run.ray.name for run in (extra, final)] == ["two/extra", "two/final"]
    assert str(final.run_dir) == "/store/two/final"


def test_a_later_stage_starts_from_the_export_of_an_earlier_one():
    _, final = stages_of(*STAGES)
    assert final.model.name_or_path == "/store/two/extra/export"
    assert final.model.init == "pretrained"
    assert final.model.tokenizer is None


def test_only_the_last_stage_reports():
    extra, final = stages_of(*STAGES)
    assert extra.report is None
    assert final.report is not None


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([{"base": "@x"}], "stage 1 is named None"),
        ([{"name": "a"}, {"name": "a"}], "stage 2 is named 'a'"),
        ([{"name": "a", "base": "@b"}], "base '@b'"),
        ([{"name": "a"}, {"name": "b", "base": "a"}], "base 'a'"),
        ([{"name": "a", "train": {"learning_rat": 1}}], "train.learning_rat"),
    ],
)
def test_mistakes_are_user_errors(stages, words):
    with pytest.raises(UserError, match=words):
        stages_of(*stages)
