"""Spikes by median and deviation, faulty steps by record, and errors that name their phase."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest

from fulltune import guards
from fulltune.train import Skipped


def spikes(losses, window=20, threshold=5.0):
    watch = guards.SpikeWatch(window, threshold)
    return [place for place, loss in enumerate(losses) if watch.usual(loss) is not None]


def test_a_noisy_curve_has_no_spikes_and_an_outlier_is_one():
    noise = np.random.default_rng(0).normal(0, 0.1, 200)
    curve = list(2.0 + noise)
    assert spikes(curve) == []
    curve[100] = 4.0
    assert spikes(curve) == [100]


def test_a_falling_curve_has_none():
    assert spikes([10.0 * 0.97**i for i in range(100)]) == []


def test_one_spike_does_not_hide_the_next():
    curve = [1.0, 1.1, 1.2] * 10
    curve[20] = curve[22] = 50.0
    assert spikes(curve) == [20, 22]


def test_a_flat_curve_has_room_for_wiggles():
    assert spikes([1.0] * 20 + [1.02]) == []
    assert spikes([1.0] * 20 + [1.2]) == [20]


def test_nothing_is_unusual_before_enough_is_known():
    assert spikes([1.0, 100.0, 1.0, 1000.0]) == []


def test_the_records_of_a_faulty_step_are_written_by_id(tmp_path):
    examples = [{"id": "viggo-train-102", "row": 2}, {"id": "viggo-train-100", "row": 0}]
    file = guards.write_fault(tmp_path, Skipped(7, "loss", float("nan"), [2, 0]), examples)
    assert file.name == "nonfinite-7.json"
    assert json.loads(file.read_text()) == {"step": 7, "loss": "nan", "examples": examples}


def failing(error):
    def fail(step):
        raise error

    return fail


def test_a_time_out_names_worker_and_phase():
    phases = guards.Phases(3, limit_s=60, say=print)
    step = phases.during("step {0}", failing(RuntimeError("Timed out waiting 1800000ms for recv")))
    with pytest.raises(guards.CollectiveTimeout, match="worker 3 was in step 12"), phases.named():
        step(12)


def test_other_errors_keep_their_type_and_gain_a_note():
    phases = guards.Phases(1, limit_s=60, say=print)
    with pytest.raises(KeyError) as error, phases.named():
        phases.during("the save after step {0}", failing(KeyError("x")))(4)
    assert error.value.__notes__ == ["worker 1 was in the save after step 4"]


def test_a_phase_that_lasts_is_told_once():
    told, heard = [], threading.Event()

    def say(line):
        told.append(line)
        heard.set()

    phases = guards.Phases(0, limit_s=0.2, say=say)
    with phases.named():
        phases.enter("loading the model")
        assert heard.wait(10)
    assert told[0].startswith("worker 0 has been in loading the model for ")
