"""What differs on CUDA, with a fake in place of the GPU that is not there. Real ones: tests/gpu."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from fulltune import device
from fulltune.attention import SEGMENTS
from tasks.base import UserError

GPU, CPU = torch.device("cuda", 3), torch.device("cpu")


@pytest.fixture
def cuda(monkeypatch):
    """A fake of the calls that need a driver; holds what was called with what."""
    seen = {}

    def fake(name, answer=None):
        def call(*args):
            seen.setdefault(name, []).append(args)
            return answer

        monkeypatch.setattr(torch.cuda, name, call)

    answers = {
        "get_device_name": "NVIDIA A100-SXM4-80GB",
        "get_device_capability": (8, 0),
        "is_available": True,
        "device_count": 2,
        "max_memory_allocated": 7,
        "get_rng_state": torch.tensor([5], dtype=torch.uint8),
    }
    for name in ("set_device", "synchronize", "reset_peak_memory_stats", "set_rng_state", *answers):
        fake(name, answers.get(name))
    return seen


@pytest.fixture
def switches(monkeypatch):
    """torch's switches, put back afterwards."""
    before = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    sdp = torch.backends.cuda.mem_efficient_sdp_enabled(), torch.backends.cuda.cudnn_sdp_enabled()
    monkeypatch.setenv("LOCAL_RANK", "0")
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.use_deterministic_algorithms(before[1])
    torch.backends.cuda.enable_mem_efficient_sdp(sdp[0])
    torch.backends.cuda.enable_cudnn_sdp(sdp[1])


def test_a_gpu_worker_gets_growing_segments_threads_and_nothing_that_hides_its_gpus(monkeypatch):
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    told = device.worker_environment(use_gpu=True, cpus=8.0)
    assert told["PYTORCH_ALLOC_CONF"] == "expandable_segments:True,pinned_max_round_threshold_mb:64"
    assert told["OMP_NUM_THREADS"] == "8"
    assert not {"CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR", "MALLOC_TRIM_THRESHOLD_", *device.DETERMINISTIC} & set(told)
    assert device.worker_environment(use_gpu=True, cpus=0.5)["OMP_NUM_THREADS"] == "1"


def test_this_torch_knows_the_allocators_settings():
    """It passes over names that it does not know, and refuses wrong values of those that it does."""
    for setting in device.CUDA_ALLOCATOR["PYTORCH_ALLOC_CONF"].split(","):
        name = setting.split(":")[0]
        with pytest.raises(ValueError, match="stoull|Expected"):
            torch._C._accelerator_setAllocatorSettings(f"{name}:neither")
    torch._C._accelerator_setAllocatorSettings("unheard_of:neither")


def test_the_users_own_allocator_setting_stays(monkeypatch):
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:128")
    assert device.worker_environment(use_gpu=True)["PYTORCH_ALLOC_CONF"] == "max_split_size_mb:128"


def test_a_cpu_worker_sees_no_gpu_and_no_setting_of_one():
    told = device.worker_environment(use_gpu=False, cpus=8.0, deterministic=True)
    assert (told["CUDA_VISIBLE_DEVICES"], told["DS_ACCELERATOR"]) == ("", "cpu")
    assert not {"PYTORCH_ALLOC_CONF", "OMP_NUM_THREADS", *device.DETERMINISTIC} & set(told)


def test_a_deterministic_gpu_worker_is_told_before_it_starts():
    assert device.DETERMINISTIC.items() <= device.worker_environment(use_gpu=True, deterministic=True).items()


def test_the_run_speaks_nccl_on_gpus_and_gloo_on_cpus():
    assert (device.backend(use_gpu=True), device.backend(use_gpu=False)) == ("nccl", "gloo")


