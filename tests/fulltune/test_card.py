"""The model card as the hub reads it: metadata that follows from what is known, and nothing of the machine."""

from __future__ import annotations

from typing import Any

import yaml
from huggingface_hub import ModelCard

import tasks
from fulltune import card, config

TASK = tasks.get("viggo")
RANDOM: dict[str, Any] = {"init": "random", "config": {"hidden_size": 8}, "tokenizer": {}}
FIGURES = card.Figures(
    headline="It is better.",
    table="| model | exact |\n|---|---|\n| tuned | 90 % |",
    asked="200 records.",
    dataset="GEM/viggo",
    dataset_id="GEM/viggo",
    split="test",
    values=(card.Value("exact", "all right (n = 200)", 0.9), card.Value("names", "names right (n = 200)", 0.95)),
)


def stage(name: str = "run", step: int | None = 5, **tree: Any) -> card.Stage:
    run = config.resolve({"task": "viggo", "model": RANDOM, "ray": {"name": name}} | tree, "test")
    return card.Stage(run, step, {"git": "abc", "versions": {"torch": "2"}, "data": {"train": {"rows": 1234}}})


def read(*stages: card.Stage, figures: card.Figures | None = None) -> Any:
    return ModelCard(card.text(stages, TASK, figures)).data


def test_one_known_licence_of_all_is_the_licence() -> None:
    found = read(stage())
    assert (found.license, found.language, found.base_model, found.datasets) == ("apache-2.0", ["en"], None, None)
    assert "base_model" not in card.text([stage()], TASK), "a random initialisation has none"
    assert "license_name" not in card.text([stage()], TASK)


def test_licences_that_differ_or_are_unknown_are_other_with_a_link() -> None:
    mixed = stage(data={"mixture": [{"source": "hub"}, {"task": "gsm8k", "source": "hub"}]})
    for found in (read(mixed), read(stage(data={"source": "/x/mine.jsonl"}))):
        assert (found.license, found.license_link) == ("other", "README.md")
    assert read(mixed).datasets == ["GEM/viggo", "openai/gsm8k"]
    unknown = card.text([stage(data={"source": "/x/mine.jsonl"})], TASK)
    assert "unknown to fulltune: ask its owner" in unknown
    assert "has to be cleared" in unknown
    assert "language" not in unknown.split("---")[1]


def test_the_index_of_results_is_the_hubs() -> None:
    results = read(stage(), figures=FIGURES).eval_results
    assert [(r.metric_type, r.metric_value, r.dataset_type, r.dataset_split) for r in results] == [
        ("exact", 0.9, "GEM/viggo", "test"),
        ("names", 0.95, "GEM/viggo", "test"),
    ]
    assert "Not measured" in card.text([stage()], TASK)
    text = card.text([stage()], TASK, FIGURES)
    assert "| tuned | 90 % |" in text
    assert "**It is better.**" in text


def test_the_recipe_of_a_random_initialisation_has_what_it_starts_from() -> None:
    recipe = yaml.safe_load(card.text([stage()], TASK).split("```yaml\n")[1].split("```")[0])
    assert config.resolve(recipe, "card").model == stage().config.model


def test_a_recipe_of_every_stage_reads_back_without_paths_of_the_machine() -> None:
    first = stage("two/a", model={"name_or_path": "some-lab/base"}, data={"source": "/home/me/extra.jsonl"})
    ray = {"name": "two/b", "storage_path": "/home/me/runs"}
    models = [{"model": "openai:x", "base_url": "http://host.internal/v1"}, {"model": "tuned"}]
    second = stage(
        "two/b", None, model={"name_or_path": "/home/me/runs/two/a/export"}, ray=ray, report={"models": models}
    )
    text = card.text([first, second], TASK)
    assert "/home/me" not in text
    assert "host.internal" not in text
    recipes = [yaml.safe_load(part.split("```")[0]) for part in text.split("```yaml\n")[1:]]
    assert [config.resolve(recipe, "card").task for recipe in recipes] == ["viggo", "viggo"]
    assert recipes[1]["model"]["name_or_path"] == "runs/two/a/export"
    assert "| two/a | viggo | 1,234 | 5 of 16 examples |" in text
    assert "| two/b | viggo | 1,234 | not known |" in text
    assert "some-lab/base, every parameter tuned by next-token prediction in 2 stages" in text
