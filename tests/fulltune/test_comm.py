"""What workers tell each other, with threads in place of processes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from fulltune import comm
from tasks.base import UserError

_SPEC = importlib.util.spec_from_file_location("workers", Path(__file__).with_name("workers.py"))
helpers = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(helpers)


def test_all_workers_get_every_result():
    results = helpers.together(3, lambda member: comm.agreed(member, lambda: member.rank * 10))
    assert results == [[0, 10, 20]] * 3


@pytest.mark.parametrize("wrong", [0, 2])
def test_a_mistake_on_one_worker_is_raised_on_all_and_nobody_waits(wrong):
    def work(member):
        def check():
            if member.rank == wrong:
                raise UserError("this GPU", "bfloat16", "another dtype")

        comm.agreed(member, check)

    results = helpers.together(3, work)
    assert [type(result) for result in results] == [UserError] * 3
    assert {result.got for result in results} == {"this GPU"}