@pytest.mark.usefixtures("switches")
def test_deepspeed_takes_the_gpu_that_ray_chose(cuda, monkeypatch):
    """DeepSpeed reads LOCAL_RANK as a device index; Ray's index is the place in CUDA_VISIBLE_DEVICES."""
    import os

    device.attach(GPU, "bfloat16", deterministic=False)
    assert cuda["set_device"] == [(GPU,)]
    assert os.environ["LOCAL_RANK"] == "3"
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.usefixtures("switches", "cuda")
def test_float32_is_float32_and_tf32_stays_off():
    torch.set_float32_matmul_precision("high")
    device.attach(GPU, "float32", deterministic=False)
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.usefixtures("switches", "cuda")
def test_the_deterministic_setting_leaves_no_kernel_that_adds_in_any_order():
    device.attach(GPU, "bfloat16", deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cuda.mem_efficient_sdp_enabled()


@pytest.mark.usefixtures("switches")
def test_bfloat16_is_refused_where_it_would_be_emulated(cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100-SXM2-16GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    with pytest.raises(UserError, match=r"(?s)Tesla V100.*7\.0.*float16"):
        device.attach(GPU, "bfloat16", deterministic=False)
    device.attach(GPU, "float16", deterministic=False)


@pytest.mark.parametrize(
    ("dtype", "use_gpu", "installed", "capability", "chosen"),
    [
        ("bfloat16", True, True, (8, 0), device.FLASH),
        ("float16", True, True, (9, 0), device.FLASH),
        ("float16", True, True, (7, 5), SEGMENTS),  # Turing: FlashAttention 2 has no kernel
        ("float32", True, True, (9, 0), SEGMENTS),  # FlashAttention has none for float32
        ("bfloat16", True, False, (9, 0), SEGMENTS),
        ("bfloat16", False, True, (9, 0), SEGMENTS),
    ],
)
def test_flash_attention_is_taken_where_it_runs(monkeypatch, dtype, use_gpu, installed, capability, chosen):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object() if installed else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert device.training_attention(dtype, use_gpu=use_gpu) == chosen


def test_boundaries_go_where_they_are_read():
    assert device.boundaries_device(device.FLASH, GPU) == GPU
    assert device.boundaries_device(SEGMENTS, GPU) == CPU
    assert device.boundaries_device(SEGMENTS, CPU) == CPU


def test_copies_to_a_gpu_leave_from_page_locked_memory_and_do_not_wait():
    class Fake:
        def pin_memory(self):
            return Pinned()

    class Pinned:
        def to(self, target, *, non_blocking):
            return "there", target, non_blocking

    assert device.copy(Fake(), GPU) == ("there", GPU, True)
    here = torch.zeros(2)
    assert device.copy(here, CPU) is here


def test_clocks_and_counters_are_those_of_the_device(cuda):
    device.Stopwatch(GPU).lap()
    assert cuda["synchronize"] == [(GPU,)] * 2
    device.reset_peak(GPU)
    assert (cuda["reset_peak_memory_stats"], device.peak_bytes(GPU)) == ([(GPU,)], 7)
    assert device.gpu_name(GPU) == "NVIDIA A100-SXM4-80GB"
    assert device.describe()["gpus"] == ["NVIDIA A100-SXM4-80GB"] * 2


def test_a_cpu_run_calls_nothing_of_cuda(cuda):
    device.Stopwatch(CPU).lap()
    device.reset_peak(CPU)
    assert (device.peak_bytes(CPU), device.gpu_name(CPU)) == (None, None)
    assert set(device.random_states(CPU)) == {"torch"}
    assert device.inference_device(use_gpu=False) == CPU
    assert cuda == {}


def test_random_states_travel_with_the_device(cuda):
    states = device.random_states(GPU)
    assert cuda["get_rng_state"] == [(GPU,)]
    device.set_random_states(states, CPU)
    assert "set_rng_state" not in cuda
    device.set_random_states(states, GPU)
    assert cuda["set_rng_state"] == [(states["cuda"], GPU)]


def test_without_cuda_there_are_no_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.gpu_count() == 0


def test_auto_is_bfloat16_on_cuda_and_float32_on_cpus():
    assert device.dtype_name("auto", use_gpu=True) == "bfloat16"
    assert device.dtype_name("auto", use_gpu=False) == "float32"
    assert device.dtype_name("float16", use_gpu=True) == "float16"
