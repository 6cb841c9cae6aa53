"""Streamed steps: every row once per epoch, as many micro-batches on every worker, resuming by passing over."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulltune import data
from fulltune.comm import Workers
from fulltune.config import DataConfig, TrainConfig
from fulltune.stream import StreamPlanner, _shuffled
from tasks.base import UserError


@dataclass(frozen=True)
class Exchange:
    """What workers in threads see of each other: every value is put on a board between two barriers."""

    rank: int
    size: int
    barrier: threading.Barrier
    board: dict[int, Any]

    def gather(self, value: Any) -> list[Any]:
        self.board[self.rank] = value
        self.barrier.wait(timeout=20)
        values = [self.board[rank] for rank in range(self.size)]
        self.barrier.wait(timeout=20)
        return values

    def sum(self, values, target=None) -> list[float]:
        return [float(sum(column)) for column in zip(*self.gather(list(values)), strict=True)]


def chunk(first, lengths, **left_out):
    """Examples whose ids count from `first`; the first token of each is not supervised."""
    rows = [np.arange(length, dtype=np.int32) for length in lengths]
    lists = data._lists([(None, row) for row in rows], 1)
    ids = pa.array([f"row-{first + i}" for i in range(len(rows))])
    counts = np.array([[length, length - 1] for length in lengths])
    nothing = dict.fromkeys(data.REASONS, ())
    tokens = pa.RecordBatch.from_arrays([ids, lists, lists], schema=data.SCHEMA)
    return data.Encoded(tokens, counts, nothing | left_out)


def planner(stream, workers=None, *, batch=4, buffer=0, say=lambda line: None):
    settings = DataConfig(max_length=32, loader="streaming", shuffle_buffer=buffer)
    train = TrainConfig(global_batch_size=batch, micro_batch_tokens=32, max_steps=99, seed=7)
    return StreamPlanner(lambda epoch: iter(stream), settings, train, workers or Workers(), say=say)


def ids(loader):
    return [example.id for example in loader._step]


def take(loader, steps):
    """(ids, micro-batches, tokens, supervised) of each step."""
    taken = []
    for number in range(1, steps + 1):
        step = loader.step(number)
        taken.append((ids(loader), step.micro_batches, step.tokens, step.supervised_tokens, step.epoch))
    return taken


def side_by_side(shares, steps, **settings):
    """The steps of several workers, each with its own share of the rows."""
    barrier, board = threading.Barrier(len(shares)), {}

    def work(rank):
        return take(planner(shares[rank], Exchange(rank, len(shares), barrier, board), **settings), steps)

    with ThreadPoolExecutor(len(shares)) as pool:
        return list(pool.map(work, range(len(shares)), timeout=60))


def test_one_worker_sees_every_row_once_per_epoch_in_the_order_of_the_source():
    steps = take(planner([chunk(0, [5] * 6), chunk(6, [9] * 4)]), 6)
    names = [f"row-{i}" for i in range(10)]
    assert [name for step in steps[:3] for name in step[0]] == names
    assert [name for step in steps[3:] for name in step[0]] == names
    assert [step[4] for step in steps] == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    assert [step[3] for step in steps[:3]] == [16, 8 + 16, 16]


@pytest.mark.parametrize("sizes", [(10, 3), (0, 5), (7, 7), (1, 1)])
def test_workers_with_unequal_shares_agree_and_drop_nothing(sizes):
    shares = [[chunk(100 * rank, [3 + i % 20 for i in range(n)])] for rank, n in enumerate(sizes)]
    length = {f"row-{100 * rank + i}": 3 + i % 20 for rank, n in enumerate(sizes) for i in range(n)}
    steps = -(-max(sizes) // 2)
    taken = side_by_side(shares, steps)
    for per_worker in zip(*taken, strict=True):
        assert len({len(micro) for _, micro, *_ in per_worker}) == 1, "as many micro-batches on every worker"
        assert len({(tokens, targets) for _, _, tokens, targets, _ in per_worker}) == 1
        names = [name for step in per_worker for name in step[0]]
        assert per_worker[0][2] == sum(length[name] for name in names)
        assert per_worker[0][3] == sum(length[name] - 1 for name in names)
        for own, micro, *_ in per_worker:
            assert sorted(i for indices in micro for i in indices) == list(range(len(own)))
    assert Counter(name for worker in taken for step in worker for name in step[0]) == Counter(list(length))


def test_a_worker_without_rows_takes_part_with_weight_zero():
    loader = planner([chunk(0, [5])])
    loader.step(1)
    dummy = loader.load([])
    assert dummy.weight == 0.0
    assert len(dummy.targets) == 1
    real = loader.load([0])
    assert (real.weight, real.input_ids.shape, len(real.targets)) == (1.0, (1, 5), 4)


@given(n=st.integers(0, 40), size=st.integers(0, 50), seed=st.integers(0, 5))
def test_the_shuffle_buffer_loses_and_doubles_nothing(n, size, seed):
    rows = list(range(n))
    first = list(_shuffled(iter(rows), size, np.random.default_rng(seed)))
    assert sorted(first) == rows
    assert first == list(_shuffled(iter(rows), size, np.random.default_rng(seed)))
    assert size or first == rows


def test_epochs_are_shuffled_differently():
    steps = take(planner([chunk(0, [5] * 40)], buffer=40, batch=40), 2)
    assert steps[0][0] != steps[1][0]
    assert sorted(steps[0][0]) == sorted(steps[1][0])


@pytest.mark.parametrize("done", [1, 3, 5, 8])
def test_a_resumed_stream_goes_on_with_the_same_examples(tmp_path, done):
    source = [chunk(0, [5] * 10), chunk(10, [9] * 7)]
    loader = planner(source, buffer=6)
    before = take(loader, done)
    for name, text in loader.files().items():
        (tmp_path / name).write_text(text)
    expected = take(loader, 6)
    again = planner(source, buffer=6)
    again.restore(tmp_path)
    assert take(again, 6) == expected
    assert before


def test_what_was_left_out_is_said_at_the_end_of_the_epoch():
    said = []
    source = [chunk(0, [5] * 3, too_long=[("row-9", 99)]), chunk(3, [5], rejected=["row-7", "row-8"])]
    take(planner(source, say=said.append), 2)
    assert said == [
        "epoch 1 of the stream: 4 examples, each once; left out: 2 rows rejected by the task, 1 over data.max_length, "
        "0 without a supervised token"
    ]


def test_a_stream_without_rows_is_refused():
    with pytest.raises(UserError, match="a stream with 0 usable rows of 1"):
        planner([chunk(0, [], without_loss=["row-0"])]).step(1)


def test_a_mistake_that_one_worker_meets_ends_all_of_them():
    def broken():
        yield chunk(0, [5] * 6)
        raise UserError("rows.jsonl row 6", "a row", "mend it")

    barrier, board = threading.Barrier(2), {}

    def work(rank):
        workers = Exchange(rank, 2, barrier, board)
        loader = StreamPlanner(
            lambda epoch: broken() if rank else iter([chunk(10, [5] * 20)]),
            DataConfig(max_length=32, shuffle_buffer=0),
            TrainConfig(global_batch_size=8, max_steps=9),
            workers,
            say=lambda line: None,
        )
        with pytest.raises(UserError, match="row 6"):
            take(loader, 9)
        return True

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, range(2), timeout=60)) == [True, True]
