"""The work of a run: which rows count, how they are packed where their lengths are known, and bounds where not."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from fulltune import config, packing
from fulltune.batches import StepPlanner
from fulltune.packing import pack
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


def rows(kind: str) -> Lengths:
    """Seeded sets of 5,000 rows: like SQL's, of short and long rows, and with supervised shares from none to all."""
    random = np.random.default_rng(0)
    if kind == "short and long":
        tokens = random.choice([60, 590], 5000, p=[0.7, 0.3])
        return Lengths(tokens, np.where(tokens > 100, tokens - 50, 6), "counted", known=True)
    mean, spread = {"sql": (79, 0.36), "uneven": (150, 0.8)}[kind]
    tokens = np.clip(random.lognormal(np.log(mean), spread, 5000), 10, 600).astype(int)
    share = 0.42 if kind == "sql" else random.uniform(0.02, 1, 5000)
    return Lengths(tokens, np.maximum(1, share * tokens).astype(int), "counted", known=True)


def of(batch: int, workers: int, budget: int):
    tree = recipe().model_dump(mode="json")
    tree["train"] |= {"global_batch_size": batch, "micro_batch_tokens": budget, "num_epochs": 3}
    return config.resolve(tree | {"ray": {"num_workers": workers, "name": "test"}}, origin="test")


class Table:
    """The part of a TokenTable that planning reads."""

    def __init__(self, lengths: Lengths) -> None:
        self.lengths, self.supervised = lengths.tokens, lengths.supervised

    def __len__(self) -> int:
        return len(self.lengths)


CLUSTERS = [(384, 16, 2048), (320, 16, 4096), (256, 4, 4096), (256, 16, 1024), (128, 8, 8192)]


@pytest.mark.parametrize(("batch", "workers", "budget"), CLUSTERS)
@pytest.mark.parametrize("kind", ["sql", "short and long", "uneven"])
def test_known_lengths_are_planned_as_the_run_packs_them(kind, batch, workers, budget):
    """Against all steps of three epochs, of which the plan samples the first 20."""
    known, made = rows(kind), of(batch, workers, budget)
    planned = workload.workload(made, known)
    planners = [StepPlanner(Table(known), made.train, True, rank, workers) for rank in range(workers)]
    passes, most, longest = [], 0, 0
    for number in range(1, planned.steps + 1):
        shares = [planner.step(number).micro_batches for planner in planners]
        passes.append(len(shares[0]))
        most = max(most, *(int(known.supervised[micro].sum()) for share in shares for micro in share))
        longest = max(longest, *(int(known.tokens[micro].sum()) for share in shares for micro in share))
    assert planned.micro_batches == pytest.approx(np.mean(passes), rel=0.1)
    assert planned.largest.supervised >= most
    assert longest <= planned.largest.tokens <= 1.5 * longest


def test_a_short_last_step_of_an_epoch_is_not_taken_for_the_fewest_passes_of_a_full_one():
    """2,600 rows are ten steps of 256 and one of 40, which takes a single pass: full steps take two."""
    counts = np.random.default_rng(0).integers(60, 221, 2600)
    known, made = Lengths(counts, counts // 2, "counted", known=True), of(256, 4, 8192)
    planner = StepPlanner(Table(known), made.train, True, 0, 4)
    packs = [planner.step(number).micro_batches for number in range(1, 11)]
    longest = max(int(counts[micro].sum()) for micros in packs for micro in micros)
    assert longest <= workload.workload(made, known).largest.tokens <= 1.25 * longest < 8192


def test_passes_are_a_mean_and_not_the_least():
    """Loads about the capacity: some steps take a second pass, all of them where rows do not fill it."""
    halves = Lengths(np.full(640, 600), np.full(640, 300), "counted", known=True)
    assert workload.workload(of(64, 4, 1000), halves).micro_batches == 16, "ceil(9.6) if they could be cut"
    assert 1 < workload.workload(of(384, 16, 2048), rows("sql")).micro_batches < 2
    unknown = replace(rows("sql"), known=False)
    assert workload.workload(of(384, 16, 2048), unknown).micro_batches == 1


def test_a_second_plan_packs_nothing(monkeypatch):
    known = rows("sql")
    first = workload.workload(of(256, 16, 2048), known)
    monkeypatch.setattr(packing, "pack", None)
    assert workload.workload(of(256, 16, 2048), known) == first


def test_a_plan_needs_no_torch():
    code = "import sys, fulltune.plan.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
