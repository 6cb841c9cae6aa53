"""The same steps on a GPU and on a CPU, on two GPUs and on one, with and without offload."""

from __future__ import annotations

import pytest

STEPS = 3


def losses(launch, tiny, *, workers=1, gpu=True, **changes):
    """The first worker's findings; the loss is the same on all."""
    found = launch("losses", workers, tiny, gpu=gpu, changes=changes, steps=STEPS)
    assert all(other["loss"] == found[0]["loss"] for other in found)
    return found[0]


@pytest.fixture(scope="module")
def on_cpu(launch, tiny):
    return losses(launch, tiny, gpu=False)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 3e-2)])
def test_a_gpu_steps_as_a_cpu_does(launch, tiny, on_cpu, dtype, tolerance):
    """The CPU's float32 is the reference; bfloat16 keeps 8 bits of mantissa."""
    changes = {"model__dtype": dtype} | ({"deepspeed": "zero1"} if dtype == "bfloat16" else {})
    found = losses(launch, tiny, **changes)
    assert found["loss"] == pytest.approx(on_cpu["loss"], rel=tolerance)
    assert found["grad_norm"] == pytest.approx(on_cpu["grad_norm"], rel=10 * tolerance)


@pytest.mark.two_gpus
@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3"])
def test_two_gpus_step_as_one_does(launch, tiny, on_cpu, stage):
    found = losses(launch, tiny, workers=2, deepspeed=stage)
    assert found["loss"] == pytest.approx(on_cpu["loss"], rel=1e-4)
    assert found["grad_norm"] == pytest.approx(on_cpu["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("file", ["zero3_offload", "zero3_offload_all"])
def test_adam_on_the_host_steps_as_adam_on_the_gpu(launch, tiny, file):
    plain, offloaded = (losses(launch, tiny, model__dtype="bfloat16", deepspeed=name) for name in ("zero3", file))
    assert offloaded["loss"] == pytest.approx(plain["loss"], rel=3e-2)
    assert offloaded["loss"][-1] < offloaded["loss"][0]
