"""Property 5: a run that is cut and started again draws the curve of the uncut run, to the last bit at the same number
of workers, and to 1e-6 at another. (Slow neighbours: more legs and arms, random kills, SIGKILL under Ray.)"""

from __future__ import annotations

import pytest

from fulltune import checkpoint, config, metrics, session
from tasks.base import UserError


def curve(folder):
    return [
        (r["step"], float(r["loss"]).hex(), float(r["grad_norm"]).hex()) for r in metrics.read(folder) if "loss" in r
    ]


# The bias correction of step 6 tells a DeepSpeedCPUAdam that went through all steps from one that was loaded
CUT_AT, STEPS = 5, 9
CPU = {"offload_optimizer": {"device": "cpu"}}
BF16 = {"model__dtype": "bfloat16"}
ALONE = {"zero0": {"deepspeed": "zero0"}}
PAIR = (
    {f"zero{stage}": {"deepspeed": f"zero{stage}"} for stage in (1, 2, 3)}
    | {f"zero{stage}-offload": {"deepspeed": {"zero_optimization": {"stage": stage} | CPU}} for stage in (1, 2, 3)}
    | {f"zero{stage}-bf16": {"deepspeed": f"zero{stage}"} | BF16 for stage in (1, 2, 3)}
)
# what the recipes for 70B train under
PAIR |= {f"zero{stage}-offload-bf16": PAIR[f"zero{stage}-offload"] | BF16 for stage in (2, 3)}


@pytest.fixture(scope="module")
def runs(tiny, launch, tmp_path_factory):
    """The folder of whole and restarted runs: ZeRO-0 alone, ZeRO 1-3 with two workers."""
    out = tmp_path_factory.mktemp("resume")
    changes = {"train__max_steps": STEPS, "checkpoint__every_steps": CUT_AT}
    common = {"base": tiny.base, "model": tiny.model, "tokens": tiny.tokens, "out": out, "changes": changes}
    pair = launch("resume", 2, **common, cut_at=CUT_AT, runs=PAIR)
    fewer = {name: PAIR[name] for name in ("zero2", "zero3")}
    (alone,) = launch("resume", 1, **common, cut_at=CUT_AT, runs=ALONE, of_more_workers=fewer)
    return out, alone["said"] | pair[0]["said"]


@pytest.mark.parametrize("name", [*ALONE, *PAIR])
def test_losses_after_a_restart_are_bit_identical(runs, name):
    out, said = runs
    assert said[f"whole-{name}"] == []
    assert said[f"cut-{name}"] == [f"resuming after step {CUT_AT}"]
    assert len(curve(out / f"whole-{name}")) == STEPS
    assert curve(out / f"cut-{name}") == curve(out / f"whole-{name}")
    attempts = [record["attempt"] for record in metrics.read(out / f"cut-{name}")]
    assert attempts == [1] * CUT_AT + [2] * (STEPS - CUT_AT), "steps after the checkpoint must have been taken again"


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_one_worker_goes_on_where_two_stopped(runs, name):
    out, _ = runs
    expected, got = ({s: float.fromhex(loss) for s, loss, _ in curve(out / f"{n}-{name}")} for n in ("whole", "fewer"))
    attempts = [record["attempt"] for record in metrics.read(out / f"fewer-{name}")]
    assert attempts == [1] * CUT_AT + [2] * (STEPS - CUT_AT)
    assert got == pytest.approx(expected, rel=1e-6)


def test_other_settings_do_not_resume(tmp_path):
    found = checkpoint.Found(
        path=tmp_path / "step-00000001", step=1, workers=1, meta={"fingerprint": {"train": {"seed": 1}}}
    )
    session.refuse_other_run(found, {"train": {"seed": 1}})
    with pytest.raises(UserError, match=r"train\.seed: 1 -> 2"):
        session.refuse_other_run(found, {"train": {"seed": 2}})


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"deepspeed": "zero3"}, "zero_stage"),
        ({"model": {"dtype": "bfloat16"}}, "dtype"),
        ({"train": {"learning_rate": 1.0}}, "train"),
    ],
)
def test_the_fingerprint_sees_what_matters(tiny, change, key):
    inputs = session.Inputs(tiny.model, tiny.tokens, None, tiny.out)
    base = config.resolve(tiny.base, origin="test")
    changed = config.resolve(
        tiny.base | {k: (tiny.base[k] | v if isinstance(v, dict) else v) for k, v in change.items()}, ""
    )
    was, now = (session.fingerprint(c, inputs) for c in (base, changed))
    assert {name for name in was if was[name] != now[name]} == {key}
