"""Engines answer alike: stops, truncation and special tokens do not depend on how batches are made."""

from __future__ import annotations

import dataclasses
import logging
import sys
import types
from itertools import chain

import pytest
import torch
from transformers import FalconConfig, FalconForCausalLM, LlamaConfig, LlamaForCausalLM

import tasks
from fulltune import engines, generate
from fulltune import tokenizer as tok
from tasks.base import UserError
from tasks.sources import load

TASK = tasks.get("viggo")
RECORDS = load(TASK, "test", "bundled", limit=12)
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LOCAL = ("hf", "hf-static", "hf-paged")
LIMITS = {"max_new_tokens": 40, "batch_tokens": 1200}


@pytest.fixture(scope="module")
def tokenizer():
    found = tok.train_bpe(["".join(s.text for s in TASK.render(r)) for r in RECORDS], 350)
    tok.add_task_tokens(found, TASK)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """A random model of many stop tokens: some answers stop early, some late and some never."""
    path = tmp_path_factory.mktemp("random")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), intermediate_size=64, initializer_range=0.4, **SHAPE)
    )
    model.generation_config.eos_token_id = list(range(40, 200, 7))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def answered(engine, shots=()):
    prompts = [engine.prompt(record, shots) for record in RECORDS]
    answers = list(chain(*engine.answers(prompts, **LIMITS)))
    assert len({answer.id for answer in answers}) == len(answers) == len(RECORDS)
    return {answer.id: answer for answer in answers}


def opened(name, folder, style):
    return engines.load(name, folder, TASK, prompt_style=style, use_gpu=False)


@pytest.mark.parametrize("style", ["structured", "natural"])
@pytest.mark.parametrize("name", LOCAL)
def test_every_engine_gives_the_answers_of_one_prompt_at_a_time(folder, name, style):
    alone = opened("hf-static", folder, style)
    prompts = [alone.prompt(record, RECORDS[:2]) for record in RECORDS]
    expected = {p.id: alone.answer([p], max_new_tokens=LIMITS["max_new_tokens"])[0] for p in prompts}
    assert {answer.finish_reason for answer in expected.values()} == {"stop", "length"}
    assert answered(opened(name, folder, style), RECORDS[:2]) == expected


@pytest.mark.parametrize("name", LOCAL)
def test_a_stop_string_ends_an_answer_and_is_not_part_of_it(folder, name):
    free = answered(opened("hf-static", folder, "natural"))
    some = next(a for a in free.values() if a.finish_reason == "length")
    stop = some.text[10:12]
    task = dataclasses.replace(TASK, baseline_stop=(stop,))
    engine = engines.load(name, folder, task, prompt_style="natural", use_gpu=False)
    found = answered(engine)[some.id]
    assert found.text == some.text[: some.text.index(stop)]
    assert found.finish_reason == "stop"
    assert found.completion_tokens < some.completion_tokens


@pytest.mark.parametrize("name", LOCAL)
def test_special_tokens_stay_visible(folder, tokenizer, name):
    engine = opened(name, folder, "structured")
    special = {"<START_Q>", "<END_Q>", "<START_A>"}
    ids = {token for text in special for token in tokenizer.encode(text, add_special_tokens=False)}
    head = engine.model.get_output_embeddings().weight
    with torch.no_grad():
        before = head.clone()
        head[sorted(ids)] *= 8  # the model writes them all the time
        try:
            texts = "".join(answer.text for answer in answered(engine).values())
        finally:
            head.copy_(before)
    assert any(text in texts for text in special)


def test_static_batches_answer_where_the_attention_allows_no_other(tmp_path, tokenizer, caplog):
    torch.manual_seed(0)
    model = FalconForCausalLM(FalconConfig(vocab_size=len(tokenizer), **SHAPE, bos_token_id=0, eos_token_id=0))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, logger="fulltune.generate"):
        engine = opened("hf", tmp_path, "structured")
    assert engine.batching == "static"
    assert "FalconForCausalLM" in caplog.text
    assert len(answered(engine)) == len(RECORDS)


def test_text_is_decoded_only_where_a_stop_string_can_end(tokenizer):
    asked = []

    class Counting:
        def decode(self, ids, **options):
            asked.append(len(ids))
            return tokenizer.decode(ids, **options)

    ended = generate.ending(Counting(), generate.Stops((), ("\nSentence:",)))
    text = tokenizer.encode("inform(name[x])\nSentence", add_special_tokens=False)
    assert not any(ended(text[:end]) for end in range(1, len(text) + 1))
    assert set(asked) == {1}, "only single tokens were looked at"
    assert ended([*text, *tokenizer.encode(":", add_special_tokens=False)])


@pytest.mark.parametrize("string", ["ö", "x "])
def test_stop_strings_that_end_in_a_space_or_beyond_ascii_are_found(tokenizer, string):
    ended = generate.ending(tokenizer, generate.Stops((), (string,)))
    text = tokenizer.encode("abc" + string, add_special_tokens=False)
    assert ended(text)
    assert not ended(text[:1])


