"""`fulltune probe` with a tiny random model: the curve, what it recognises, resuming; and which engine it uses."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import tasks
from evaluation.intervals import estimate
from evaluation.probe import Point, Verdict
from fulltune import generate
from fulltune import tokenizer as tok
from ray_jobs import cluster, probe
from ray_jobs.cli import main
from ray_jobs.commands.probe import _table
from ray_jobs.predict import Request
from tasks.base import Record
from tasks.sources import load

COMMAND = ["probe", "--task", "viggo", "--model", "a/folder"]


@pytest.mark.parametrize("engine", ["hf", "hf-static", "hf-paged", "vllm"])
def test_the_engine_reaches_every_request_of_the_curve(engine, tmp_path, monkeypatch, capsys):
    asked = []

    def record(request, out, **_):
        asked.append(request)
        point = Point(0, estimate([1.0], "proportion"), estimate([0.0], "proportion"))
        return probe.Probe(Verdict("exact", (point,), None, 0, None, None, False, False, ()), out)

    monkeypatch.setattr(probe, "probe", record)
    assert main([*COMMAND, "--engine", engine, "--out", str(tmp_path), "--json"]) == 0
    assert [request.engine for request in asked] == [engine]


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_an_engine_that_is_not_installed_is_refused_before_ray_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "connected", lambda: pytest.fail("Ray was started"))
    assert main([*COMMAND, "--engine", "vllm", "--out", str(tmp_path)]) == 2
    assert "fulltune[vllm]" in capsys.readouterr().err


def test_an_unknown_engine_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as ended:
        main([*COMMAND, "--engine", "hff"])
    assert ended.value.code == 2
    assert "hf-static" in capsys.readouterr().err


TASK = tasks.get("viggo")
RECORDS = load(TASK, "valid", "bundled", limit=6)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "random"
    tokenizer = tok.train_bpe(["".join(s.text for s in TASK.render(r)) for r in RECORDS], 350)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def asking(folder, tmp_path):
    common = {"task": "viggo", "split": "valid", "source": "bundled", "model": str(folder), "label": "0-shot"}
    return Request(**common, out=tmp_path / "0-shot.jsonl", prompt="natural", limit=6, cpus_per_worker=0.5)


def test_the_likelier_of_two_answers_is_the_one_that_the_model_says_it_is(folder, tmp_path):
    """Against the sum over whole sequences, computed without the generator's own slicing."""
    request = asking(folder, tmp_path)
    others = [TASK.reference(r) for r in reversed(RECORDS)]
    model = LlamaForCausalLM.from_pretrained(folder)
    tokenizer = tok.load(str(folder))

    def likelihood(record, answer):
        prompt = generate.prompt_of(tokenizer, TASK, "natural", record, ()).ids
        ids = [*prompt, *tokenizer.encode(answer, add_special_tokens=False)]
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        chosen = [logs[i - 1, ids[i]].item() for i in range(len(prompt), len(ids))]
        return sum(chosen) / len(chosen)

    wanted = [likelihood(r, TASK.reference(r)) > likelihood(r, o) for r, o in zip(RECORDS, others, strict=True)]
    assert probe.recognise(request, folder, RECORDS, others) == wanted
    assert len(set(wanted)) == 2, "both outcomes occur"
    assert probe.recognise(request, folder, RECORDS, [""] * len(RECORDS)) == [True] * len(RECORDS)


def test_the_other_answer_is_one_that_copying_would_prefer_where_there_is_one():
    def record(number, name, *, named=True):
        words = f"{name} is a game" if named else "It is a game"
        return Record(f"r{number}", {"ref": words, "mr": f"inform(name[{name}])"})

    own, other = record(0, "Tetris"), record(1, "Doom")
    found = dict((r.id, o) for r, o in probe.others_of(TASK, [own, other]))
    assert found["r0"] == probe.Other("inform(name[Doom])", copying=True)
    unnamed = [record(0, "Tetris", named=False), record(1, "Doom", named=False)]
    found = dict((r.id, o) for r, o in probe.others_of(TASK, unnamed))
    assert found["r0"] == probe.Other("inform(name[Doom])", copying=False), "neither can be copied"
    assert probe.others_of(TASK, [own, own]) == [], "there is no other answer"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_random_model_has_not_met_the_concept_and_a_second_run_computes_nothing(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with cluster.connected():  # one cluster for both runs
        found = probe.probe(asking(folder, tmp_path), out, shots=(0, 2), say=print)
        before = (out / "2-shot.jsonl").read_text()
        monkeypatch.setattr(probe.predict, "_run", lambda *_: pytest.fail("answers were computed again"))
        assert probe.probe(asking(folder, tmp_path), out, shots=(0, 2), say=print).verdict == found.verdict
    assert (out / "2-shot.jsonl").read_text() == before
    assert len(before.splitlines()) == 6
    told = json.loads((out / "probe.json").read_text())
    assert not told["met_concept"]
    assert not told["shots_help"]
    assert [point["shots"] for point in told["curve"]] == [0, 2]
    assert told["recognition"]["n"] == 6
    assert told["looks"] == 3
    assert "not shown" in _table(found.verdict)
    assert "they do not count" in _table(found.verdict)
