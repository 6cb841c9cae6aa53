"""A plan for people, on one screen, and for programs, as JSON. Every figure is planned, none measured."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fulltune.plan import hardware, memory, planner, search, sharding, time
from fulltune.plan.hardware import Gpu
from fulltune.plan.planner import Plan, gb
from fulltune.plan.refusals import refusals
from fulltune.plan.search import Choice

WIDTH = 120


def as_json(found: Plan) -> dict[str, Any]:
    """The plan as docs/plan.schema.json describes it; bytes, hours and USD."""
    gpu, made = found.memory.gpu, found.setup
    return {
        "planned": True,
        "recipe": found.config.ray.name,
        "model": found.config.model.name_or_path or "random initialisation",
        "parameters": made.shape.parameters,
        "gpu": found.gpu.name if found.gpu else None,
        "workers": made.workers,
        "sharding": made.sharding.name,
        "fits": found.fits,
        "problems": list(found.problems),
        "gpu_bytes": {
            "parameters": gpu.parameters,
            "gradients": gpu.gradients,
            "optimizer": gpu.optimizer,
            "activations": gpu.activations,
            "logits": gpu.logits,
            "buffers": gpu.buffers,
            "total": gpu.total,
        },
        "gpu_capacity_bytes": found.gpu.memory if found.gpu else None,
        "host_bytes": found.memory.host,
        "host_loading_bytes": found.memory.host_loading,
        "host_saving_bytes": found.memory.host_saving,
        "host_export_bytes": found.memory.host_export,
        "host_capacity_bytes": found.host_memory,
        "host_usable_bytes": memory.usable(found.host_memory),
        "nvme_bytes": found.memory.nvme,
        "checkpoint_bytes": found.checkpoint,
        "starting_model_bytes": found.starting_model,
        "disk_bytes": found.disk,
        "examples": found.work.examples,
        "tokens": found.work.tokens,
        "supervised_tokens": found.work.supervised,
        "steps": found.work.steps,
        "micro_batches_per_step": found.work.micro_batches,
        "micro_batch_tokens": found.work.largest.tokens,
        "hours": found.hours,
        "usd_per_gpu_hour": found.usd_per_hour,
        "cost_usd": found.cost_usd,
        "fastest_that_fits": _choice(found.best),
        "smallest_cluster": _choice(found.smallest),
        "smallest_cluster_with_offload": _choice(found.smallest_with_offload),
        "study": _study(found),
        "same_on": _types_json(found),
        "assumptions": list(found.assumptions),
    }


def stages_as_json(name: str, plans: Sequence[Plan]) -> dict[str, Any]:
    """The plans of a recipe's stages and their sums."""
    return {
        "planned": True,
        "recipe": name,
        "fits": all(found.fits for found in plans),
        "steps": sum(found.work.steps for found in plans),
        "tokens": sum(found.work.tokens for found in plans),
        "hours": sum(found.hours for found in plans),
        "cost_usd": _cost(plans),
        "stages": [as_json(found) for found in plans],
    }


def stages_text(name: str, plans: Sequence[Plan]) -> str:
    """One screen for each stage, and a last line with their sums."""
    together, cost = hours(sum(found.hours for found in plans)), _cost(plans)
    steps = sum(found.work.steps for found in plans)
    unfit = [str(found.config.ray.name) for found in plans if not found.fits]
    verdict = f"does NOT fit: {', '.join(unfit)}" if unfit else "each of them fits"
    last = f"{name}, {len(plans)} stages: {verdict}; {steps:,} steps, {together} planned; cost: " + (
        f"${cost:,.2f}" if cost is not None else "no price"
    )
    return "\n\n".join([*(text(found) for found in plans), last])


def _cost(plans: Sequence[Plan]) -> float | None:
    costs = [found.cost_usd for found in plans if found.cost_usd is not None]
    return sum(costs) if len(costs) == len(plans) else None


