"""Lengths of mixtures and streams, as a plan takes them."""

from __future__ import annotations

import json

import pytest

from fulltune import config
from fulltune.plan import workload
from ray_jobs import lengths, prepare


@pytest.fixture(autouse=True)
def no_real_data(monkeypatch):
    monkeypatch.delenv("FULLTUNE_DATA", raising=False)


def recipe(data, **train):
    tree = {
        "task": "viggo",
        "model": {"name_or_path": "nobody/nothing"},
        "data": {"max_length": 4000, **data},
        "train": {"global_batch_size": 8, **train},
        "ray": {"name": "test"},
    }
    return config.resolve(tree, origin="test")


def of(run):
    return lengths.of(run, None, fetch=False, say=print)


def test_a_mixture_has_the_rows_of_all_its_parts_in_their_shares():
    parts = [{"limit": 30}, {"task": "gsm8k", "limit": 20, "count": 50}]
    found = of(recipe({"mixture": parts}))
    alone = of(recipe({"limit": 30}))
    assert len(found.tokens) == 80
    assert sorted(found.tokens[:30]) == sorted(alone.tokens)
    assert found.tokens[30:].mean() > 1.1 * alone.tokens.mean()  # GSM8K's rows are longer
    assert "30 examples" in found.source
    assert "50 examples" in found.source
    weighted = of(recipe({"mixture": [{"limit": 30, "weight": 1}, {"task": "gsm8k", "limit": 20, "weight": 4}]}))
    assert len(weighted.tokens) == 50
    assert weighted.tokens[10:].mean() > 1.1 * weighted.tokens[:10].mean()


def test_parts_are_what_prepare_takes():
    run = recipe({"limit": None, "mixture": [{"limit": 3}, {"task": "gsm8k", "columns": {"a": "question"}}]})
    sources = prepare.training_sources(run)
    for part, source in zip(run.data.mixture, sources, strict=True):
        one = prepare.training_sources(lengths.alone(run, part))[0]
        assert one == source


def test_a_stream_is_sampled_and_takes_max_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(lengths, "SAMPLE_ROWS", 20)
    row = {"meaning_representation": "inform(name[Dota])", "target": "Dota is a game."}
    file = tmp_path / "train.jsonl"
    long = row | {"target": "word " * 3000}
    broken = "this would be an error if it were read"
    file.write_text("\n".join([*(json.dumps(row) for _ in range(19)), json.dumps(long), broken]))
    run = recipe({"source": str(file), "loader": "streaming"}, max_steps=500, num_epochs=1)
    found = of(run)
    assert not found.known
    assert workload.longest(run, found) == 4000
    work = workload.workload(run, found)
    assert work.steps == 500
    assert work.tokens == pytest.approx(500 * 8 * found.tokens.clip(max=4000).mean(), rel=0.01)
    exact = workload.workload(recipe({"source": str(file)}, max_steps=500), found)
    assert exact.steps == 3
