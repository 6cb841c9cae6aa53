"""The one place where CPU and CUDA differ: dtype, kernels, copies, clocks, counters, and what a worker process is told.

Everything else in the flow is written once and asks here; no other module names `torch.cuda` (an architecture test
looks). No call touches CUDA unless the run was told to use it.
"""

from __future__ import annotations

import importlib.util
import os
import time
from typing import TYPE_CHECKING, Any

from fulltune.setup import extensions_dir
from tasks.base import UserError

if TYPE_CHECKING:
    import torch

# glibc gives blocks above its threshold back to the kernel after every step, and the page faults that follow cost
# more than the arithmetic: measured 15-20 against 130 tokens/s for a 135M model on 2 cores.
CPU_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
# micro-batches differ in length, and without growing segments each length leaves blocks that fit no other; page-locked
# host blocks are rounded up to a power of two, which for a flat buffer of 17.2 GB is 34.4 (pytorch issue 150517)
CUDA_ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True,pinned_max_round_threshold_mb:64"}
# what repeats a CUDA run to the last bit, beside torch's own switch: cuBLAS, FlashAttention's backward pass, and one
# order of summation in NCCL whatever sizes it is given
DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "FLASH_ATTENTION_DETERMINISTIC": "1", "NCCL_ALGO": "Ring"}

# what advice names
COLLECTIVES_LOG, COLLECTIVES_INTERFACE = "NCCL_DEBUG=INFO", "NCCL_SOCKET_IFNAME"

HALVES = ("bfloat16", "float16")
AMPERE = (8, 0)  # compute capability from which there are bfloat16 units and FlashAttention runs
FLASH = "flash_attention_2"
# torch.optim.AdamW's fused kernel exists on both devices and makes one pass over the state. Offloaded states are
# DeepSpeedCPUAdam's (fulltune.engine.prebuild), on CPUs and GPUs alike.
ADAMW_FLAVOUR: dict[str, Any] = {"fused": True}


