"""The memory model against published runs: those that fitted, those that ran out of memory, and how near they were."""

from __future__ import annotations

import pytest

from fulltune.plan import fits


@pytest.mark.parametrize("case", fits.cases(), ids=lambda case: case.id)
def test_the_memory_model_agrees_with_what_happened(case):
    verdict = fits.judge(case)
    assert verdict.fits == case.fits, (
        f"needs {verdict.gpu_share:.0%} of the GPU and {verdict.host_share:.0%} of the host"
    )


def test_there_are_enough_cases_of_either_kind_near_the_boundary():
    near = [case.fits for case in fits.cases() if fits.judge(case).near]
    assert len(fits.cases()) >= 12
    assert near.count(True) >= 5
    assert near.count(False) >= 5


def test_every_case_has_a_source():
    assert all(case.source for case in fits.cases())
