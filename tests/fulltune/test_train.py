"""The loop alone: what it yields, when it stops, and the learning-rate schedules."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import get_scheduler

from fulltune import comm, device
from fulltune.batches import Step
from fulltune.config import TrainConfig
from fulltune.guards import SpikeWatch
from fulltune.train import (
    NonFinite,
    SaveDue,
    Schedule,
    Skipped,
    Spiked,
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
def test_a_loss_that_is_not_finite_ends_the_run_with_weights_as_they_were(bad):
    engine = FakeEngine(losses=(2.0, bad), norm=math.nan)
    with pytest.raises(NonFinite, match=r"step 1 .*\[7, 8\]") as error:
        run(engine, every(3))
    assert error.value.example_indices == [7, 8]


def skipping(max_skips):
    return TrainConfig(on_nonfinite="skip", max_skips=max_skips)


def test_skipped_steps_are_events_and_saves_stay_due():
    engine = FakeEngine(losses=(2.0, math.nan), norm=math.nan)
    events = list(fit(engine, plan, lambda i: i[0], skipping(2), every(2, save=1), workers=comm.Workers()))
    assert [(type(e), e.step) for e in events] == [(Skipped, 1), (SaveDue, 1), (Skipped, 2), (SaveDue, 2)]
    assert (events[0].what, events[0].example_indices) == ("loss", [7, 8])


def test_one_skip_too_many_ends_the_run_and_earlier_ones_count():
    engine = FakeEngine(norm=math.inf)
    events = fit(engine, plan, lambda i: i[0], skipping(3), every(9), workers=comm.Workers(), skipped=2)
    assert isinstance(next(events), Skipped)
    with pytest.raises(NonFinite, match="gradient norm inf at step 2"):
        next(events)


def spiking(**settings):
    """Twelve calm steps, then a loss ten times as high, then calm again."""
    engine = FakeEngine()
    losses = iter([2.0 + 0.01 * (i % 3) for i in range(12)] + [20.0] + [2.0] * 7)
    engine.accumulate = lambda batch, **_: torch.tensor(12 * next(losses) if batch == 0 else 0.0)
    train = TrainConfig(**settings)
    return list(fit(engine, plan, lambda i: i[0], train, every(20), workers=comm.Workers()))


def test_a_loss_spike_is_an_event_and_training_goes_on():
    events = spiking()
    (spike,) = [e for e in events if isinstance(e, Spiked)]
    assert (spike.step, spike.loss) == (13, pytest.approx(20.0))
    assert spike.usual == pytest.approx(2.01)
    assert events[-1] == SaveDue(20, last=True)


def test_a_loss_spike_stops_the_run_if_wished():
    assert [type(e) for e in spiking(on_loss_spike="stop")[-3:]] == [Spiked, SaveDue, Stopped]


def test_a_stop_in_the_last_step_is_no_stop_and_every_save_knows_whether_it_is_the_last():
    events = run(FakeEngine(), every(2, save=1))
    assert [e.last for e in events if isinstance(e, SaveDue)] == [False, True]
    asked = iter([False, True])
    events = run(FakeEngine(), every(2), stop_requested=lambda: next(asked))
    assert [type(e) for e in events] == [StepDone, StepDone, SaveDue]
    assert run(FakeEngine(), every(9), stop_requested=lambda: True)[1].last


def test_a_resumed_run_judges_by_the_losses_before_it():
    engine = FakeEngine(losses=(12 * 20.0, 0.0))
    watch = SpikeWatch(50, 6.0, [2.0 + 0.01 * (i % 3) for i in range(12)])
    first = list(fit(engine, plan, lambda i: i[0], TrainConfig(), every(1), workers=comm.Workers(), watch=watch))[1]
    assert isinstance(first, Spiked)
    assert watch.losses[-1] == pytest.approx(20.0)


def test_spikes_are_not_looked_for_without_a_window():
    assert not [e for e in spiking(spike_window=0) if isinstance(e, Spiked)]


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


def theirs(name, total, **arguments):
    """transformers' schedule for a peak of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_scheduler(name, optimizer, num_training_steps=total, **arguments)
    return [schedule.lr_lambdas[0](step) for step in range(total)]


@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize(
    ("ours", "name", "extra"),
    [
        ({"lr_scheduler": "linear"}, "linear", {}),
        ({"lr_scheduler": "cosine"}, "cosine", {}),
        ({"lr_scheduler": "cosine", "min_lr_ratio": 0.1}, "cosine_with_min_lr", {"min_lr_rate": 0.1}),
        ({"lr_scheduler": "constant"}, "constant_with_warmup", {}),
        ({"lr_scheduler": "inverse_sqrt"}, "inverse_sqrt", {}),
        ({"lr_scheduler": "wsd", "decay_steps": 7}, "warmup_stable_decay", {"num_decay_steps": 7}),
        (
            {"lr_scheduler": "wsd", "decay_steps": 7, "min_lr_ratio": 0.1},
            "warmup_stable_decay",
            {"num_decay_steps": 7, "min_lr_ratio": 0.1},
        ),
    ],
)
def test_schedules_are_those_of_transformers(ours, name, extra, warmup):
    """From the peak on; their warm-up starts at a rate of zero, ours does not waste that step."""
    expected = theirs(name, 20, num_warmup_steps=warmup, scheduler_specific_kwargs=extra)
    assert rates(total=20, warmup_steps=warmup, **ours)[warmup:] == pytest.approx(expected[warmup:])


def test_wsd_decays_over_the_last_tenth_unless_told_otherwise():
    values = rates(total=20, lr_scheduler="wsd")
    assert values[:19] == [1.0] * 19
    assert values[19] == pytest.approx(0.5)