def worker_environment(*, use_gpu: bool, cpus: float | None = None, deterministic: bool = False) -> dict[str, str]:
    """Environment variables that a worker process needs before Python starts.

    Args:
        cpus: cores of the worker; as many threads update offloaded optimizer states. None leaves them to Ray.
        deterministic: as for `attach`.
    """
    common = {
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_EXTENSIONS_DIR": str(extensions_dir()),
        # warnings of libraries about each other; ours go through logging
        "TRANSFORMERS_VERBOSITY": os.environ.get("TRANSFORMERS_VERBOSITY", "error"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    if cpus is not None and use_gpu:  # a node's own setting would win over Ray's, and 1 is a usual one
        common |= {"OMP_NUM_THREADS": str(max(1, int(cpus)))}
    if use_gpu:
        allocator = {key: os.environ.get(key, value) for key, value in CUDA_ALLOCATOR.items()}
        return common | allocator | (DETERMINISTIC if deterministic else {})
    return common | CPU_ALLOCATOR | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def backend(*, use_gpu: bool) -> str:
    """The torch.distributed backend; its time-out is `ray.collective_timeout_s`, through Ray's TorchConfig."""
    return "nccl" if use_gpu else "gloo"


def attach(target: torch.device, dtype: str, *, deterministic: bool) -> None:
    """Makes a CUDA device this process's own, before DeepSpeed is asked for anything.

    Args:
        target: Ray's choice, an index into this process's CUDA_VISIBLE_DEVICES, which lists a node's workers' GPUs.
        deterministic: repetitions are bit-identical, and an operation that cannot be raises an error.

    Raises:
        UserError: the GPU has no units for this dtype.
    """
    import torch

    torch.cuda.set_device(target)
    refuse_dtype(dtype, torch.cuda.get_device_name(target), torch.cuda.get_device_capability(target))
    # DeepSpeed takes the device's index from here, also where Ray's order of GPUs is another one
    os.environ["LOCAL_RANK"] = str(target.index)
    # float32 means float32: who asks for it on a GPU wants a reference. The 16-bit types never take TF32
    torch.set_float32_matmul_precision("highest")
    if deterministic:
        torch.use_deterministic_algorithms(True)
        torch.backends.cuda.enable_mem_efficient_sdp(False)  # its backward pass adds in no fixed order
        torch.backends.cuda.enable_cudnn_sdp(False)


def refuse_dtype(dtype: str, name: str, capability: tuple[int, int]) -> None:
    """UserError for bfloat16 on a GPU older than Ampere, which would emulate it, slowly."""
    if dtype == "bfloat16" and capability < AMPERE:
        raise UserError(
            got=f"model.dtype {dtype} on {name} (compute capability {capability[0]}.{capability[1]})",
            wanted=f"compute capability {AMPERE[0]}.{AMPERE[1]} or later: A10G, L4, A100, H100 ...",
            fix="model.dtype=float16, or other GPUs",
        )


def dtype_name(requested: str, *, use_gpu: bool) -> str:
    """`auto` is bfloat16 on CUDA and float32 on CPU, where bfloat16 has no fast kernels."""
    return requested if requested != "auto" else ("bfloat16" if use_gpu else "float32")


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of that name."""
    import torch

    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def training_attention(dtype: str, *, use_gpu: bool) -> str:
    """FlashAttention's variable-length kernel where it is installed and runs, else our loop over a pack's segments."""
    from fulltune.attention import SEGMENTS

    if not use_gpu or dtype not in HALVES or importlib.util.find_spec("flash_attn") is None:
        return SEGMENTS
    import torch

    return FLASH if torch.cuda.get_device_capability() >= AMPERE else SEGMENTS


def inference_device(*, use_gpu: bool) -> torch.device:
    """Where answers are generated: an actor sees the GPU it was given and no other."""
    import torch

    return torch.device("cuda" if use_gpu else "cpu")


def gpu_count() -> int:
    """GPUs that this process sees; 0 without CUDA."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def copy(tensor: torch.Tensor, target: torch.device) -> torch.Tensor:
    """The tensor on the device. From page-locked memory, so that Python goes on while the copy waits its turn."""
    return tensor if target.type == "cpu" else tensor.pin_memory().to(target, non_blocking=True)


def boundaries_device(attention: str, target: torch.device) -> torch.device:
    """Where an attention wants the boundaries of a pack's segments.

    FlashAttention reads them in its kernel. Our loop reads them in Python, in every layer: from the GPU each reading
    would wait until all work before it is done.
    """
    import torch

    return target if attention == FLASH else torch.device("cpu")


def random_states(target: torch.device) -> dict[str, torch.Tensor]:
    """The states of torch's generators: the CPU's, and the device's own."""
    import torch

    states = {"torch": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(target)} if target.type == "cuda" else {})


def set_random_states(states: dict[str, torch.Tensor], target: torch.device) -> None:
    """Puts back what `random_states` returned; on a device of another type only the CPU's."""
    import torch

    torch.set_rng_state(states["torch"])
    if "cuda" in states and target.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], target)


def reset_peak(target: torch.device) -> None:
    """Starts the count of `peak_bytes` anew."""
    if target.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(target)


def peak_bytes(target: torch.device) -> int | None:
    """The most that tensors took on the device since the last reset; None for a CPU, where nobody counts."""
    if target.type != "cuda":
        return None
    import torch

    return int(torch.cuda.max_memory_allocated(target))


def current_gpu() -> torch.device:
    """The device that `attach` made this process's own."""
    import torch

    return torch.device("cuda", torch.cuda.current_device())


def gpu_name_and_memory(target: torch.device) -> tuple[str, int]:
    """What the driver says of a GPU: its name, and its memory in bytes."""
    import torch

    found = torch.cuda.get_device_properties(target)
    return found.name, found.total_memory


def bytes_beside_torch(target: torch.device) -> int:
    """What of a GPU's memory torch's allocator does not hold: the context, NCCL, and other processes."""
    import torch

    free, total = torch.cuda.mem_get_info(target)
    return max(0, total - free - torch.cuda.memory_reserved(target))


def cuda_versions() -> dict[str, str]:
    """Of CUDA and NCCL, as torch was built with them."""
    import torch

    return {"cuda": str(torch.version.cuda), "nccl": ".".join(map(str, torch.cuda.nccl.version()))}


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

    gpus = [torch.cuda.get_device_name(index) for index in range(gpu_count())]
    return {"platform": platform.platform(), "cpus": os.cpu_count(), "gpus": gpus, "cuda": torch.version.cuda}
