"""The work of a run: which rows count, and a bound on the largest micro-batch where lengths are not known."""

from __future__ import annotations

import numpy as np
import pytest

from fulltune import config
from fulltune.batches import pack
from fulltune.plan import workload
from fulltune.plan.workload import Lengths
from tasks.base import UserError


def recipe(**data):
    tree = {
        "task": "gsm8k",
        "model": {"name_or_path": "m"},
        "data": {"max_length": 600, **data},
        "train": {"global_batch_size": 64, "micro_batch_tokens": 1000},
        "ray": {"num_workers": 2, "name": "test"},
    }
    return config.resolve(tree, origin="test")


def gsm8k(rows=7097):
    return workload.assumed(rows, 200.5, 72.6, 0.652, "assumed, for a test")


@pytest.mark.parametrize("lengths", [gsm8k(), Lengths(np.full(9, 200), np.full(9, 99), "counted", known=True)])
def test_a_limit_below_every_row_is_a_mistake_that_is_named(lengths):
    with pytest.raises(UserError, match=r"(?s)data.max_length 100.*data.max_length to (273|200) or more"):
        workload.workload(recipe(max_length=100), lengths)


def test_a_limit_cuts_assumed_rows_and_leaves_known_ones_out():
    found = workload.workload(recipe(max_length=200), gsm8k(1000))
    assert found.examples == 1000
    assert found.tokens == 500 * 128 + 500 * 200
    known = Lengths(gsm8k(1000).tokens, gsm8k(1000).supervised, "counted", known=True)
    assert workload.workload(recipe(max_length=200), known).examples == 500


@pytest.mark.parametrize("packing", [True, False])
def test_the_largest_micro_batch_of_assumed_lengths_bounds_rows_up_to_the_limit(packing):
    """Rows spread as GSM8K's are, up to 575 tokens where the assumed ones end at 273."""
    random = np.random.default_rng(0)
    real = np.clip(random.lognormal(np.log(188), 0.35, 2048), 60, 575).astype(int)
    real[::512] = 575
    made = recipe(packing=packing)
    largest = workload.workload(made, gsm8k()).largest
    if not packing:
        assert largest.tokens == 600
        assert largest.supervised >= 0.65 * 575
        return
    for start in range(0, 2048, 64):
        shares = pack(real, np.arange(start, start + 64), 1000, 2)
        assert max(sum(real[i] for i in bin) for share in shares for bin in share) <= largest.tokens


def test_known_lengths_are_their_own_bound():
    known = Lengths(np.array([10, 500, 40]), np.array([5, 20, 40]), "counted", known=True)
    assert workload.longest(recipe(), known) == 500
    assert workload.workload(recipe(packing=False), known).largest == workload.Batch(500, 40)
