"""From what workers found to go or no-go: their findings put beside the plan, check by check, and what follows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fulltune import device
from fulltune.config import RunConfig
from fulltune.plan.planner import Plan, gb
from fulltune.plan.workload import Lengths, workload
from fulltune.preflight import facts as about
from fulltune.preflight import memory, micro_batch, network, step, storage
from fulltune.preflight.check import Check, is_go, judged
from fulltune.preflight.estimate import Estimate, communication_floor, estimate, slowest
from fulltune.preflight.facts import Facts
from fulltune.preflight.micro_batch import Choice, Peak, Size
from fulltune.preflight.network import Network
from fulltune.preflight.step import Measured
from fulltune.preflight.storage import Probe

Steps = Mapping[int, Measured]


@dataclass(frozen=True, slots=True)
class Answers:
    """What a group of workers found, as far as it came.

    Attributes:
        asked: the micro-batch of the step; None where none was to be taken.
        error: what ended the group, or a worker's step.
        larger, smaller: another micro-batch that was tried, and its step.
    """

    facts: tuple[Facts, ...]
    probes: tuple[Probe, ...]
    object_store: Check | None
    network: Network | None
    step: Steps
    asked: Size | None
    error: str | None = None
    out_of_memory: bool = False
    entered_step: bool = False
    larger: tuple[int, Steps] | None = None
    smaller: tuple[Size, Steps] | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The outcome of a preflight.

    Attributes:
        left_out: what was not looked at, and why.
        planned: bytes that the plan has for a worker of the step that was measured.
        auto: the recipe leaves the micro-batch open, so that a run takes the choice by itself.
    """

    name: str
    checks: tuple[Check, ...]
    left_out: tuple[str, ...] = ()
    answers: Answers | None = None
    plan: Plan | None = None
    planned: int | None = None
    estimate: Estimate | None = None
    choice: Choice | None = None
    seconds: float = 0.0
    auto: bool = False

    @property
    def go(self) -> bool:
        return is_go(self.checks)


def answers(
    told: Mapping[str, Mapping[int, Any]], doing: Mapping[int, str], error: str | None, asked: Size | None
) -> Answers:
    """What the workers told, in the order of their ranks.

    Args:
        doing: the stage that each entered last.
        error: what the group died of.
    """

    def ordered(stage: str) -> tuple[Any, ...]:
        return tuple(value for _, value in sorted(told.get(stage, {}).items()))

    own = told.get("error", {})
    stores = [check for check in ordered("object store") if check is not None]
    larger = told.get("larger step", {})
    return Answers(
        facts=ordered("facts"),
        probes=ordered("storage"),
        object_store=next((check for check in stores if not check.ok), stores[0] if stores else None),
        network=next(iter(ordered("network")), None),
        step=dict(told.get("step", {})),
        asked=asked,
        error=_error(own, doing, error),
        out_of_memory=any(value["out_of_memory"] for value in own.values()) or _speaks_of_memory(error),
        entered_step=any("step" in stage for stage in doing.values()),
        larger=_other(larger),
    )


def _other(found: Mapping[int, tuple[int, Measured]]) -> tuple[int, Steps] | None:
    if not found:
        return None
    return next(iter(found.values()))[0], {rank: measured for rank, (_, measured) in found.items()}


def _error(own: Mapping[int, Mapping[str, Any]], doing: Mapping[int, str], error: str | None) -> str | None:
    """The worker that began it: one without memory before one whose neighbour went away."""
    if not own:
        places = "; ".join(f"worker {rank} was in {stage}" for rank, stage in sorted(doing.items()))
        return f"{error} ({places})" if error and places else error
    rank, first = min(own.items(), key=lambda item: (not item[1]["out_of_memory"], "onnection" in item[1]["text"]))
    return f"worker {rank} in {doing.get(rank, 'the start')}: {first['text']}"


