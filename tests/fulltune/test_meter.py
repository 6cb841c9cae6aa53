"""Rates, utilisation and the bill: by arithmetic on a model of known size."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fulltune import architectures, meter
from fulltune.plan import shape
from fulltune.plan.flops import step_flops
from fulltune.train import StepDone

LLAMA_2_7B = shape.of(architectures.load("llama2_7b"))
EVENT = StepDone(
    step=10, epoch=0.1, loss=1.0, lr=1e-5, grad_norm=1.0, tokens=4096, supervised_tokens=2048, padded_tokens=64,
    squared_lengths=8 * 512**2, data_seconds=0.1, compute_seconds=1.5, update_seconds=0.4,
)  # fmt: skip


def on_a100(**changes):
    base = meter.Meter(shape=LLAMA_2_7B, workers=8, total_steps=110, on_gpu=True, peak_flops=312e12, usd_per_hour=2.0)
    return replace(base, **changes)


def test_rates_are_per_second_of_the_whole_step():
    rates = on_a100().rates(EVENT)
    assert (rates["tokens_per_s"], rates["supervised_tokens_per_s"], rates["padded_tokens_per_s"]) == (2048, 1024, 32)


def test_mfu_counts_eight_segments_and_the_supervised_logits():
    flops = step_flops(LLAMA_2_7B, [512] * 8, supervised_tokens=2048).model
    assert on_a100().rates(EVENT)["mfu"] == pytest.approx(flops / (2.0 * 8 * 312e12), abs=1e-4)
    assert on_a100(peak_flops=None).rates(EVENT)["mfu"] is None


def test_the_bill_of_eight_gpus():
    bill = on_a100().bill(meter.Spent(), step=10, held_hours=0.5, seconds_per_step=36.0)
    assert bill == {
        "hours": 0.5, "seconds_to_go": 3600.0, "gpu_hours": 4.0, "gpu_hours_to_go": 8.0, "cost_usd": 8.0,
        "cost_usd_to_go": 16.0,
    }  # fmt: skip


@pytest.mark.parametrize("workers", [8, 32])
def test_what_other_numbers_of_gpus_cost_before_is_carried_forward(workers):
    """After 10 hours on 16 GPUs the bill is 160 GPU-hours, whatever the run goes on with."""
    before = meter.Spent(hours=10.0, gpu_hours=160.0, cost_usd=480.0)
    bill = on_a100(workers=workers).bill(before, step=10, held_hours=0.5, seconds_per_step=36.0)
    assert (bill["hours"], bill["gpu_hours"], bill["cost_usd"]) == (10.5, 160 + workers / 2, 480 + workers)
    assert (bill["gpu_hours_to_go"], bill["cost_usd_to_go"]) == (workers, 2 * workers)


def test_hours_that_no_price_was_known_for_have_todays():
    before = meter.Spent(hours=10.0, gpu_hours=160.0)
    assert on_a100().bill(before, step=10, held_hours=0.5, seconds_per_step=36.0)["cost_usd"] == 2 * (160 + 4)
    unpriced = on_a100(usd_per_hour=None).bill(before, step=10, held_hours=0.5, seconds_per_step=36.0)
    assert (unpriced["gpu_hours"], unpriced["cost_usd"]) == (164.0, None)


def test_without_a_price_there_are_hours_and_without_a_gpu_neither():
    unpriced = on_a100(usd_per_hour=None).bill(meter.Spent(), step=10, held_hours=0.5, seconds_per_step=36.0)
    assert (unpriced["gpu_hours"], unpriced["cost_usd"]) == (4.0, None)
    cpu = on_a100(on_gpu=False).bill(meter.Spent(), step=10, held_hours=0.5, seconds_per_step=36.0)
    assert {cpu[key] for key in ("gpu_hours", "gpu_hours_to_go", "cost_usd", "cost_usd_to_go")} == {None}
    assert cpu["seconds_to_go"] == 3600.0


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A100-SXM4-80GB", "A100-80"),
        ("NVIDIA A100-SXM4-40GB", "A100-40"),
        ("NVIDIA A100 80GB PCIe", "A100-80"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("NVIDIA A100-PCIE-40GB", "A100-40"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA H100-20C", None),
        ("NVIDIA L40S-48Q", None),
        ("NVIDIA A10", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_gpus_are_known_by_what_cuda_calls_them(name, found):
    gpu = meter.gpu_of(name)
    assert (gpu and gpu.name) == found


@pytest.mark.parametrize(
    ("gpu", "dtype", "peak"),
    [
        ("NVIDIA A10G", "bfloat16", 70e12),
        ("NVIDIA A10G", "float16", 70e12),
        ("NVIDIA A10G", "float32", 35e12),
        ("GeForce 9", "bfloat16", None),
        ("NVIDIA H200 NVL", "bfloat16", None),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", "float32", None),
        (None, "float32", None),
    ],
)
def test_the_peak_is_that_of_device_and_dtype(tmp_path, gpu, dtype, peak):
    (tmp_path / "config.json").write_text(json.dumps(architectures.load("llama2_7b")))
    made = meter.for_run(tmp_path, gpu_name=gpu, dtype=dtype, workers=2, total_steps=5)
    assert made.device == (gpu or "cpu")
    assert (made.peak_flops, made.on_gpu, made.shape.parameters) == (peak, gpu is not None, 6_738_415_616)


@pytest.mark.parametrize(
    ("gpu", "own", "price"),
    [
        ("NVIDIA A10G", None, 16.288 / 8),
        ("NVIDIA A10G", 0.5, 0.5),
        ("GeForce 9", 0.5, 0.5),
        ("GeForce 9", None, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 0.5, 0.5),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, None),
    ],
)
def test_the_users_price_replaces_the_listed_one(tmp_path, gpu, own, price):
    (tmp_path / "config.json").write_text(json.dumps(architectures.load("llama2_7b")))
    made = meter.for_run(tmp_path, gpu_name=gpu, dtype="bfloat16", workers=2, total_steps=5, usd_per_hour=own)
    assert made.usd_per_hour == price
