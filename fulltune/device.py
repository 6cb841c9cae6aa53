"""The one place where CPU and CUDA differ: dtype, attention kernel, optimizer flavour, backend, worker environment.

Everything else in the flow is written once and asks here. No call touches CUDA unless the run was told to use it.
"""

from __future__ import annotations

import importlib.util
import os
import time
from typing import TYPE_CHECKING, Any

from fulltune.setup import extensions_dir

if TYPE_CHECKING:
    import torch

# glibc gives blocks above its threshold back to the kernel after every step, and the page faults that follow cost
# more than the arithmetic: measured 15-20 against 130 tokens/s for a 135M model on 2 cores.
CPU_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}


def worker_environment(*, use_gpu: bool) -> dict[str, str]:
    """Environment variables that a worker process needs before Python starts."""
    common = {
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_EXTENSIONS_DIR": str(extensions_dir()),
        # warnings of libraries about each other; ours go through logging
        "TRANSFORMERS_VERBOSITY": os.environ.get("TRANSFORMERS_VERBOSITY", "error"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    if use_gpu:
        return common | {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    return common | CPU_ALLOCATOR | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def backend(*, use_gpu: bool) -> str:
    """The torch.distributed backend."""
    return "nccl" if use_gpu else "gloo"


def dtype_name(requested: str, *, use_gpu: bool) -> str:
    """`auto` is bfloat16 on CUDA and float32 on CPU, where bfloat16 has no fast kernels."""
    return requested if requested != "auto" else ("bfloat16" if use_gpu else "float32")


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of that name."""
    import torch

    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def training_attention(*, use_gpu: bool) -> str:
    """FlashAttention's variable-length kernel where it is installed, else our loop over the segments of a pack."""
    from fulltune.attention import SEGMENTS

    return "flash_attention_2" if use_gpu and importlib.util.find_spec("flash_attn") else SEGMENTS


def adamw_flavour(*, use_gpu: bool) -> dict[str, Any]:
    """Arguments of torch.optim.AdamW: the fused kernel exists on both devices and makes one pass over the state."""
    del use_gpu
    return {"fused": True}


def synchronize(target: torch.device) -> None:
    """Waits until the device has done what it was given; a CPU has when a call returns."""
    if target.type == "cuda":
        import torch

        torch.cuda.synchronize(target)


class Stopwatch:
    """Times stretches of work on a device: CUDA runs behind Python, so every reading waits for it."""

    def __init__(self, target: torch.device) -> None:
        self._target = target
        self._last = self._now()

    def lap(self) -> float:
        """Seconds since the last reading, or since the start."""
        last, self._last = self._last, self._now()
        return self._last - last

    def _now(self) -> float:
        synchronize(self._target)
        return time.perf_counter()


def gpu_name(target: torch.device) -> str | None:
    """What CUDA calls the device, for example "NVIDIA A100-SXM4-80GB"; None for a CPU."""
    if target.type != "cuda":
        return None
    import torch

    return torch.cuda.get_device_name(target)


def describe() -> dict[str, Any]:
    """What the hardware is, for provenance."""
    import platform

    import torch

    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {"platform": platform.platform(), "cpus": os.cpu_count(), "gpus": gpus}
