"""Property 5, at another number of workers: a run that goes on with fewer or more of them sees the same examples in
every step and draws the same curve, to 1e-6 relative in float32. The checkpoints are joined by DeepSpeed's converter.
"""

from __future__ import annotations

import pytest

from fulltune import metrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.extended,
    pytest.mark.timeout(1200),
]  # six processes; quick: test_05_resume_is_exact
EVERY, STEPS = 4, 12
CPU = {"offload_optimizer": {"device": "cpu"}}
RUNS = {
    "zero0": {"deepspeed": "zero0"},
    "zero1": {"deepspeed": "zero1"},
    "zero2": {"deepspeed": "zero2"},
    "zero3": {"deepspeed": "zero3"},
    "zero2-bf16": {"deepspeed": "zero2", "model__dtype": "bfloat16"},
    "zero3-bf16": {"deepspeed": "zero3", "model__dtype": "bfloat16"},
    "zero2-offload": {"deepspeed": {"zero_optimization": {"stage": 2} | CPU}},
    "zero3-offload": {"deepspeed": {"zero_optimization": {"stage": 3} | CPU}},
    "zero3-offload-bf16": {"deepspeed": {"zero_optimization": {"stage": 3} | CPU}, "model__dtype": "bfloat16"},
}
CHANGES = {
    "train__max_steps": STEPS,
    "train__weight_decay": 0.1,
    "checkpoint__every_steps": EVERY,
    "checkpoint__keep_last": 3,
    "validation__every_steps": EVERY,
}
BF16_TOLERANCE = 2e-2  # 8 bits of mantissa: gradients are rounded per worker before they are summed


@pytest.fixture(scope="module")
def legs(tiny, launch, tmp_path_factory):
    """12 steps with 2 workers; from step 4 of that with 1 worker; from step 8 of that with 3 workers."""
    out = tmp_path_factory.mktemp("elastic")
    common = {"base": tiny.base, "model": tiny.model, "tokens": tiny.tokens, "changes": CHANGES, "runs": RUNS}
    found = {}
    source = None
    for workers, back_to in ((2, None), (1, EVERY), (3, 2 * EVERY)):
        folder = out / str(workers)
        ranks = launch("elastic", workers, **common, out=folder, source=source, back_to=back_to)
        found[workers] = folder, ranks
        source = folder
    return found


def curve(folder, key):
    return {r["step"]: r[key] for r in metrics.read(folder) if "loss" in r}


def seen(ranks, name):
    """Step -> the examples that all workers loaded, sorted."""
    steps = {int(step) for rank in ranks for step in rank[name]["seen"]}
    return {step: sorted(i for rank in ranks for i in rank[name]["seen"].get(str(step), [])) for step in steps}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(("workers", "first"), [(1, EVERY + 1), (3, 2 * EVERY + 1)])
def test_the_curve_goes_on(legs, name, workers, first):
    whole, _ = legs[2]
    folder, ranks = legs[workers]
    tolerance = BF16_TOLERANCE if "bf16" in name else 1e-6
    for key in ("loss", "grad_norm"):
        expected, got = curve(whole / name, key), curve(folder / name, key)
        assert sorted(got) == list(range(1, STEPS + 1))
        assert got == pytest.approx(expected, rel=tolerance if key == "loss" else 20 * tolerance), key
    assert min(map(int, ranks[0][name]["seen"])) == first, "steps before the checkpoint must not be taken again"
    assert any(f"is taken up by {workers}" in line for line in ranks[0][name]["said"])


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("workers", [1, 3])
def test_the_validation_loss_is_that_of_any_number_of_workers(legs, name, workers):
    whole, part = (
        {r["step"]: r["valid_loss"] for r in metrics.read(legs[n][0] / name) if "valid_loss" in r} for n in (2, workers)
    )
    assert sorted(part) == [EVERY, 2 * EVERY, STEPS]
    assert part == pytest.approx(whole, rel=BF16_TOLERANCE if "bf16" in name else 1e-6)


@pytest.mark.parametrize("name", RUNS)
def test_every_step_sees_the_same_examples(legs, name):
    whole = seen(legs[2][1], name)
    assert sorted(whole) == list(range(1, STEPS + 1))
    for workers in (1, 3):
        part = seen(legs[workers][1], name)
        assert part == {step: whole[step] for step in part}


@pytest.mark.parametrize("name", [name for name in RUNS if not name.startswith("zero0")])
def test_the_joined_form_is_kept_beside_its_checkpoint(legs, name):
    folder, ranks = legs[1]
    assert (folder / name / "checkpoints" / "universal-step-00000004" / "manifest.json").exists()
    assert any("joining the shards of step-00000004" in line for line in ranks[0][name]["said"])
