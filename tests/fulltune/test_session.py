"""A worker's part in a run that ends before the first step: what is left for the next attempt to know."""

from __future__ import annotations

import json
import time

import pytest

from fulltune import architectures, config, metrics, session


class Alone:
    """A worker of a run that never gets to a collective."""

    def __init__(self, rank):
        self.rank, self.size = rank, 2

    def agree(self, values):
        pass


@pytest.mark.parametrize(("rank", "hours"), [(0, 1.0), (1, None)])
def test_memory_that_runs_out_while_loading_is_billed_by_worker_0_alone(tmp_path, monkeypatch, rank, hours):
    tree = {"task": "viggo", "model": {"name_or_path": "some/model"}, "ray": {"name": "r"}}
    inputs = session.Inputs(model=tmp_path, train_data=tmp_path / "data", valid_data=None, run=tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(architectures.load("llama2_7b")))
    start = time.perf_counter()

    def out_of_memory(*_, **__):
        monkeypatch.setattr(time, "perf_counter", lambda: start + 3600)
        raise MemoryError

    monkeypatch.setattr(session, "build", out_of_memory)
    with pytest.raises(MemoryError):
        session.run(config.resolve(tree, origin="test"), inputs, Alone(rank), say=print)
    file = tmp_path / metrics.SPENT
    found = json.loads(file.read_text())["hours"] if file.exists() else None
    assert found == (hours and pytest.approx(hours, abs=0.01))
