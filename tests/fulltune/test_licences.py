"""What a model was made of: known licences are named, unknown ones are called unknown, and no path gets out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tasks
from fulltune import config, licences
from fulltune.licences import Ingredient

SHAPE = {"hidden_size": 8}
RANDOM: dict[str, Any] = {"init": "random", "config": SHAPE, "tokenizer": {}}


def run(**tree: Any) -> config.RunConfig:
    return config.resolve({"task": "viggo", "model": RANDOM, "ray": {"name": "r"}} | tree, "test")


def told(*stages: config.RunConfig) -> list[tuple[str, str | None]]:
    return [(one.name, one.licence) for one in licences.ingredients(stages)]


def test_every_part_of_a_mixture_and_every_stage_is_named_once() -> None:
    mixture = [
        {"source": "bundled"},
        {"source": "hub"},
        {"task": "gsm8k", "source": "hub"},
        {"source": "/home/me/x.jsonl"},
    ]
    first = run(data={"mixture": mixture})
    assert told(first, run(data={"source": "hub"}), run(task="sql_create_context", data={"source": "hub"})) == [
        ("generated rows of task viggo", "apache-2.0"),
        ("GEM/viggo", "cc-by-sa-4.0"),
        ("openai/gsm8k", "mit"),
        ("x.jsonl (the user's own, task viggo)", None),
        ("b-mc2/sql-create-context", "cc-by-4.0"),
    ]


def test_the_base_is_that_of_the_first_stage_and_a_random_one_has_none(tmp_path: Path) -> None:
    base = Ingredient("base model", "some-lab/base-1b", hub_id="some-lab/base-1b")
    first = run(model={"name_or_path": "some-lab/base-1b"})
    later = run(model={"name_or_path": str(tmp_path)})
    assert licences.ingredients([first, later])[0] == base
    assert all(one.what == "training data" for one in licences.ingredients([run(), later]))


def test_a_local_folder_is_shown_by_its_own_name_and_its_card_names_the_licence(tmp_path: Path) -> None:
    folder = tmp_path / "lab" / "base"
    folder.mkdir(parents=True)
    model = config.ModelConfig(name_or_path=str(folder))
    assert licences.base_of(model) == Ingredient("base model", "base (a local folder)")
    cards = {
        "license: mit": "mit",
        "license: other\nlicense_name: llama2": "other (llama2)",
        "license: other": None,
        "license: [": None,
        "license: unknown": None,
    }
    for text, wanted in cards.items():
        (folder / "README.md").write_text(f"---\n{text}\n---\n# base\n")
        found = licences.base_of(model)
        assert found is not None
        assert (found.licence, found.hub_id) == (wanted, None)


@pytest.mark.parametrize("name", ["/gone/model", "./model", "~/model", "a/b/c"])
def test_a_path_is_no_hub_id_even_where_the_folder_is_gone(name: str) -> None:
    found = licences.base_of(config.ModelConfig(name_or_path=name))
    assert found is not None
    assert found.hub_id is None
    assert "/" not in found.name


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (["mit"], "mit"),
        (["MIT", "mit"], "mit"),
        (["mit", "apache-2.0"], None),
        (["mit", None], None),
        ([None], None),
        (["other"], None),
        (["other (llama2)"], None),
        (["see the owner"], None),
    ],
)
def test_a_licence_follows_from_one_that_is_known_and_shared_by_all(
    found: list[str | None], wanted: str | None
) -> None:
    assert licences.identifier([Ingredient("x", str(i), licence=one) for i, one in enumerate(found)]) == wanted


def test_rows_of_a_users_own_generator_are_not_ours_to_license(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = replace(tasks.get("viggo"), generate=lambda split: [])
    monkeypatch.setattr(tasks, "get", lambda name, **options: theirs)
    assert told(run()) == [("generated rows of task viggo", None)]


def test_a_task_whose_file_is_gone_leaves_the_licence_unknown() -> None:
    assert told(run(task="/gone/mine.py:TASK")) == [("mine.py:TASK", None)]