def _speaks_of_memory(error: str | None) -> bool:
    return error is not None and any(word in error.lower() for word in ("out of memory", "oom", "low on memory"))


def cause(error: Exception) -> str:
    """The line of a training error that says what happened: the first worker's, where workers failed."""
    failures = getattr(error, "worker_failures", None) or {}
    deepest = next(iter(failures.values()), error)
    lines = [line.strip() for line in str(deepest).splitlines() if line.strip()]
    telling = [line for line in lines if "memory" in line.lower() or "Error" in line or "died" in line]
    return (telling or lines or [type(deepest).__name__])[-1 if telling and not failures else 0][:300]


def of(
    run: RunConfig,
    checks: Sequence[Check],
    left_out: Sequence[str],
    answers: Answers | None,
    plan: Plan | None,
    lengths: Lengths | None,
    *,
    host_limit: int | None,
    usd_per_hour: float | None,
    auto: bool = False,
) -> Found:
    """The checks of the workers' part, and what follows for micro-batch, time and money.

    Args:
        checks, left_out: of the part before.
        auto: the recipe leaves the micro-batch open.
    """
    found = Found(str(run.ray.name), tuple(checks), tuple(left_out), answers, plan, auto=auto)
    if answers is None:
        return _with_plan(found, fitted=False)
    everybody = answers.facts
    if not everybody:
        wanted = f"{run.ray.min_workers} workers that start"
        missing = Check("workers", False, str(answers.error), wanted, "see `ray status` and `ray logs`")
        return _with_plan(replace(found, checks=(*found.checks, missing)), fitted=False)
    more = [_present(run, answers), *_looks(run, answers, plan)]
    if answers.asked is None:
        return _with_plan(replace(found, checks=(*found.checks, *more)), fitted=False)
    first, answers = answers.asked, _of_auto(answers) if auto else answers
    size, taken = answers.asked or first, len(answers.step) == len(everybody)
    # a larger one that failed only loses its own proposal
    error = None if taken else answers.error or "the step did not end"
    stepped = step.check_step(answers.step, error, workers=len(everybody))
    if size.tokens < first.tokens:
        stepped = replace(stepped, got=f"{stepped.got}; {first.tokens:,} tokens, the plan's, ran out of memory")
    more.append(replace(stepped, fix=_smaller(answers, stepped.fix)))
    if taken:
        more += _memory(run, answers, size, host_limit, plan)
    found = replace(found, checks=(*found.checks, *more), planned=size.planned if taken else None)
    if taken and plan is not None and lengths is not None:
        found = _consequences(found, run, plan, lengths, answers, host_limit, usd_per_hour)
    return _with_plan(found, fitted=taken and all(check.ok for check in more))


def _of_auto(answers: Answers) -> Answers:
    """Where the recipe leaves the micro-batch open and the plan's ran out of memory, the half of it that ended well is
    what the training will take, and what is judged.
    """
    if answers.smaller is None:
        return answers
    return replace(answers, asked=answers.smaller[0], step=answers.smaller[1], smaller=None)


def _present(run: RunConfig, answers: Answers) -> Check:
    enough = len(answers.facts) >= run.ray.min_workers
    return judged(
        "workers",
        ok=enough,
        got=about.workers(answers.facts) + ("" if enough else f"; {answers.error}"),
        wanted=f"{run.ray.min_workers} workers that start",
        fix="see `ray status` and `ray logs`",
    )


def _looks(run: RunConfig, answers: Answers, plan: Plan | None) -> list[Check]:
    """What needs no step."""
    everybody, checkpoint = answers.facts, plan.checkpoint if plan else 0
    found = [
        about.check_versions(everybody, about.versions()),
        about.check_devices(everybody),
        about.check_shared_memory(everybody, use_gpu=run.ray.use_gpu),
        about.check_open_files(everybody),
    ]
    if len(answers.probes) == len(everybody):
        found += storage.check_workers(answers.probes, checkpoint)
    if answers.object_store is not None:
        found.append(answers.object_store)
    if answers.network is None and (len(everybody) > 1 or not answers.probes):
        fix = f"see the message; {device.COLLECTIVES_LOG} and a firewall between the nodes are the first places to look"
        return [*found, Check("collectives", False, str(answers.error), "collectives that end", fix)]
    nodes = len(about.by_node(everybody))
    rate = network.check_collectives(answers.network, plan.gpu if plan else None, nodes=nodes)
    return [*found, rate, network.check_clocks(answers.network)]


