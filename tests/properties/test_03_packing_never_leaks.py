"""Property 3: in a pack no example sees another; positions restart; the packed run is the unpacked run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from fulltune import attention, batches, data


@pytest.fixture(scope="module")
def model(tiny):
    attention.register()
    return AutoModelForCausalLM.from_pretrained(tiny.model, dtype=torch.float32, attn_implementation=attention.SEGMENTS)


@pytest.fixture(scope="module", params=[attention.SEGMENTS, "eager", "sdpa"])
def each_model(request, tiny):
    """The model under every attention that trains on a CPU; transformers' own make a block mask of the positions."""
    attention.register()
    return AutoModelForCausalLM.from_pretrained(tiny.model, dtype=torch.float32, attn_implementation=request.param)


@pytest.fixture(scope="module")
def examples(tiny):
    table = data.TokenTable(tiny.tokens)
    return [table[i] for i in (3, 11, 20, 42)]


def packed_losses(model, batch):
    """The loss of every supervised token of a pack, (K,)."""
    logits = model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        cu_seq_lens_q=batch.cu_seq_lens,
        logits_to_keep=batch.keep,
        use_cache=False,
    ).logits[0]
    return cross_entropy(logits, batch.targets, reduction="none")


def by_example(values, batch):
    starts = batch.cu_seq_lens.tolist()
    return [values[(batch.keep >= a) & (batch.keep < b)] for a, b in zip(starts, starts[1:], strict=False)]


def test_positions_restart_at_every_example(examples):
    batch = batches.collate_examples(examples, weight=1.0)
    expected = np.concatenate([np.arange(len(e.input_ids)) for e in examples])
    assert batch.position_ids[0].tolist() == expected.tolist()
    assert batch.cu_seq_lens.tolist() == [0, *np.cumsum([len(e.input_ids) for e in examples]).tolist()]


def test_no_token_is_trained_to_predict_the_next_example(examples):
    batch = batches.collate_examples(examples, weight=1.0)
    ends = {int(end) - 1 for end in batch.cu_seq_lens[1:]}
    assert not ends & set(batch.keep.tolist())
    assert len(batch.targets) == sum(int((e.labels[1:] != -100).sum()) for e in examples)


def test_changing_one_example_changes_no_other_loss_at_all(each_model, examples):
    check_that_a_change_stays_where_it_is(each_model, examples)


@pytest.mark.slow
@pytest.mark.extended
def test_flex_attention_does_not_leak_either(tiny, examples):
    """Forward only: it has no backward on CPUs. Slow because it is compiled first."""
    flex = AutoModelForCausalLM.from_pretrained(tiny.model, dtype=torch.float32, attn_implementation="flex_attention")
    check_that_a_change_stays_where_it_is(flex, examples)


def check_that_a_change_stays_where_it_is(model, examples):
    changed = list(examples)
    other = np.array((examples[1].input_ids + 7) % 300, dtype=np.int32)
    changed[1] = data.Example(examples[1].id, other, examples[1].labels)
    with torch.no_grad():
        before = batches.collate_examples(examples, weight=1.0)
        after = batches.collate_examples(changed, weight=1.0)
        was, now = by_example(packed_losses(model, before), before), by_example(packed_losses(model, after), after)
    assert not torch.equal(was[1], now[1]), "the change itself must show"
    for place in (0, 2, 3):
        assert torch.equal(was[place], now[place]), f"example {place} saw the change in example 1"


def test_no_gradient_flows_from_one_example_to_anothers_tokens(each_model, examples):
    model = each_model
    batch = batches.collate_examples(examples, weight=1.0)
    embedded = model.get_input_embeddings()(batch.input_ids).detach().requires_grad_()
    logits = model(
        inputs_embeds=embedded,
        position_ids=batch.position_ids,
        cu_seq_lens_q=batch.cu_seq_lens,
        logits_to_keep=batch.keep,
        use_cache=False,
    ).logits[0]
    losses = cross_entropy(logits, batch.targets, reduction="none")
    by_example(losses, batch)[2].sum().backward()
    start, end = batch.cu_seq_lens[2:4].tolist()
    reach = embedded.grad[0].abs().sum(-1)  # (T,)
    assert reach[start:end].max() > 0
    assert reach[:start].max() == 0
    assert reach[end:].max() == 0


def test_packed_equals_one_by_one_through_transformers_own_attention(tiny, model, examples):
    reference = AutoModelForCausalLM.from_pretrained(tiny.model, dtype=torch.float32, attn_implementation="eager")
    batch = batches.collate_examples(examples, weight=1.0)
    model.zero_grad()
    packed_losses(model, batch).sum().backward()
    for example in examples:
        logits = reference(input_ids=torch.tensor(example.input_ids.astype(np.int64))[None]).logits[0]
        targets = torch.tensor(example.labels[1:].astype(np.int64))
        cross_entropy(logits[:-1], targets, ignore_index=-100, reduction="sum").backward()
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() <= 1e-5 * theirs.grad.norm(), name


def test_padded_batches_are_refused(model):
    with pytest.raises(ValueError, match="packed rows only"):
        model(input_ids=torch.ones(2, 4, dtype=torch.long), attention_mask=torch.ones(2, 4, dtype=torch.long))


def test_every_example_comes_exactly_once_per_epoch_for_any_number_of_workers(tiny):
    from fulltune import config

    run = config.resolve(tiny.base, origin="test")
    table = data.TokenTable(tiny.tokens)
    for epoch in (0, 1):
        per_count = []
        for workers in (1, 2, 3):
            planners = [batches.StepPlanner(table, run.train, True, rank, workers) for rank in range(workers)]
            steps = range(epoch * planners[0].steps_per_epoch + 1, (epoch + 1) * planners[0].steps_per_epoch + 1)
            seen, per_step = [], []
            for step in steps:
                plans = [planner.step(step) for planner in planners]
                assert len({len(plan.micro_batches) for plan in plans}) == 1, "a worker would wait for ever"
                indices = [i for plan in plans for micro in plan.micro_batches for i in micro]
                assert sorted(indices) == sorted(plans[0].example_indices)
                seen += indices
                per_step.append(sorted(indices))
            assert sorted(seen) == list(range(len(table)))
            per_count.append(per_step)
        assert per_count[0] == per_count[1] == per_count[2]