class FakeVllm(types.ModuleType):
    """What is used of vLLM 0.x: LLM, SamplingParams, and outputs with token ids and a reason.

    Like vLLM it writes until a stop token, or a stop string anywhere in the decoded text; the tokens of either are
    among those it gives back. `written` has them, answer by answer.
    """

    def __init__(self, engine):
        super().__init__("vllm")
        self.engine, self.made, self.rounds, self.written = engine, [], [], []

    def SamplingParams(self, **given):  # noqa: N802
        return types.SimpleNamespace(**given)

    def LLM(self, **given):  # noqa: N802
        self.made.append(given)
        return types.SimpleNamespace(generate=self.generate)

    def generate(self, prompts, parameters, *, use_tqdm):
        assert parameters.temperature == 0
        assert parameters.skip_special_tokens is False
        assert not use_tqdm
        self.rounds.append(len(prompts))
        outputs = []
        for given in prompts:
            ids, new = given["prompt_token_ids"], []
            while len(new) < parameters.max_tokens and not self.stopped(new, parameters):
                with torch.no_grad():
                    new.append(int(self.engine.model(torch.tensor([[*ids, *new]])).logits[0, -1].argmax()))
            reason = "stop" if self.stopped(new, parameters) else "length"
            written = types.SimpleNamespace(token_ids=tuple(new), finish_reason=reason)
            outputs.append(types.SimpleNamespace(outputs=[written]))
            self.written.append(new)
        return outputs

    def stopped(self, new, parameters):
        text = self.engine.tokenizer.decode(new, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return any(token in parameters.stop_token_ids for token in new[-1:]) or any(
            stop in text for stop in parameters.stop or ()
        )


@pytest.fixture
def fake(folder, monkeypatch):
    module = FakeVllm(opened("hf-static", folder, "structured"))
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def test_vllm_is_given_ids_and_its_tokens_become_the_same_answers(fake, folder, monkeypatch):
    from fulltune import offline_vllm

    monkeypatch.setattr(offline_vllm, "ROUND", 5)
    engines.check("vllm")
    engine = opened("vllm", folder, "structured")
    assert fake.made[0]["model"] == str(folder)
    assert fake.made[0]["dtype"] == "float32"
    assert answered(engine) == answered(fake.engine)
    assert fake.rounds == [5, 5, 2]


def test_vllm_ends_natural_answers_at_the_stop_strings_and_at_the_stop_tokens(fake, folder, tokenizer):
    free = answered(opened("hf-static", folder, "natural"))
    some = next(answer for answer in free.values() if answer.finish_reason == "length")
    stop = some.text[10:12]
    task = dataclasses.replace(TASK, baseline_stop=("never written", stop))
    alone, engine = (
        engines.load(name, folder, task, prompt_style="natural", use_gpu=False) for name in ("hf-static", "vllm")
    )
    found = answered(engine)
    assert found == answered(alone)
    assert found[some.id].text == some.text[: some.text.index(stop)]
    at_string, at_token = set(), set()
    for record, new in zip(RECORDS, fake.written, strict=True):
        assert stop not in tokenizer.decode(new[:-1], skip_special_tokens=False), "nothing is written behind it"
        assert not set(new[:-1]) & set(engine.stops.ids)
        at_string |= {record.id} if stop in tokenizer.decode(new, skip_special_tokens=False) else set()
        at_token |= {record.id} if new[-1] in engine.stops.ids else set()
    assert some.id in at_string
    assert at_token


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_vllms_reason_decides_where_the_tokens_leave_it_open(fake, folder, reason):
    """A context window that is full ends an answer before the limit; a stop string leaves no stop token."""
    engine = opened("vllm", folder, "structured")
    written = types.SimpleNamespace(token_ids=(30, 31), finish_reason=reason)
    engine.llm.generate = lambda prompts, *_, **__: [types.SimpleNamespace(outputs=[written])] * len(prompts)
    assert {answer.finish_reason for answer in answered(engine).values()} == {reason}


def test_vllm_that_gives_up_on_a_prompt_is_no_empty_answer(fake, folder):
    engine = opened("vllm", folder, "structured")
    aborted = types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=(), finish_reason="abort")])
    engine.llm.generate = lambda prompts, *_, **__: [aborted] * len(prompts)
    with pytest.raises(RuntimeError, match="abort"):
        answered(engine)


def test_without_vllm_the_command_that_installs_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"fulltune\[vllm\]"):
        engines.check("vllm")
    for name in LOCAL:
        engines.check(name)


def test_engines_of_one_family_continue_each_others_files():
    assert {engines.family(name) for name in LOCAL} == {"hf"}
    assert engines.family("vllm") == "vllm"
