"""The choice of a micro-batch: fewest passes that fit, then the smallest; moved by what was measured."""

from __future__ import annotations

import pytest

from fulltune.plan.activations import Batch
from fulltune.preflight import micro_batch
from fulltune.preflight.micro_batch import Peak, Size

SIZES = [
    Size(tokens, Batch(tokens, tokens // 2), passes, planned)
    for tokens, passes, planned in ((512, 8, 10), (1024, 4, 14), (2048, 2, 22), (4096, 1, 38), (8192, 1, 70))
]


@pytest.mark.parametrize(("capacity", "tokens"), [(9, None), (10, 512), (37, 2048), (38, 4096), (1000, 4096)])
def test_the_plan_alone_takes_the_fewest_passes_and_no_more_memory_than_that_needs(capacity, tokens):
    chosen = micro_batch.choose(SIZES, capacity)
    assert (chosen.tokens if chosen else None) == tokens


def test_a_few_per_cent_of_passes_are_no_reason_for_a_larger_one():
    close = [Size(2048, Batch(2048, 1024), 1.04, 22), Size(4096, Batch(4096, 2048), 1.0, 38)]
    assert micro_batch.choose(close, 100).tokens == 2048
    apart = [Size(2048, Batch(2048, 1024), 1.2, 22), close[1]]
    assert micro_batch.choose(apart, 100).tokens == 4096


def test_a_plan_that_was_too_low_is_moved_by_the_ratio():
    assert micro_batch.expected(SIZES[3], Peak(planned=14, measured=21)) == 57
    assert micro_batch.choose(SIZES, 38, Peak(planned=14, measured=21)).tokens == 2048


def test_a_plan_that_was_too_high_saves_the_difference_and_not_the_ratio():
    assert micro_batch.expected(SIZES[3], Peak(planned=14, measured=7)) == 31
    assert micro_batch.choose(SIZES, 31, Peak(planned=14, measured=7)).tokens == 4096


@pytest.fixture
def sizes_of(plan_of, lengths):
    return lambda run: micro_batch.sizes(run, plan_of(run).setup, lengths)


def test_sizes_hold_the_longest_allowed_example_and_the_recipes_own(recipe, sizes_of):
    found = sizes_of(recipe(micro_batch_tokens=700))
    assert [size.tokens for size in found][:3] == [512, 700, 1024]
    # 3,200 tokens per worker, 512 at a time: seven passes of five rows, and four in the last step, which has 40 rows
    assert {size.tokens: size.passes for size in found}[512] == (15 * 7 + 4) / 16
    assert found[0].batch == Batch(512, 307), "as supervised as the most supervised row"
    planned = [size.planned for size in found]
    assert planned == sorted(planned)
    assert len(set(planned)) == len(planned)


def test_a_budget_below_one_example_is_raised_to_it(recipe, sizes_of):
    assert sizes_of(recipe(micro_batch_tokens=64))[0].tokens == 300


def test_without_packing_there_is_nothing_to_choose(recipe, sizes_of):
    run = recipe(packing=False)
    (only,) = sizes_of(run)
    assert only.tokens == 300
    assert micro_batch.outcome(run, [only], 10**12, None, tried=frozenset()) is None


def test_the_outcome_gives_the_override_that_saves_passes(recipe, sizes_of):
    run = recipe(micro_batch_tokens=512)
    choice = micro_batch.outcome(run, sizes_of(run), 2**40, None, tried=frozenset({4096}))
    assert (choice.recipe, choice.chosen, choice.passes, choice.tried) == (512, 4096, 1, True)
    assert choice.override == "train.micro_batch_tokens=4096"


def test_a_recipe_that_has_the_fewest_passes_stays_as_it_is(recipe, sizes_of):
    run = recipe(micro_batch_tokens=9000)
    choice = micro_batch.outcome(run, sizes_of(run), 2**40, None, tried=frozenset({9000}))
    assert (choice.chosen, choice.override, choice.planned) == (9000, None, 4096)


def test_where_nothing_fits_nothing_is_proposed(recipe, sizes_of):
    run = recipe()
    choice = micro_batch.outcome(run, sizes_of(run), 1, None, tried=frozenset())
    assert (choice.chosen, choice.planned, choice.override, choice.tried) == (None, None, None, False)
