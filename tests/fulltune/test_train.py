"""The loop alone: what it yields, when it stops, and the learning-rate schedules."""

from __future__ import annotations

import math

import pytest
import torch

from fulltune import comm, device
from fulltune.batches import Step
from fulltune.config import TrainConfig
from fulltune.train import (
    NonFinite,
    SaveDue,
    Schedule,
    StepDone,
    Stopped,
    fit,
    learning_rate,
    mean_loss,
)


class FakeEngine:
    """Counts what it is asked; every micro-batch has the loss that `losses` says."""

    device = torch.device("cpu")
    scales_loss = False

    def __init__(self, losses=(2.0, 4.0), norm=0.5):
        self.losses, self.norm, self.calls, self.rates = list(losses), norm, [], []

    def accumulate(self, batch, *, step_tokens, last):
        self.calls.append((batch, step_tokens, last))
        return torch.tensor(self.losses[batch])

    def update(self, learning_rate):
        self.rates.append(learning_rate)
        return self.norm

    def evaluate(self, batch):
        return torch.tensor(self.losses[batch])


def plan(number):
    return Step(number, number / 10, [[0], [1]], [7, 8], tokens=20, supervised_tokens=12, squared_lengths=208)


def run(engine, schedule, **options):
    return list(fit(engine, plan, lambda i: i[0], TrainConfig(), schedule, workers=comm.Workers(), **options))


def every(total, save=None, validate=None):
    return Schedule(total_steps=total, save_every=save, validate_every=validate)


def test_loss_is_the_sum_over_micro_batches_by_the_steps_supervised_tokens():
    engine = FakeEngine()
    done = run(engine, every(1))[0]
    assert isinstance(done, StepDone)
    assert done.loss == pytest.approx((2.0 + 4.0) / 12)
    assert [(b, last) for b, _, last in engine.calls] == [(0, False), (1, True)]
    assert (done.tokens, done.supervised_tokens, done.padded_tokens, done.squared_lengths) == (20, 12, 0, 208)


class SlowEngine(FakeEngine):
    """On CUDA calls return at once and the work ends later: here time passes only while somebody waits."""

    def __init__(self, clock):
        super().__init__()
        self.clock, self.pending = clock, 0.0

    def accumulate(self, batch, *, step_tokens, last):
        self.pending += 2.0
        return super().accumulate(batch, step_tokens=step_tokens, last=last)

    def update(self, learning_rate):
        self.pending += 1.0
        return super().update(learning_rate)

    def synchronize(self, target):
        assert target == self.device
        self.clock[0] += self.pending
        self.pending = 0.0


def test_seconds_are_taken_when_the_device_is_idle(monkeypatch):
    clock = [0.0]
    engine = SlowEngine(clock)
    monkeypatch.setattr(device, "synchronize", engine.synchronize)
    monkeypatch.setattr(device.time, "perf_counter", lambda: clock[0])
    for done in run(engine, every(2)):
        if isinstance(done, StepDone):
            assert (done.data_seconds, done.compute_seconds, done.update_seconds) == (0.0, 4.0, 1.0)


def test_events_come_in_order_and_the_last_step_is_saved():
    events = run(FakeEngine(), every(3, save=2, validate=2), validate=lambda: (1.5, 9))
    names = [(type(e).__name__, e.step) for e in events]
    assert names == [
        ("StepDone", 1),
        ("StepDone", 2),
        ("Validated", 2),
        ("SaveDue", 2),
        ("StepDone", 3),
        ("Validated", 3),
        ("SaveDue", 3),
    ]


def test_a_stop_is_taken_after_the_step_and_saved_first():
    events = run(FakeEngine(), every(9), stop_requested=lambda: True)
    assert [type(e) for e in events] == [StepDone, SaveDue, Stopped]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_before_the_update(bad):
    engine = FakeEngine(losses=(2.0, bad))
    with pytest.raises(NonFinite, match=r"step 1 .*\[7, 8\]") as error:
        run(engine, every(3))
    assert engine.rates == []
    assert error.value.example_indices == [7, 8]


def test_a_gradient_that_is_not_finite_ends_the_run():
    with pytest.raises(NonFinite, match="gradient norm inf at step 1"):
        run(FakeEngine(norm=math.inf), every(3))


def test_float16_goes_on_after_an_overflow_and_says_so():
    engine = FakeEngine(norm=math.inf)
    engine.scales_loss = True
    assert [e.grad_norm for e in run(engine, every(2)) if isinstance(e, StepDone)] == [None, None]


def test_resuming_starts_after_the_given_step():
    assert [e.step for e in run(FakeEngine(), every(5), first_step=4) if isinstance(e, StepDone)] == [4, 5]


def test_validation_loss_is_a_mean_over_tokens():
    assert mean_loss(FakeEngine(), [0, 1], 3, comm.Workers()) == (2.0, 3)


def rates(total=10, **settings):
    train = TrainConfig(learning_rate=1.0, **settings)
    return [learning_rate(train, step, total) for step in range(1, total + 1)]


def test_linear_warms_up_and_decays():
    values = rates(warmup_steps=3)
    assert values[:4] == [0.25, 0.5, 0.75, 1.0]
    assert values[4:] == pytest.approx([6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7])


def test_the_floor_is_kept():
    assert rates(min_lr_ratio=0.1)[-1] == pytest.approx(0.1 + 0.9 * 0.1)


def test_cosine_and_constant():
    cosine = rates(lr_scheduler="cosine")
    assert cosine[0] == 1.0
    assert cosine[5] == pytest.approx(0.5)
    assert all(a > b > 0 for a, b in zip(cosine, cosine[1:], strict=False))
    assert rates(lr_scheduler="constant") == [1.0] * 10
