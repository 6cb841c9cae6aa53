"""What a run's time was worth: tokens per second, model FLOPs utilisation, GPU-hours and money, spent and to go.

Fed with the records of the training loop, read by `fulltune.metrics`. Utilisation needs the peak of the device in the
training dtype and is None where there is none to compare with: on a CPU, on an unknown GPU.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from fulltune.plan import hardware, shape
from fulltune.plan.flops import step_flops_of_sums
from fulltune.plan.hardware import Gpu
from fulltune.plan.shape import ModelShape
from fulltune.train import StepDone

Figures = dict[str, float | None]
# words of a name that tell of less than the table's row: another card, or (MIG) a slice of one
SLOWER_VARIANTS = frozenset({"PCIE", "NVL", "D", "LAPTOP", "MIG"})
SAME_PEAK = {"A100-40": {"PCIE"}, "A100-80": {"PCIE"}}  # the A100's PCIe card has the module's
VIRTUAL = re.compile(r"\d+[ABCQ]")  # NVIDIA's profiles of a virtual GPU, such as 20C: a share of the card named before


@dataclass(frozen=True, slots=True)
class Spent:
    """What a run had cost when an attempt began: of all attempts before, each on the devices and prices that it had.

    Attributes:
        hours: for which the devices were held.
        gpu_hours: None where no GPU was among them.
        cost_usd: None where no price was known.
        unpriced_gpu_hours: of `gpu_hours`, those that `cost_usd` does not cover: no price was known for them.
    """

    hours: float = 0.0
    gpu_hours: float | None = None
    cost_usd: float | None = None
    unpriced_gpu_hours: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """The constants of a run that its rates and its bill depend on.

    Attributes:
        workers: devices that work for the run.
        device: what CUDA calls each of them, or "cpu"; utilisation is a share of this type's peak.
        on_gpu: whether those are GPUs; hours of CPUs are not counted.
        peak_flops: of one device in the training dtype, FLOP/s.
        usd_per_hour: of one device.
    """

    shape: ModelShape
    workers: int
    total_steps: int
    device: str = "cpu"
    on_gpu: bool = False
    peak_flops: float | None = None
    usd_per_hour: float | None = None

    def rates(self, event: StepDone) -> Figures:
        """Tokens per second over all workers, and MFU as a share of the devices' peak."""
        seconds = event.data_seconds + event.compute_seconds + event.update_seconds
        return {
            "tokens_per_s": round(event.tokens / seconds, 1),
            "supervised_tokens_per_s": round(event.supervised_tokens / seconds, 1),
            "padded_tokens_per_s": round(event.padded_tokens / seconds, 1),
            "mfu": self._utilisation(event, seconds),
        }

    def _utilisation(self, event: StepDone, seconds: float) -> float | None:
        if self.peak_flops is None:
            return None
        flops = step_flops_of_sums(
            self.shape,
            tokens=event.tokens,
            squared_lengths=event.squared_lengths,
            supervised_tokens=event.supervised_tokens,
        )
        return round(flops.model / (seconds * self.workers * self.peak_flops), 4)

    def bill(self, before: Spent, *, step: int, held_hours: float, seconds_per_step: float) -> Figures:
        """Hours, GPU-hours and money, so far and for the steps to go; None where there is no GPU or no price.

        Args:
            before: what earlier attempts spent, maybe on another number of devices: it is carried forward.
            held_hours: for which this attempt holds each of its devices.
            seconds_per_step: of this attempt, validation and saving included.
        """
        to_go = (self.total_steps - step) * seconds_per_step
        hours_to_go = self.workers * to_go / 3600 if self.on_gpu else None
        return self.so_far(before, held_hours) | {
            "seconds_to_go": round(to_go, 1),
            "gpu_hours_to_go": _rounded(hours_to_go),
            "cost_usd_to_go": _rounded(hours_to_go, self.usd_per_hour),
        }

    def so_far(self, before: Spent, held_hours: float) -> Figures:
        """The part of the bill that looks back; an attempt on CPUs adds hours only."""
        held = self.workers * held_hours if self.on_gpu else None
        return {
            "hours": round(before.hours + held_hours, 6),
            "gpu_hours": before.gpu_hours if held is None else _rounded((before.gpu_hours or 0.0) + held),
            "cost_usd": self._cost(before, held),
        }

    def _cost(self, before: Spent, held: float | None) -> float | None:
        """GPU-hours that no price was known for have today's."""
        if held is None:
            return None if before.unpriced_gpu_hours else before.cost_usd
        unpriced = before.gpu_hours if before.cost_usd is None else before.unpriced_gpu_hours
        added = _rounded((unpriced or 0.0) + held, self.usd_per_hour)
        return None if added is None else round((before.cost_usd or 0.0) + added, 4)


def for_run(
    model: Path,
    *,
    gpu_name: str | None,
    dtype: str,
    workers: int,
    total_steps: int,
    usd_per_hour: float | None = None,
) -> Meter:
    """The meter of a run that trains the model in that folder.

    Args:
        gpu_name: as CUDA calls the device; None on CPUs.
        dtype: of the training; float32 has another peak than the 16-bit ones.
        usd_per_hour: of one GPU (ray.usd_per_gpu_hour); None for the listed price.
    """
    gpu = None if gpu_name is None else gpu_of(gpu_name)
    listed = usd_per_hour if gpu is None else hardware.usd_per_hour(gpu.name, usd_per_hour)
    return Meter(
        shape=shape.of(json.loads((model / "config.json").read_text())),
        workers=workers,
        total_steps=total_steps,
        device=gpu_name or "cpu",
        on_gpu=gpu_name is not None,
        peak_flops=gpu.peak(4 if dtype == "float32" else 2) if gpu is not None else None,
        usd_per_hour=listed,
    )


def gpu_of(name: str) -> Gpu | None:
    """The table's row for a device name such as "NVIDIA A100-SXM4-80GB".

    None for a type that it does not have: a slower card of the same name and a part of a GPU have neither the row's
    peak nor its price.
    """
    words = {word.removesuffix("GB") for word in re.split(r"[ -]", name.upper())}
    gpu = next((gpu for gpu in hardware.GPUS if set(gpu.name.split("-")) <= words), None)
    if gpu is None or any(map(VIRTUAL.fullmatch, words)):
        return None
    return None if words & (SLOWER_VARIANTS - SAME_PEAK.get(gpu.name, set())) else gpu


def _rounded(hours: float | None, price: float | None = 1.0) -> float | None:
    return None if hours is None or price is None else round(hours * price, 4)
