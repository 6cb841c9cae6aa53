"""Batched generation: the tokens of one-by-one greedy decoding, cut by id, with truncation told apart."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import tasks
from fulltune import continuous, generate
from fulltune import tokenizer as tok
from tasks.sources import load

TASK = tasks.get("viggo")
RECORDS = load(TASK, "test", "bundled", limit=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model: it never writes what it should, so every answer is decided by the decoder's rules."""
    path = tmp_path_factory.mktemp("random")
    tokenizer = tok.train_bpe(["".join(s.text for s in TASK.render(r)) for r in RECORDS], 350)
    tok.add_task_tokens(tokenizer, TASK)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, **shape))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def generator(folder):
    return generate.load(folder, TASK, prompt_style="structured", use_gpu=False)


def one_by_one(generator, prompt, limit):
    """Greedy decoding without batch, padding or cache."""
    ids = list(prompt.ids)
    new: list[int] = []
    with torch.no_grad():
        while len(new) < limit:
            token = int(generator.model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax())
            new.append(token)
            if token in generator.stops.ids:
                break
    return new


def test_a_batch_writes_what_one_by_one_writes(generator):
    prompts = [generator.prompt(record, ()) for record in RECORDS]
    assert len({len(prompt.ids) for prompt in prompts}) > 1, "unequal lengths make padding matter"
    answers = generator.answer(prompts, max_new_tokens=12)
    for prompt, answer in zip(prompts, answers, strict=True):
        new = one_by_one(generator, prompt, 12)
        stopped = new[-1] in generator.stops.ids
        assert answer.completion_tokens == len(new)
        assert answer.finish_reason == ("stop" if stopped else "length")
        kept = new[:-1] if stopped else new
        assert answer.text == generator.tokenizer.decode(kept, skip_special_tokens=False)
        assert answer.prompt_tokens == len(prompt.ids)


def test_a_shared_prefix_changes_no_token(folder):
    """Natural prompts share their instructions; the batch must still write what each prompt alone writes."""
    generator = generate.load(folder, TASK, prompt_style="natural", use_gpu=False)
    prompts = [generator.prompt(record, RECORDS[4:]) for record in RECORDS[:4]]
    assert continuous.shared_prefix([p.ids for p in prompts]) > 100
    together = generator.answer(prompts, max_new_tokens=10)
    assert together == [generator.answer([prompt], max_new_tokens=10)[0] for prompt in prompts]
    for prompt, answer in zip(prompts, together, strict=True):
        expected = generate._cut(generator.tokenizer, prompt, one_by_one(generator, prompt, 10), generator.stops, 10)
        assert answer == expected


def test_rows_that_go_on_alone_write_what_they_would_have_written(generator, monkeypatch):
    prompts = [generator.prompt(record, ()) for record in RECORDS]
    monkeypatch.setattr(generate, "FIRST_TOKENS", 2)
    for prompt, answer in zip(prompts, generator.answer(prompts, max_new_tokens=9), strict=True):
        new = one_by_one(generator, prompt, 9)
        assert answer == generate._cut(generator.tokenizer, prompt, new, generator.stops, 9)


@pytest.mark.parametrize(
    ("rows", "shared"), [([[1, 2, 3], [1, 2, 4]], 2), ([[1, 2], [1, 2, 3]], 1), ([[5]], 0), ([[1], [2]], 0)]
)
def test_the_shared_prefix_leaves_every_row_a_token(rows, shared):
    assert continuous.shared_prefix(rows) == shared


def cut(generator, text, limit=50):
    ids = generator.tokenizer(text, add_special_tokens=False).input_ids
    prompt = generate.Prompt("x", [1, 2, 3])
    return generate._cut(generator.tokenizer, prompt, ids, generator.stops, limit)


def test_the_answer_ends_before_the_first_stop_token(generator):
    answer = cut(generator, "inform(name[x])<END_A>more<END_A>")
    assert (answer.text, answer.finish_reason) == ("inform(name[x])", "stop")


def test_other_special_tokens_stay_visible(generator):
    assert cut(generator, "a<START_Q>b<END_A>").text == "a<START_Q>b"


def test_no_stop_within_the_limit_is_truncated(generator):
    length = len(generator.tokenizer("inform(name", add_special_tokens=False).input_ids)
    assert cut(generator, "inform(name", limit=length).finish_reason == "length"


def test_natural_prompts_end_at_a_stop_string(folder):
    generator = generate.load(folder, TASK, prompt_style="natural", use_gpu=False)
    assert TASK.baseline_stop
    answer = cut(generator, "inform(name[x])" + TASK.baseline_stop[0] + "Sentence: another")
    assert (answer.text, answer.finish_reason) == ("inform(name[x])", "stop")


def test_shots_come_in_the_style_of_the_prompt(generator):
    prompt = generator.prompt(RECORDS[0], RECORDS[1:3])
    text = generator.tokenizer.decode(prompt.ids, skip_special_tokens=False)
    assert text.count("<START_Q>") == 3
    assert text.endswith("<END_Q><START_A>")
    assert prompt.ids.count(generator.tokenizer.bos_token_id) == 1


def test_batches_respect_the_budget_and_keep_everything():
    prompts = [generate.Prompt(str(i), [0] * n) for i, n in enumerate([5, 50, 20, 20, 7, 90])]
    batches = list(generate.batches(prompts, max_new_tokens=10, batch_tokens=120))
    assert sorted(p.id for batch in batches for p in batch) == [str(i) for i in range(6)]
    for batch in batches:
        width = max(len(p.ids) for p in batch) + 10
        assert len(batch) == 1 or width * len(batch) <= 120


def test_likelihood_is_the_mean_log_probability_of_the_answers_tokens(folder):
    natural = generate.load(folder, TASK, prompt_style="natural", use_gpu=False)
    record, text = RECORDS[0], TASK.reference(RECORDS[0])
    prompt = list(natural.prompt(record, ()).ids)
    answer = natural.tokenizer.encode(text, add_special_tokens=False)
    with torch.no_grad():
        logits = natural.model(input_ids=torch.tensor([prompt + answer])).logits[0].double()
    logp = torch.stack([logits[len(prompt) - 1 + i].log_softmax(-1)[token] for i, token in enumerate(answer)])
    assert natural.log_likelihood(record, text) == pytest.approx(float(logp.mean()), abs=1e-5)
    assert natural.log_likelihood(record, "") == float("-inf")
