"""A preflight for people, a line per check, and for programs, as JSON (docs/preflight.md lists its fields)."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import Any

from fulltune.plan.planner import gb
from fulltune.plan.report import hours
from fulltune.preflight.check import Check
from fulltune.preflight.verdict import Found

WIDTH = 120
NAME = 27


def as_json(found: Found) -> dict[str, Any]:
    """Everything that was found; bytes, seconds, bytes per second, hours and USD."""
    answers = found.answers
    return {
        "recipe": found.name,
        "go": found.go,
        "seconds": round(found.seconds, 1),
        "checks": [asdict(check) for check in found.checks],
        "left_out": list(found.left_out),
        "workers": [facts.as_json() for facts in answers.facts] if answers else [],
        "storage": [probe.as_json() for probe in answers.probes] if answers else [],
        "network": answers.network.as_json() if answers and answers.network else None,
        "step": [{"rank": rank} | step.as_json() for rank, step in sorted(answers.step.items())] if answers else [],
        "planned_bytes": found.planned,
        "micro_batch": found.choice.as_json() if found.choice else None,
        "estimate": found.estimate.as_json() if found.estimate else None,
    }


def text(found: Found) -> str:
    """One screen; the last line is the verdict."""
    lines = [f"preflight of {found.name}, {found.seconds:.0f} s", ""]
    for check in found.checks:
        lines += _check(check)
    lines += [f"  {'not done':<{NAME}}{line}" for line in found.left_out]
    lines += ["", *_consequences(found)]
    stopped = ", ".join(check.name for check in found.checks if not check.ok)
    return "\n".join([*lines, "go" if found.go else f"no-go: {stopped}"])


def _check(check: Check) -> list[str]:
    if check.ok:
        return _wrapped(f"  ok     {check.name:<{NAME - 7}}", check.got)
    return [
        f"  NO-GO  {check.name}",
        *_wrapped("           got:    ", check.got),
        *_wrapped("           wanted: ", check.wanted),
        *_wrapped("           fix:    ", check.fix),
    ]


def _wrapped(start: str, line: str) -> list[str]:
    return textwrap.wrap(line, WIDTH, initial_indent=start, subsequent_indent=" " * len(start)) or [start]


def _consequences(found: Found) -> list[str]:
    lines = []
    if found.estimate is not None:
        run = found.estimate
        cost = f"${run.cost_usd:,.2f}" if run.cost_usd is not None else "no price"
        basis = "from the measured step"
        if run.bound_by == "communication":
            basis = (
                f"bound by communication at the measured rates (the measured step, scaled, {run.scaled_seconds:,.2f} s)"
            )
        line = (
            f"time: {hours(run.hours)} for {run.steps:,} steps of {run.step_seconds:,.2f} s ({run.tokens_per_s:,.0f} "
            f"tokens/s), {basis}; planned {hours(run.planned_hours)}; cost: {cost}"
        )
        lines += textwrap.wrap(line, WIDTH, subsequent_indent="  ")
    if found.choice is not None:
        lines += _micro_batch(found)
    return [*lines, ""] if lines else []


def _micro_batch(found: Found) -> list[str]:
    choice = found.choice
    assert choice is not None, "asked for where there is one"
    if choice.chosen is None:
        return [f"micro-batch: none fits {gb(choice.capacity)}; the plan had chosen {_tokens(choice.planned)}"]
    verb = "a worst-case step with it ended well" if choice.tried else "not tried"
    has = "auto" if found.auto else f"{choice.recipe:,}"
    line = (
        f"micro-batch: {choice.chosen:,} tokens, {choice.passes:.3g} per worker and step, "
        f"{gb(choice.expected or 0)} of {gb(choice.capacity)} by measurement ({verb}); the recipe has {has}, "
        f"the plan alone chose {_tokens(choice.planned)}"
    )
    lines = textwrap.wrap(line, WIDTH, subsequent_indent="  ")
    if choice.override:
        return [*lines, f"  use it: {choice.override}"]
    return [*lines, "  train takes it by itself (auto)"] if found.auto else lines


def _tokens(count: int | None) -> str:
    return f"{count:,}" if count is not None else "none"
