"""Packing: nothing lost, nothing over the budget, equal numbers of micro-batches, dummies that weigh nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulltune.batches import StepPlanner
from fulltune.config import TrainConfig
from fulltune.packing import pack

lengths_of = st.lists(st.integers(1, 100), min_size=1, max_size=60)


@given(lengths=lengths_of, workers=st.integers(1, 5), capacity=st.integers(100, 400))
def test_packs_hold_every_example_once_within_the_budget(lengths, workers, capacity):
    array = np.array(lengths)
    shares = pack(array, range(len(lengths)), capacity, workers)
    assert len(shares) == workers
    assert len({len(share) for share in shares}) == 1
    assert sorted(i for share in shares for micro in share for i in micro) == list(range(len(lengths)))
    assert all(array[micro].sum() <= capacity for share in shares for micro in share if micro)


@given(lengths=lengths_of, workers=st.integers(1, 5))
def test_without_packing_every_example_stands_alone(lengths, workers):
    shares = pack(np.array(lengths), range(len(lengths)), 0, workers)
    assert all(len(micro) <= 1 for share in shares for micro in share)
    assert sorted(i for share in shares for micro in share for i in micro) == list(range(len(lengths)))


def test_workers_get_similar_loads():
    lengths = np.array([100, 90, 60, 50, 40, 30, 20, 10])
    shares = pack(lengths, range(8), 1000, 2)
    loads = [sum(int(lengths[i]) for micro in share for i in micro) for share in shares]
    assert abs(loads[0] - loads[1]) <= 10


def test_fewer_examples_than_workers_leaves_empty_micro_batches():
    shares = pack(np.array([5, 6]), range(2), 100, 3)
    assert [[len(micro) for micro in share] for share in shares] == [[1], [1], [0]]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_the_order_of_the_step_does_not_matter(order):
    lengths = np.array([7, 7, 3, 9])
    assert pack(lengths, order, 12, 2) == pack(lengths, range(4), 12, 2)


class Lengths:
    """The part of a TokenTable that planning reads."""

    lengths = np.array([5, 6, 2], dtype=np.int32)
    supervised = np.array([3, 3, 1], dtype=np.int32)

    def __len__(self):
        return 3


def test_a_step_counts_its_dummies_as_padding_and_the_squares_of_its_lengths():
    train = TrainConfig(global_batch_size=3, micro_batch_tokens=8)
    step = StepPlanner(Lengths(), train, packing=True, rank=0, num_workers=4).step(1)
    assert (step.tokens, step.squared_lengths, step.padded_tokens) == (13, 65, 2)