def _choice(choice: Choice | None) -> dict[str, Any] | None:
    if choice is None:
        return None
    return {
        "deepspeed": choice.deepspeed,
        "workers": choice.workers,
        "micro_batch_tokens": choice.micro_batch_tokens,
        "micro_batches_per_step": choice.micro_batches,
        "gradient_checkpointing": choice.gradient_checkpointing,
        "step_seconds": choice.step_seconds,
        "gpu_bytes": choice.gpu_bytes,
        "host_bytes": choice.host_bytes,
    }


def _study(found: Plan) -> dict[str, Any] | None:
    study = found.study
    if study is None:
        return None
    return {
        "states_without_offload_bytes": study.states_without_offload,
        "fits_without_offload": study.fits_without_offload,
        "host_bytes": study.host,
        "padding": study.padding,
        "step_seconds": study.step_seconds,
        "step_seconds_without_offload": study.step_seconds_without,
    }


def text(found: Plan) -> str:
    """One screen."""
    made = found.setup
    where = f"{made.workers} x {found.gpu.name}" if found.gpu else f"{made.workers} CPU workers"
    verdict = "fits" if found.fits else "does NOT fit: " + "; ".join(found.problems)
    lines = [
        f"{found.config.ray.name} on {where}, {made.sharding.name}: planned, not measured",
        f"{made.shape.parameters:,} parameters, {made.shape.num_layers} layers, vocabulary {made.shape.vocab_size:,}",
        "",
        f"  {verdict}",
        "",
        *_memory(found),
        "",
        *_time(found),
    ]
    if found.gpu is not None:
        lines += ["", *_choices(found), "", *_study_text(found), "", *_types(found)]
    wrapped = (textwrap.fill(line, WIDTH, initial_indent="  ", subsequent_indent="    ") for line in found.assumptions)
    return "\n".join([*lines, "", "assumptions", *wrapped])


def _memory(found: Plan) -> list[str]:
    gpu = found.memory.gpu
    unit = "per GPU" if found.gpu else "per worker"
    capacity = f" of {gb(found.gpu.memory)}" if found.gpu else ""
    offload = f", {gb(found.memory.nvme)} on NVMe" if found.memory.nvme else ""
    made = found.setup
    return [
        f"memory {unit}: {gb(gpu.total)}{capacity}",
        f"  weights {gb(gpu.parameters)}, gradients {gb(gpu.gradients)}, optimizer {gb(gpu.optimizer)}",
        f"  activations {gb(gpu.activations)}, logits {gb(gpu.logits)}, buffers {gb(gpu.buffers)}",
        f"  micro-batch of {made.batch.tokens:,} tokens at most, {made.batch.supervised:,} of them supervised"
        + (", activations recomputed" if made.checkpointing else ""),
        f"host per node: {gb(found.memory.host)} training{offload}, {gb(found.memory.host_loading)} loading, "
        f"{gb(found.memory.host_saving)} saving; export {gb(found.memory.host_export)}; of "
        f"{gb(memory.usable(found.host_memory))}",
        f"disk: {gb(found.starting_model)} for the prepared model, {gb(found.checkpoint)} per checkpoint, at most "
        f"{found.checkpoints_kept} at a time; export {gb(memory.export_bytes(made))}"
        + (f", {gb(found.validation_export)} more while one is validated" if found.validation_export else ""),
    ]


def _time(found: Plan) -> list[str]:
    work = found.work
    cost = f"${found.cost_usd:,.2f}" if found.cost_usd is not None else "no price"
    return [
        f"run: {work.steps:,} steps of {work.micro_batches:.3g} micro-batch(es) per worker, {work.tokens:,} tokens "
        f"({work.supervised / work.tokens:.0%} supervised)",
        f"time: {hours(found.hours)} planned; cost: {cost}",
    ]


def hours(value: float) -> str:
    """Hours for people."""
    return f"{value:,.1f} h" if value >= 1 else f"{60 * value:,.1f} min"


def _choices(found: Plan) -> list[str]:
    rows = (
        ("fastest that fits", found.best),
        ("smallest cluster", found.smallest),
        ("  with host memory", found.smallest_with_offload),
    )
    return [f"{name:<20}{_choice_text(choice)}" for name, choice in rows]


