"""metrics.jsonl: cut back on resume, every n-th step, robust to a torn last line."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace

import pytest

from fulltune import architectures, metrics
from fulltune.meter import Meter, Spent
from fulltune.plan import shape
from fulltune.train import Skipped, Spiked, StepDone, Validated
from tasks.base import UserError

METER = Meter(
    shape=shape.of(architectures.load("llama2_7b")), workers=4, total_steps=10, on_gpu=True, peak_flops=312e12
)


def done(step):
    return StepDone(step, 0.5, 1.25, 1e-4, 0.7, tokens=100, supervised_tokens=40, padded_tokens=0,
                    squared_lengths=5000, data_seconds=0.1, compute_seconds=0.3, update_seconds=0.1)  # fmt: skip


def log_of(run, **options):
    return metrics.MetricsLog(run, meter=METER, began=time.perf_counter(), **options)


def test_a_resumed_log_has_every_step_once(tmp_path):
    first = log_of(tmp_path, keep_to=0)
    for step in (1, 2, 3):
        first.step(done(step))
    first.validated(Validated(3, 2.0, 10))
    second = log_of(tmp_path, keep_to=2)
    second.step(done(3))
    lines = list(metrics.read(tmp_path))
    assert [(line["step"], line["attempt"]) for line in lines] == [(1, 1), (2, 1), (3, 2)]
    assert lines[0]["tokens_per_s"] == 200.0
    wanted = {"step", "loss", "lr", "grad_norm", "tokens", "supervised_tokens", "padded_tokens", "tokens_per_s", "mfu"}
    assert wanted | {"epoch", "attempt", "time"} <= set(lines[0])
    worth = {"gpu_hours", "gpu_hours_to_go", "cost_usd", "cost_usd_to_go", "seconds_to_go", "supervised_tokens_per_s"}
    parts = {"data_seconds", "compute_seconds", "update_seconds"}
    assert worth | parts | {"padded_tokens_per_s"} <= set(lines[0])


@pytest.mark.parametrize(("device", "mfu"), [("cpu", False), ("NVIDIA A100-SXM4-80GB", True)])
def test_a_line_says_which_type_of_device_its_mfu_is_of(tmp_path, device, mfu):
    figures = replace(METER, device=device, peak_flops=312e12 if mfu else None)
    metrics.MetricsLog(tmp_path, meter=figures, began=time.perf_counter(), keep_to=0).step(done(1))
    (line,) = metrics.read(tmp_path)
    assert (line["device"], line["mfu"] is not None) == (device, mfu)


def test_hours_of_earlier_attempts_stay_on_the_bill(tmp_path):
    (tmp_path / metrics.FILE).write_text(json.dumps({"step": 1, "hours": 2.0, "gpu_hours": 8.0}) + "\n")
    log_of(tmp_path, keep_to=0).step(done(1))
    (line,) = metrics.read(tmp_path)
    assert line["hours"] == pytest.approx(2.0, abs=0.01)
    assert line["gpu_hours"] == pytest.approx(8.0, abs=0.04)


@pytest.mark.parametrize("workers", [8, 16, 32])
def test_a_run_that_goes_on_with_other_workers_keeps_what_it_has_spent(tmp_path, workers):
    """Two attempts on 16 GPUs came before; the second one's last step will be taken again, and was paid for."""
    lines = [
        {"step": 1, "hours": 4.0, "gpu_hours": 64.0, "cost_usd": 128.0},
        {"step": 1, "valid_loss": 2.0},
        {"step": 2, "hours": 10.0, "gpu_hours": 160.0, "cost_usd": 320.0},
    ]
    (tmp_path / metrics.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures = replace(METER, workers=workers, usd_per_hour=3.0)
    log = metrics.MetricsLog(tmp_path, meter=figures, began=time.perf_counter() - 3600, keep_to=1)
    log.step(done(2))
    last = list(metrics.read(tmp_path))[-1]
    assert last["hours"] == pytest.approx(11.0, abs=0.01)
    assert last["gpu_hours"] == pytest.approx(160 + workers, abs=0.3)
    assert last["cost_usd"] == pytest.approx(320 + 3 * workers, abs=1)


@dataclass
class Clock:
    """Hours that pass when a test says so."""

    now: float = 0.0

    def perf_counter(self):
        return self.now * 3600

    def time(self):
        return self.now * 3600


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(metrics, "time", made)
    return made


SIXTEEN = replace(METER, workers=16, total_steps=1000, usd_per_hour=2.0)


def attempt(run, clock, *, loading=0.0, keep_to, meter=SIXTEEN, every=1):
    """The log of an attempt that took so many hours to load."""
    began = clock.perf_counter()
    clock.now += loading
    return metrics.MetricsLog(run, meter=meter, began=began, keep_to=keep_to, every=every)


def ten_hours(run, clock):
    """95 steps on 16 GPUs at $2: 160 GPU-hours, $320. The checkpoint is at step 50."""
    log = attempt(run, clock, keep_to=0)
    for step in range(1, 96):
        clock.now += 10 / 95
        log.step(done(step))


def last_bill(run):
    line = list(metrics.read(run))[-1]
    return line["hours"], line["gpu_hours"], line["cost_usd"]


def test_an_attempt_that_dies_before_it_logs_loses_nothing_of_what_was_paid(tmp_path, clock):
    ten_hours(tmp_path, clock)
    assert last_bill(tmp_path) == (10.0, 160.0, 320.0)
    attempt(tmp_path, clock, loading=0.5, keep_to=50)  # killed in its first step
    assert [line["step"] for line in metrics.read(tmp_path)] == list(range(1, 51)), "the log is cut back as ever"
    third = attempt(tmp_path, clock, keep_to=50)
    clock.now += 0.25
    third.step(done(51))
    assert last_bill(tmp_path) == pytest.approx((10.75, 172.0, 344.0))


def test_steps_that_are_not_logged_are_paid_for(tmp_path, clock):
    """Every tenth is logged; the attempt is killed in the one before."""
    log = attempt(tmp_path, clock, keep_to=0, every=10)
    for step in range(1, 10):
        clock.now += 0.5
        log.step(done(step))
    log.validated(Validated(9, 2.0, 10))
    clock.now += 1.0
    log.validated(Validated(9, 2.0, 10))
    log = attempt(tmp_path, clock, keep_to=0)
    log.step(done(1))
    assert last_bill(tmp_path) == (5.5, 88.0, 176.0)


def test_a_log_that_is_closed_has_paid_up_to_then(tmp_path, clock):
    log = attempt(tmp_path, clock, keep_to=0, every=10)
    clock.now += 0.001
    log.close()
    assert metrics.charge(tmp_path, SIXTEEN, 0.0).hours == 0.001


def test_the_bill_is_written_before_the_log_is_cut(tmp_path, clock, monkeypatch):
    ten_hours(tmp_path, clock)
    monkeypatch.setattr(metrics, "next_attempt", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attempt(tmp_path, clock, loading=1.0, keep_to=50)
    (tmp_path / metrics.FILE).unlink()
    assert metrics.charge(tmp_path, SIXTEEN, 0.0) == Spent(11.0, 176.0, 352.0)


@pytest.mark.parametrize("kind", [MemoryError, UserError])
def test_hours_of_loading_are_paid_for_where_it_fails(tmp_path, clock, kind):
    ten_hours(tmp_path, clock)
    began, clock.now = clock.perf_counter(), clock.now + 0.5
    with pytest.raises(kind), metrics.paid_for(tmp_path, lambda: SIXTEEN, began):
        raise kind("got", "wanted", "fix")
    assert metrics.charge(tmp_path, SIXTEEN, 0.0) == Spent(10.5, 168.0, 336.0)


def test_an_error_while_loading_is_not_hidden_by_one_of_the_bill(tmp_path, clock):
    with pytest.raises(MemoryError), metrics.paid_for(tmp_path, lambda: 1 / 0, clock.perf_counter()):
        raise MemoryError


@pytest.mark.parametrize("between", [{"usd_per_hour": None}, {"on_gpu": False}])
def test_cost_stays_on_the_bill_over_an_attempt_without_a_price(tmp_path, clock, between):
    """An attempt on a type without a price, or on CPUs, came between; unpriced hours have the price of the last."""
    ten_hours(tmp_path, clock)
    for _ in range(2):
        attempt(tmp_path, clock, loading=0.5, keep_to=50, meter=replace(SIXTEEN, **between))
    log = attempt(tmp_path, clock, keep_to=50, meter=replace(SIXTEEN, usd_per_hour=1.0))
    clock.now += 1.0
    log.step(done(51))
    unpriced = 0 if "on_gpu" in between else 16
    assert last_bill(tmp_path) == pytest.approx((12.0, 160 + 16 + unpriced, 320 + 16 + unpriced))


def test_a_full_disk_does_not_end_the_run_for_its_bill(tmp_path, clock):
    log = attempt(tmp_path, clock, keep_to=0, every=10)
    (tmp_path / metrics.SPENT).unlink()
    (tmp_path / metrics.SPENT).mkdir()
    clock.now += 1.0
    log.step(done(1))


def test_a_line_that_a_full_disk_cut_short_is_no_bill(tmp_path, clock):
    log = attempt(tmp_path, clock, keep_to=0)
    clock.now += 3600.0
    log.close()
    paid = max(json.loads(line)["hours"] for line in (tmp_path / metrics.SPENT).read_text().splitlines())
    with (tmp_path / metrics.SPENT).open("a") as handle:
        handle.write('{"hours": 9.0, "gpu' + '{"hours": 9.5}\n')
    assert metrics.charge(tmp_path, METER, 0.0).hours == paid >= 1.0


def test_the_bills_of_many_attempts_stay_few_lines(tmp_path, clock):
    for _ in range(5):
        log = attempt(tmp_path, clock, loading=1.0, keep_to=0)
        log.close()
    assert len((tmp_path / metrics.SPENT).read_text().splitlines()) <= 4


def test_what_is_to_go_follows_from_the_time_per_step_of_this_attempt(tmp_path, monkeypatch):
    now = iter([100.0, 140.0])  # when the first step starts, when the second one is done
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(now))
    log = metrics.MetricsLog(tmp_path, meter=METER, began=40.0, keep_to=0)
    log.step(done(2))
    (line,) = metrics.read(tmp_path)
    assert line["hours"] == pytest.approx(100 / 3600, abs=1e-5)
    assert line["seconds_to_go"] == 8 * 20.0


def test_only_every_nth_step_is_logged(tmp_path):
    log = log_of(tmp_path, keep_to=0, every=2)
    for step in range(1, 6):
        log.step(done(step))
    assert [line["step"] for line in metrics.read(tmp_path)] == [2, 4]


def test_a_torn_last_line_is_left_out(tmp_path):
    (tmp_path / metrics.FILE).write_text('{"step": 1}\n{"step": 2')
    assert list(metrics.read(tmp_path)) == [{"step": 1}]


def test_no_log_has_no_lines(tmp_path):
    assert list(metrics.read(tmp_path)) == []


def test_skipped_steps_are_counted_up_to_the_step_that_is_resumed_from(tmp_path):
    log = log_of(tmp_path, keep_to=0, every=100)
    for step in (3, 5, 9):
        log.skipped(Skipped(step, "loss", float("nan"), [1]))
    log.spiked(Spiked(9, 12.0, 2.0))
    lines = list(metrics.read(tmp_path))
    assert lines[0].items() >= {"step": 3, "skipped": "loss", "value": "nan", "attempt": 1}.items()
    assert lines[3].items() >= {"step": 9, "spike": 12.0, "usual_loss": 2.0, "attempt": 1}.items()
    assert metrics.skips(tmp_path, until=5) == 2
    assert metrics.skips(tmp_path / "new", until=5) == 0
