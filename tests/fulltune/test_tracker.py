"""TensorBoard's event files hold what metrics.jsonl holds, whatever became of earlier attempts."""

from __future__ import annotations

import struct
import time

from tensorboardX.proto.event_pb2 import Event

from fulltune import metrics, tracker
from fulltune.validation import Outcome


def points(run):
    """(tag, step) -> value of every event file, read as TensorBoard reads them: records with length and checksums."""
    found = {}
    for file in sorted((run / tracker.FOLDER).glob("events.*")):
        content, place = file.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            event = Event.FromString(content[place + 12 : place + 12 + length])
            place += 12 + length + 4
            for value in event.summary.value:
                assert (value.tag, event.step) not in found, "a point is there twice"
                found[value.tag, event.step] = round(value.simple_value, 4)
    return found


LINES = (
    {"step": 1, "loss": 2.5, "lr": 0.1, "mfu": None, "attempt": 1, "time": time.time()},
    {"step": 1, "valid_loss": 3.0, "attempt": 1, "time": time.time()},
    {"step": 1, "validation": {"exact": 0.25}, "validation_rows": 8, "validation_started": 1.0, "attempt": 1},
    {"step": 2, "skipped": "loss", "value": "nan", "attempt": 1, "time": time.time()},
    {"step": 2, "validation": {"failed": "OutOfMemoryError"}, "attempt": 1},
)


def test_every_number_is_a_point_and_nothing_else_is(tmp_path):
    tracker.draw(tmp_path, LINES).close()
    wanted = {("train/loss", 1): 2.5, ("train/lr", 1): 0.1, ("valid/loss", 1): 3.0, ("validation/exact", 1): 0.25}
    assert points(tmp_path) == wanted


def test_a_resumed_run_has_every_step_once_and_nothing_that_was_undone(tmp_path):
    first = tracker.draw(tmp_path, [])
    for step in (1, 2, 3):
        first.add({"step": step, "loss": float(step)})
    first.close()
    second = tracker.draw(tmp_path, [{"step": 1, "loss": 1.0}])
    second.add({"step": 2, "loss": 20.0})
    second.close()
    assert points(tmp_path) == {("train/loss", 1): 1.0, ("train/loss", 2): 20.0}


def test_validations_that_came_in_last_are_drawn_as_well(tmp_path):
    (tmp_path / metrics.FILE).write_text('{"step": 1, "loss": 2.0}\n')
    outcome = Outcome(1, "done", 1.0, 2.0, n=4, metrics={"exact": 0.5})
    metrics.add_outcomes(tmp_path, [outcome], tensorboard=True)
    assert points(tmp_path) == {("train/loss", 1): 2.0, ("validation/exact", 1): 0.5}