def _memory(run: RunConfig, answers: Answers, size: Size, host_limit: int | None, plan: Plan | None) -> list[Check]:
    used = {rank: measured.use for rank, measured in answers.step.items()}
    more = max(0, plan.memory.host_saving - plan.memory.host) // plan.setup.workers_per_node if plan else 0
    if run.ray.use_gpu:
        device = memory.check_device(used, size.planned, memory.capacity(answers.facts, host_limit))
        return [device, memory.check_host(answers.facts, used, host_limit, "", saving=more)]
    grew = max(use.device for use in used.values())
    told = f"a process grew by {gb(grew)}, {memory.against(grew, size.planned)}"
    return [memory.check_host(answers.facts, used, host_limit, told, saving=more)]


def _smaller(answers: Answers, fix: str) -> str:
    if answers.smaller is None:
        return fix
    return f"train.micro_batch_tokens={answers.smaller[0].tokens}: a worst-case step with it ended well; or {fix}"


def _consequences(
    found: Found,
    run: RunConfig,
    plan: Plan,
    lengths: Lengths,
    answers: Answers,
    host_limit: int | None,
    usd_per_hour: float | None,
) -> Found:
    assert answers.asked is not None, "a step was taken"
    size, count = answers.asked, len(answers.facts)
    peak = Peak(size.planned, max(measured.use.device for measured in answers.step.values()))
    capacity = memory.capacity(answers.facts, host_limit)
    larger = answers.larger[0] if answers.larger and _held(answers.larger[1], capacity) else None
    failed = answers.error is not None or (answers.larger is not None and larger is None)
    choice = micro_batch.outcome(
        run,
        micro_batch.sizes(run, plan.setup, lengths),
        capacity,
        peak,
        tried=frozenset({size.tokens} | ({larger} if larger else set())),
        most=size.tokens if failed else None,  # a larger one failed, since this one ended well
        auto=found.auto,
    )
    sized = run.model_copy(update={"ray": run.ray.model_copy(update={"num_workers": count})})
    work = workload(sized, lengths)
    nodes = len(about.by_node(answers.facts))
    expected = estimate(
        plan.setup,
        work,
        slowest({rank: measured.timing for rank, measured in answers.step.items()}),
        workers=count,
        planned_hours=plan.hours,
        usd_per_hour=usd_per_hour,
        floor=communication_floor(plan.setup, work, workers=count, nodes=nodes, network=answers.network, gpu=plan.gpu),
    )
    return replace(found, choice=choice, estimate=expected)


def _held(found: Steps, capacity: int) -> bool:
    """Whether every worker's step stayed within what it may take, with a finite loss."""
    return all(measured.use.device <= capacity and math.isfinite(measured.loss) for measured in found.values())


def _with_plan(found: Found, *, fitted: bool) -> Found:
    """The plan's word last: where it says no and the step on these machines fitted, the step decides."""
    if found.plan is None:
        return found
    problems = "; ".join(found.plan.problems)
    outdone = "; the step that was measured fits, and decides" if problems and fitted else ""
    check = judged(
        "plan",
        ok=not problems or fitted,
        got=f"planned: {problems or 'fits'}{outdone}",
        wanted="a run that fits by plan, or a worst-case step that fits",
        fix=f"{memory.LESS}; `fulltune plan` shows what fits",
    )
    return replace(found, checks=(*found.checks, check))
