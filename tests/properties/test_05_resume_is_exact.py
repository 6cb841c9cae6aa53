"""Property 5, at the same number of workers: a run that is cut and started again draws the curve of the uncut run, to
the last bit. (`test_kills.py` under tests/ray_jobs does it with SIGKILL under Ray.)"""

from __future__ import annotations

import shutil

import pytest

from fulltune import checkpoint, metrics, session
from tasks.base import UserError


def curve(folder):
    return [
        (r["step"], float(r["loss"]).hex(), float(r["grad_norm"]).hex()) for r in metrics.read(folder) if "loss" in r
    ]


@pytest.mark.parametrize(("workers", "stage"), [(1, 0), (2, 1), (2, 2), (2, 3)])
def test_losses_after_a_restart_are_bit_identical(tiny, launch, tmp_path, workers, stage):
    common = {"base": tiny.base, "model": tiny.model, "tokens": tiny.tokens}
    changes = {"deepspeed": f"zero{stage}", "train__max_steps": 12, "checkpoint__every_steps": 8}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    launch("session", workers, **common, out=whole, changes=changes)
    # the cut run has the state after step 8, and has logged a step that it will take again
    shutil.copytree(whole, cut, dirs_exist_ok=True)
    shutil.rmtree(cut / "checkpoints" / "step-00000012")
    (cut / "checkpoints" / "pointer.json").write_text('{"step": 8}')
    (first, *_) = launch("session", workers, **common, out=cut, changes=changes)
    assert first["finished"]
    assert any("resuming after step 8" in line for line in first["said"])
    assert len(curve(whole)) == 12
    assert curve(cut) == curve(whole)


def test_other_settings_do_not_resume(tmp_path):
    found = checkpoint.Found(path=tmp_path / "step-00000001", step=1, meta={"fingerprint": {"train": {"seed": 1}}})
    session.refuse_other_run(found, {"train": {"seed": 1}})
    with pytest.raises(UserError, match=r"train\.seed: 1 -> 2"):
        session.refuse_other_run(found, {"train": {"seed": 2}})
