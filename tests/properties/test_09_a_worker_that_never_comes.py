"""Workers that disagree are told before the first collective that depends on it; one that never comes ends the wait
with the name of the step, not with a hang."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.extended]  # most of it is waiting


@pytest.fixture(scope="module")
def hang(tiny, launch, tmp_path_factory):
    out = tmp_path_factory.mktemp("hang")
    return launch("hang", 2, base=tiny.base, model=tiny.model, tokens=tiny.tokens, out=out, timeout_s=15)


def test_workers_with_other_settings_are_told_apart_on_every_worker(hang):
    for rank in hang:
        assert rank["disagreed"].startswith(
            "Disagreement: workers disagree on train.seed: 2 on worker 0, 1 on worker 1"
        )


def test_a_time_out_names_the_step(hang):
    waiting, late = hang
    assert waiting["late"] == (
        "CollectiveTimeout: worker 0 was in step 2 when a collective timed out; another worker never came"
    )
    assert "worker 1 was in step 2" in late["late"]


def test_a_wait_that_lasts_is_told_before_it_times_out(hang):
    assert [line for line in hang[0]["said"] if line.startswith("worker 0 has been in step 2 for ")]
