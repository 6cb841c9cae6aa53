"""Mixtures: counts and weights are met exactly, repeats are even and marked, nothing is copied."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulltune import data, mixture
from fulltune.config import DataConfig, MixturePart
from fulltune.data import TokenTable

sizes_and_weights = st.lists(st.tuples(st.integers(1, 200), st.floats(0.01, 10)), min_size=1, max_size=6)


def part(**settings):
    return MixturePart(**settings)


def test_counts_are_exact_and_a_part_without_any_comes_once():
    assert mixture.takes([10, 20, 5], [part(count=25), part(), part(count=3)]) == [25, 20, 3]


def test_weights_share_what_the_weighted_parts_hold():
    assert mixture.takes([900, 100], [part(weight=1), part(weight=1)]) == [500, 500]
    assert mixture.takes([70, 30, 40], [part(weight=0.3), part(weight=0.7), part(count=7)]) == [30, 70, 7]


@given(sizes_and_weights)
def test_weighted_parts_lose_no_example_to_rounding(drawn):
    sizes = [size for size, _ in drawn]
    taken = mixture.takes(sizes, [part(weight=weight) for _, weight in drawn])
    whole = sum(weight for _, weight in drawn)
    assert sum(taken) == sum(sizes)
    assert all(abs(n - sum(sizes) * weight / whole) < 1 for n, (_, weight) in zip(taken, drawn, strict=True))


@given(size=st.integers(1, 50), wanted=st.integers(0, 200), seed=st.integers(0, 3))
def test_every_row_of_a_part_comes_equally_often_up_to_one(size, wanted, seed):
    chosen = mixture.pick(size, wanted, seed=seed, part=0)
    times = Counter(chosen[:, 0].tolist())
    assert sum(times.values()) == wanted
    assert {times[row] for row in range(size)} <= {wanted // size, -(-wanted // size)}
    assert len({tuple(pair) for pair in chosen.tolist()}) == wanted, "a row and its copy number name one example"


def test_the_choice_depends_on_the_seed_and_on_nothing_else():
    first = mixture.pick(100, 30, seed=1, part=0)
    assert np.array_equal(first, mixture.pick(100, 30, seed=1, part=0))
    assert not np.array_equal(first, mixture.pick(100, 30, seed=2, part=0))
    assert not np.array_equal(first, mixture.pick(100, 30, seed=1, part=1))


def table(cache, name, task, size, length):
    """A token table with rows of one length; token ids say which row it is."""
    rows = [np.full(length, i, dtype=np.int32) for i in range(size)]
    import pyarrow as pa

    lists = data._lists([(None, row) for row in rows], 1)
    tokens = pa.RecordBatch.from_arrays(
        [pa.array([f"{task}-train-{i}" for i in range(size)]), lists, lists], schema=data.SCHEMA
    )
    left_out = {"rejected": [f"{task}-train-{size}"], "too_long": [], "without_loss": []}
    counts = np.array([[length, length - 1]] * size)
    data.write(cache / name, [data.Encoded(tokens, counts, left_out)], {"task": task, "split": "train"})
    return TokenTable(cache / name)


def test_a_mixture_reads_the_rows_of_its_parts(tmp_path):
    tables = [table(tmp_path, "a", "viggo", 4, 3), table(tmp_path, "b", "gsm8k", 3, 5)]
    mixed = mixture.combine(tables, [part(count=2), part(count=7)], seed=0, cache=tmp_path)
    assert len(mixed) == 9
    assert mixed.lengths.tolist() == [3, 3] + [5] * 7
    assert mixed.supervised.tolist() == [2, 2] + [4] * 7
    ids = [mixed[i].id for i in range(9)]
    assert len(set(ids)) == 9
    assert ids[2:8] == [f"gsm8k-train-{i}" for i in range(3)] + [f"gsm8k-train-{i}#2" for i in range(3)]
    assert ids[8].endswith("#3")
    for i, name in enumerate(ids):
        row = int(name.split("#")[0].rsplit("-", 1)[1])
        assert mixed[i].input_ids.tolist() == [row] * int(mixed.lengths[i])
    assert [(p["taken"], p["repeated"], p["unused"]) for p in mixed.manifest["parts"]] == [(2, 0, 2), (7, 4, 0)]
    assert mixed.manifest["left_out"]["rejected"]["total"] == 2


def test_parts_of_one_task_keep_their_ids_apart(tmp_path):
    tables = [table(tmp_path, "a", "viggo", 2, 3), table(tmp_path, "b", "viggo", 2, 4)]
    mixed = mixture.combine(tables, [part(), part()], seed=0, cache=tmp_path)
    ids = [mixed[i].id for i in range(4)]
    assert ids == ["viggo-train-0", "viggo-train-1", "viggo-train-0@2", "viggo-train-1@2"]


def test_the_same_mixture_is_found_and_another_is_made(tmp_path):
    tables = [table(tmp_path, "a", "viggo", 4, 3)]
    first = mixture.combine(tables, [part(count=3)], seed=0, cache=tmp_path).folder
    assert mixture.combine(tables, [part(count=3)], seed=0, cache=tmp_path).folder == first
    assert mixture.combine(tables, [part(count=3)], seed=1, cache=tmp_path).folder != first
    assert mixture.combine(tables, [part(count=2)], seed=0, cache=tmp_path).folder != first


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="a count or a weight, not both"):
        part(count=1, weight=1.0)
    with pytest.raises(ValueError, match="data.limit does not apply to a mixture"):
        DataConfig(mixture=(part(),), limit=5)
