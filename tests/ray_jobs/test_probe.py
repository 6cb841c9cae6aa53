"""`fulltune probe` answers with the engine it is told to, and refuses one that is not installed before Ray starts."""

from __future__ import annotations

import importlib.util

import pytest

from evaluation.intervals import estimate
from evaluation.probe import Point, Verdict
from ray_jobs import cluster, probe
from ray_jobs.cli import main

COMMAND = ["probe", "--task", "viggo", "--model", "a/folder"]


@pytest.mark.parametrize("engine", ["hf", "hf-static", "hf-paged", "vllm"])
def test_the_engine_reaches_every_request_of_the_curve(engine, tmp_path, monkeypatch, capsys):
    asked = []

    def record(request, out, **_):
        asked.append(request)
        point = Point(0, estimate([1.0], "proportion"), estimate([0.0], "proportion"))
        return probe.Probe(Verdict("exact", (point,), None, 0, None, None, False, False, ()), out)

    monkeypatch.setattr(probe, "probe", record)
    assert main([*COMMAND, "--engine", engine, "--out", str(tmp_path), "--json"]) == 0
    assert [request.engine for request in asked] == [engine]


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_an_engine_that_is_not_installed_is_refused_before_ray_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "connected", lambda: pytest.fail("Ray was started"))
    assert main([*COMMAND, "--engine", "vllm", "--out", str(tmp_path)]) == 2
    assert "fulltune[vllm]" in capsys.readouterr().err


def test_an_unknown_engine_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as ended:
        main([*COMMAND, "--engine", "hff"])
    assert ended.value.code == 2
    assert "hf-static" in capsys.readouterr().err
