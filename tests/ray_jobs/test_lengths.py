"""Lengths of mixtures and streams, as a plan takes them."""

from __future__ import annotations

import json

import numpy as np
import pytest

import tasks
from fulltune import config, data
from fulltune import tokenizer as tok
from fulltune.plan import workload
from ray_jobs import auto, lengths, plan, prepare


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


ROW = {"meaning_representation": "inform(name[Dota])", "target": "Dota is a game."}


def rows_of(file, words):
    """A file with so many words in each row's text."""
    file.write_text("".join(json.dumps(ROW | {"target": "game " * count}) + "\n" for count in words))
    return file


@pytest.fixture
def base(tmp_path):
    """A model folder with config.json and a tokenizer that lacks the task's tokens."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    folder = tmp_path / "base"
    tok.save(tok.train_bpe(["Dota is a game. inform(name[Dota])"] * 5, 300), folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 300, **sizes}))
    return folder


@pytest.fixture
def tokenizer(base):
    found = tok.load(str(base))
    tok.add_task_tokens(found, tasks.get("viggo"))
    return found


@pytest.fixture
def encoded(monkeypatch):
    """Rows of each call that encodes."""
    calls, real = [], tok.encode_examples

    def counting(tokenizer, task, examples, *, loss_on):
        calls.append(len(examples))
        return real(tokenizer, task, examples, loss_on=loss_on)

    monkeypatch.setattr(tok, "encode_examples", counting)
    return calls


def stored(tmp_path, source, **train):
    """A recipe on this file whose run folder is in `tmp_path`."""
    run = recipe({"source": str(source)}, **train)
    return run.model_copy(update={"ray": run.ray.model_copy(update={"storage_path": str(tmp_path)})})


def test_the_gates_and_auto_together_encode_the_data_once(tmp_path, base, encoded):
    source = rows_of(tmp_path / "train.jsonl", range(1, 41))
    tree = {
        "task": "viggo",
        "model": {"name_or_path": str(base), "dtype": "bfloat16"},
        "data": {"source": str(source)},
        "deepspeed": "auto",
        "ray": {"name": "test", "storage_path": str(tmp_path), "use_gpu": True, "accelerator_type": "A10G"},
    }
    run = config.resolve(tree, origin="test")
    plan.refuse_what_cannot_fit(run, say=pytest.fail)
    plan.refuse_what_cannot_fit(run, say=pytest.fail)
    auto.decided(run, fetch=True, say=print)
    assert encoded == [40]
    rows_of(source, range(1, 31))
    plan.refuse_what_cannot_fit(run, say=pytest.fail)
    assert encoded == [40, 30], "the file is another one now"
    longer = run.model_copy(update={"data": run.data.model_copy(update={"loss_on": "all"})})
    plan.refuse_what_cannot_fit(longer, say=pytest.fail)
    assert encoded == [40, 30, 30]


def test_a_tokenizer_that_is_trained_for_the_plan_is_trained_once(tmp_path, monkeypatch):
    source, trained, real = rows_of(tmp_path / "train.jsonl", range(1, 41)), [], tok.train_bpe
    monkeypatch.setattr(tok, "train_bpe", lambda texts, size: trained.append(size) or real(texts, size))
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = {"init": "random", "config": sizes, "tokenizer": {"vocab_size": 300}}
    tree = {"task": "viggo", "model": model, "data": {"source": str(source)}, "ray": {"name": "test"}}
    run = config.resolve(tree, origin="test")
    first, again = plan.known(run, fetch=False, say=print), plan.known(run, fetch=True, say=print)
    assert trained == [300]
    assert first[0] == again[0]
    assert first[0]["vocab_size"] == 320  # 300 and the task's tokens in rows of 64


def test_a_source_of_many_rows_is_counted_and_sampled_evenly(tmp_path, tokenizer, encoded, monkeypatch):
    monkeypatch.setattr(lengths, "SPREAD_ROWS", 50)
    run, said = stored(tmp_path, rows_of(tmp_path / "train.jsonl", range(1, 1001)), num_epochs=1), []
    found = lengths.of(run, tokenizer, fetch=False, say=said.append)
    assert encoded == [50, lengths.LARGEST_ROWS]
    assert len(said) == 1
    assert "over 50 rows" in said[0]
    assert "sampled, 50 rows" in found.source
    assert "evenly spread among 1,000" in found.source
    assert len(found.tokens) == len(found.supervised) == 1000
    every = np.array([len(ids) for ids, _ in whole(tokenizer, run)])
    assert found.tokens.mean() == pytest.approx(every.mean(), rel=0.03)
    assert found.tokens.std() == pytest.approx(every.std(), rel=0.03)
    assert not found.known
    assert workload.longest(run, found) == every.max(), "of all rows, also where it is not in the sample"
    assert workload.workload(run, found).steps == 125
    short = run.model_copy(update={"data": run.data.model_copy(update={"max_length": int(np.median(every))})})
    kept = lengths.of(short, tokenizer, fetch=False, say=print)
    assert len(kept.tokens) == pytest.approx(500, rel=0.05), "longer rows are left out as `prepare` does"


def whole(tokenizer, run):
    task = tasks.get("viggo")
    records = prepare.load_split(run, task, "train", None, print)
    return tok.encode_examples(tokenizer, task, [task.render(record) for record in records], loss_on="completion")


@pytest.mark.parametrize("total", [1, 50, 51, 100, 101, 399, 1000])
def test_rows_are_spread_over_the_whole_source(total):
    kept, count = lengths._evenly(range(total), 50)
    assert count == total
    assert len(kept) == min(total, 50) == len(set(kept))
    assert kept[0] == 0
    assert kept[-1] >= total - 1 - total // 25
    assert max(np.diff([*kept, total])) <= max(1, 2.5 * total / 50)


def test_as_many_rows_as_are_sampled_are_counted_exactly(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(lengths, "SPREAD_ROWS", 50)
    found = lengths.of(
        stored(tmp_path, rows_of(tmp_path / "train.jsonl", range(50))), tokenizer, fetch=False, say=print
    )
    assert found.known
    assert len(found.tokens) == 50


@pytest.mark.parametrize("large", [False, True])
def test_lengths_of_a_prepared_table_are_read_and_not_made_again(tmp_path, tokenizer, encoded, monkeypatch, large):
    monkeypatch.setattr(lengths, "SPREAD_ROWS", 10)
    monkeypatch.setattr(data, "CHUNK_ROWS", 8)
    monkeypatch.setattr(prepare, "HEAD_CHUNKS", 2 if large else 100)
    task, run = tasks.get("viggo"), stored(tmp_path, rows_of(tmp_path / "train.jsonl", range(1, 41)))
    source = prepare.training_sources(run)[0]
    monkeypatch.setattr(
        prepare, "_on_ray", lambda *_: (data.encode(task, tokenizer, chunk, run.data) for chunk in source.chunks())
    )
    tok.save(tokenizer, tmp_path / "model")
    table = prepare.tokenised(source, tmp_path / "model", run.data, tmp_path / "cache", say=print)
    encoded.clear()
    found = lengths.of(run, tokenizer, fetch=False, say=pytest.fail)
    assert not encoded
    assert found.known
    assert found.tokens.tolist() == table.lengths.tolist()
    assert found.supervised.tolist() == table.supervised.tolist()
    assert "40 prepared examples" in found.source
    other = run.model_copy(update={"data": run.data.model_copy(update={"loss_on": "all"})})
    assert not lengths.of(other, tokenizer, fetch=False, say=print).known
    assert encoded == [10, 40], "a table of another configuration is none of this one: a sample, and the largest rows"