def _choice_text(choice: Choice | None) -> str:
    if choice is None:
        return "none"
    recompute = "on" if choice.gradient_checkpointing else "off"
    return (
        f"{choice.workers:>3} GPUs  {choice.deepspeed:<18} micro-batch {choice.micro_batch_tokens:>6,}  "
        f"checkpointing {recompute:<4}{gb(choice.gpu_bytes):>9}  {choice.step_seconds:,.1f} s/step"
    )


def _study_text(found: Plan) -> list[str]:
    study = found.study
    assert study is not None, "a plan on GPUs has it"
    verdict = "fit without it" if study.fits_without_offload else "would not fit without it"
    return [
        f"the study's configuration (ZeRO-3, all offloaded, padded to {planner.STUDY_LENGTH}) on this cluster:",
        f"  {gb(study.states_without_offload)} of states per GPU {verdict}; it puts {gb(study.host)} on each host,",
        f"  {study.step_seconds:,.1f} s/step against {study.step_seconds_without:,.1f}, and computes "
        f"{study.padding:.1f} tokens per real one",
    ]


@dataclass(frozen=True, slots=True)
class _Type:
    """The same run on a type of GPU: as configured, and with ZeRO-3 alone."""

    gpu: Gpu
    need: int
    fits: bool
    hours: float
    usd_per_hour: float | None
    cost_usd: float | None
    alone: int
    alone_fits: bool


def _on_types(found: Plan) -> list[_Type]:
    """Every type of the table in its usual instances at listed prices, the planned one on the planned nodes."""
    assert found.gpu is not None, "CPUs have no such table"
    own = found.gpu
    return [_on_type(found, own if gpu.name == own.name else gpu) for gpu in hardware.GPUS]


def _on_type(found: Plan, gpu: Gpu) -> _Type:
    made = replace(found.setup, workers_per_node=min(found.setup.workers, gpu.node_size))
    needed, alone = memory.memory(made), memory.memory(replace(made, sharding=sharding.ZERO_3))
    run_hours = found.work.steps * time.step_seconds(made, found.work, gpu) / 3600
    price = found.usd_per_hour if gpu is found.gpu else hardware.usd_per_hour(gpu.name, None)
    return _Type(
        gpu=gpu,
        need=needed.gpu.total,
        fits=search.fits(needed, gpu, gpu.node_memory) and not refusals(found.config, made),
        hours=run_hours,
        usd_per_hour=price,
        cost_usd=run_hours * made.workers * price if price is not None else None,
        alone=alone.gpu.total,
        alone_fits=search.fits(alone, gpu, gpu.node_memory),
    )


def _types_json(found: Plan) -> list[dict[str, Any]] | None:
    if found.gpu is None:
        return None
    return [
        {
            "gpu": one.gpu.name,
            "gpu_capacity_bytes": one.gpu.memory,
            "gpu_bytes": one.need,
            "fits": one.fits,
            "hours": one.hours,
            "usd_per_gpu_hour": one.usd_per_hour,
            "cost_usd": one.cost_usd,
            "zero3_gpu_bytes": one.alone,
            "zero3_fits": one.alone_fits,
        }
        for one in _on_types(found)
    ]


def _types(found: Plan) -> list[str]:
    columns = (
        f"{'the same on':<12}{'memory':>9}   {'as configured':<24}{'time':>10}{'cost':>12}   ZeRO-3 without offload"
    )
    return [columns, *(_type(one) for one in _on_types(found))]


def _type(one: _Type) -> str:
    cost = f"${one.cost_usd:,.2f}" if one.cost_usd is not None else "no price"
    asked, alone = _cell(one.need, fit=one.fits), _cell(one.alone, fit=one.alone_fits)
    return f"{one.gpu.name:<12}{gb(one.gpu.memory):>9}   {asked:<24}{hours(one.hours):>10}{cost:>12}   {alone}"


def _cell(need: int, *, fit: bool) -> str:
    return f"{gb(need):>8} {'fits' if fit else 'does not fit'}"
