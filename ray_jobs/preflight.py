"""`fulltune preflight RECIPE`: asks the real machines, within bounds, whether the training would work on them.

    this process: storage, token, model and data -> plan -> prepare
    the training's workers (Ray Train): themselves, storage, collectives, a worst-case step -> checks -> go or no-go

python -m ray_jobs.preflight RECIPE [key=value ...]        (as a Ray job)
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import ray

from fulltune import commit
from fulltune.config import RunConfig
from fulltune.plan import memory, planner
from fulltune.plan.planner import Plan
from fulltune.plan.workload import Lengths
from fulltune.preflight import access, micro_batch, report, storage, verdict
from fulltune.preflight.check import Check, refused
from fulltune.preflight.micro_batch import Size
from fulltune.preflight.verdict import Answers, Found
from ray_jobs import cluster, settled
from ray_jobs.plan import known
from ray_jobs.preflight_worker import NAMESPACE, Findings, Ledger, preflight_worker
from ray_jobs.prepare import prepare
from ray_jobs.train import trainer_of
from tasks.base import UserError

POLL_S = 0.5
CLEAN_UP_S = 30.0  # for taking the mark away, and for writing the record
PROBE_BYTES = (2**23, 2**28)  # least and most that each worker writes
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line adds to a recipe.

    Attributes:
        plan: GPU type, price, and the host memory of a node, which here replaces what the nodes have.
        timeout_s: the longest wait: for a download, for workers to start, for a stage of theirs.
    """

    plan: planner.Options = planner.Options()
    timeout_s: float = 900.0


@dataclass(slots=True)
class _Ground:
    """What this process found before the workers start."""

    checks: list[Check] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    mark: str | None = None
    plan: Plan | None = None
    lengths: Lengths | None = None
    model: Path | None = None


def preflight(run: RunConfig, options: Options, *, say: Callable[[str], None]) -> Found:
    """All checks of a recipe; what was found is also in `preflight.json` of the run folder, if that can be written.

    Raises:
        UserError: RAY_ADDRESS names no cluster.
    """
    begun = time.monotonic()
    left_open = run.train.micro_batch_tokens == "auto"
    with cluster.connected(), contextlib.ExitStack() as stack:
        ground = _Ground()
        run = _asked("storage", lambda: settled.as_begun(run, say=say), options.timeout_s, ground) or run
        _look(ground, run, options, stack, say)
        if ground.plan is not None:
            run = ground.plan.config  # what was left to `auto` is decided
        answers = _answers(run, ground, options, say)
        found = verdict.of(
            run,
            ground.checks,
            ground.left_out,
            answers,
            ground.plan,
            ground.lengths,
            host_limit=options.plan.host_memory,
            usd_per_hour=ground.plan.usd_per_hour if ground.plan else None,
            auto=left_open,
        )
        found = replace(found, seconds=time.monotonic() - begun)
    if ground.mark is not None:
        with contextlib.suppress(OSError):  # a disk that filled up meanwhile, or hangs, has its own check
            bounded(lambda: _record(run, found), CLEAN_UP_S)
    return found


def _record(run: RunConfig, found: Found) -> None:
    commit.write_atomically(run.run_dir / settled.PREFLIGHT, json.dumps(report.as_json(found), indent=1))


def _look(
    ground: _Ground, run: RunConfig, options: Options, stack: contextlib.ExitStack, say: Callable[[str], None]
) -> None:
    """Fills in what this process can find out by itself."""
    limit = options.timeout_s
    _mark(run, ground, limit, stack)
    token = _asked("hub token", lambda: access.check_hub_token(run), limit, ground)
    if token is not None:
        ground.checks.append(token)
    reachable = token is None or token.ok
    say("reading config.json, tokenizer and data")
    facts_known = _asked("model and data", lambda: known(run, fetch=reachable, say=say), limit, ground)
    if facts_known is None:
        return
    architecture, ground.lengths = facts_known
    ground.checks.append(Check("model and data", True, f"config.json read; tokens {ground.lengths.source}"))
    ground.plan = _asked("plan", lambda: _plan(run, architecture, facts_known[1], options), limit, ground)
    if ground.plan is not None and ground.mark is not None:
        planned = ground.plan
        room = _asked("free space", lambda: _space(run, planned), limit, ground)
        ground.checks += [room] if room is not None else []
    if ground.mark is not None and reachable and all(check.ok for check in ground.checks):
        say("preparing data and model, as the training would")
        prepared = _asked("data and model prepared", lambda: prepare(run, say=say), limit, ground)
        ground.model = prepared.inputs.model if prepared else None
    else:
        ground.left_out.append("data and model were not prepared, nor a step taken: see above")


def _mark(run: RunConfig, ground: _Ground, limit: float, stack: contextlib.ExitStack) -> None:
    """The driver's mark, which workers look for; a mount that hangs is given up like one that refuses."""
    try:
        context, ground.mark = bounded(lambda: _entered(storage.marked(run.run_dir)), limit)
        stack.callback(_leave, context)
        ground.checks.append(storage.check_writable(None, run.run_dir))
    except OSError as error:  # a TimeoutError is one
        ground.checks.append(storage.check_writable(error, run.run_dir))


def _entered(context: contextlib.AbstractContextManager[str]) -> tuple[contextlib.AbstractContextManager[str], str]:
    return context, context.__enter__()


def _leave(context: contextlib.AbstractContextManager[str]) -> None:
    """Takes the mark away; storage that began to hang meanwhile keeps it, and the verdict is printed."""
    with contextlib.suppress(TimeoutError):
        bounded(lambda: context.__exit__(None, None, None), CLEAN_UP_S)


def _plan(run: RunConfig, architecture: dict[str, Any], lengths: Lengths, options: Options) -> Plan:
    found = cluster.with_gpu(run.ray, options.plan)
    return planner.plan(run, architecture, lengths, found if run.ray.use_gpu else replace(found, gpu=None))


def _space(run: RunConfig, plan: Plan) -> Check:
    kept, export = plan.checkpoints_kept, memory.export_bytes(plan.setup)
    needed = max(0, kept * plan.checkpoint + export - storage.kept(run.run_dir)) + plan.validation_export
    what = f"{kept} checkpoints of {planner.gb(plan.checkpoint)} and an export of {planner.gb(export)}"
    if plan.validation_export:
        what += f", another of {planner.gb(plan.validation_export)} while one is validated"
    if not storage.has_model(run.run_dir.parent / "cache", plan.starting_model):
        needed += plan.starting_model
        what += f", and {planner.gb(plan.starting_model)} for the prepared model"
    return storage.check_space(storage.free_bytes(run.run_dir), needed, what, where="the driver")


def _asked(name: str, function: Callable[[], T], seconds: float, ground: _Ground) -> T | None:
    """The function's value; what it dies of becomes a no-go of that name."""
    try:
        return bounded(function, seconds)
    except UserError as error:
        ground.checks.append(refused(name, error))
    except TimeoutError:
        ground.checks.append(Check(name, False, f"nothing within {seconds:.0f} s", "an answer", "check the network and "
                                   "the storage, or raise --timeout-s"))  # fmt: skip
    except Exception as error:  # whatever else it is, it would end the training too
        text = str(error).strip().split("\n")[0]
        ground.checks.append(Check(name, False, f"{type(error).__name__}: {text}", "no error", "see the message"))
    return None


def bounded(function: Callable[[], T], seconds: float) -> T:
    """Runs it in a thread that is left behind when time is up: a mount that hangs cannot be interrupted.

    Raises:
        TimeoutError: it took longer.
    """
    values: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            values.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if thread.is_alive():
        raise TimeoutError(f"nothing within {seconds:.0f} s")
    return values[0]


def _answers(run: RunConfig, ground: _Ground, options: Options, say: Callable[[str], None]) -> Answers | None:
    """What the workers found; None where they were not asked. Out of memory is asked again with half the tokens."""
    if ground.mark is None:
        ground.left_out.append("the workers were not started: they need the storage")
        return None
    try:
        cluster.refuse_what_cannot_fit(run.ray)
        cluster.refuse_validation_without_room(run)
    except UserError as error:
        ground.checks.append(refused("cluster", error))
        return None
    wanted = cluster.worker_resources(run.ray)
    shown = ", ".join(f"{value:g} {key}" for key, value in wanted.items())
    ground.checks.append(Check("cluster", True, f"room for {cluster.shown(run.ray.num_workers)} workers of {shown}"))
    sizes = micro_batch.sizes(run, ground.plan.setup, ground.lengths) if ground.plan and ground.lengths else []
    own = next((size for size in sizes if size.tokens == micro_batch.effective(run)), None)
    first = _attempt(run, ground, options, sizes, own, say)
    smaller = [size for size in sizes if own is not None and size.tokens <= own.tokens // 2]
    if first.step or not (first.out_of_memory and first.entered_step and smaller):
        return first
    say(f"out of memory: trying {smaller[-1].tokens:,} tokens")
    second = _attempt(run, ground, options, smaller, smaller[-1], say)
    return replace(first, smaller=(smaller[-1], second.step)) if second.error is None else first


def _attempt(
    run: RunConfig,
    ground: _Ground,
    options: Options,
    sizes: list[Size],
    size: Size | None,
    say: Callable[[str], None],
) -> Answers:
    """One group of workers, from start to end; without a prepared model they take no step."""
    size = size if ground.model is not None else None
    checkpoint = ground.plan.checkpoint if ground.plan else 0
    least, most = PROBE_BYTES
    bounds = {"collective_timeout_s": max(1, min(run.ray.collective_timeout_s, int(options.timeout_s)))}
    once = run.model_copy(update={"ray": run.ray.model_copy(update={"max_failures": 0} | bounds)})
    name = f"preflight-{uuid.uuid4().hex}"
    payload = {
        "config": once.model_dump(mode="json"),
        "run": str(run.run_dir),
        "model": str(ground.model) if size is not None else None,
        "ledger": name,
        "mark": ground.mark,
        "probe_bytes": min(most, max(least, checkpoint // run.ray.min_workers)),
        "size": size,
        "sizes": sizes,
        "floor": _floor(ground.plan) if ground.plan else 0,
        "host_limit": options.plan.host_memory,
        "timeout_s": options.timeout_s,
    }
    with _ledger(name) as ledger:
        error = _fit(trainer_of(once, preflight_worker, payload), ledger, options.timeout_s, say)
        findings: Findings = ray.get(ledger.read.remote(), timeout=60)
    return verdict.answers(findings.told, findings.doing, error, size)


def _floor(plan: Plan) -> int:
    """Host bytes that each worker's tensors take by plan, without the process around them."""
    return plan.memory.host // plan.setup.workers_per_node - memory.PROCESS


@contextlib.contextmanager
def _ledger(name: str) -> Iterator[Any]:
    actor: Any = ray.remote(num_cpus=0)(Ledger).options(name=name, namespace=NAMESPACE).remote()
    try:
        yield actor
    finally:
        ray.kill(actor)


def _fit(trainer: Any, ledger: Any, timeout_s: float, say: Callable[[str], None]) -> str | None:
    """Runs the workers; what they died of, or None. Gives up when no worker has entered a new stage for too long."""
    errors: list[Exception] = []
    ended = threading.Event()

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:
            errors.append(error)
        finally:
            ended.set()

    threading.Thread(target=fit, daemon=True).start()
    doing: dict[int, str] = {}
    since = time.monotonic()
    say("starting the workers")
    while not ended.wait(POLL_S):
        with contextlib.suppress(ray.exceptions.GetTimeoutError):
            now: Findings = ray.get(ledger.read.remote(), timeout=10)
            if now.doing != doing:
                since = time.monotonic()
                for stage in sorted(set(now.doing.values()) - set(doing.values())):
                    say(f"workers: {stage}")
                doing = now.doing
        if time.monotonic() - since > timeout_s:
            where = "; ".join(f"worker {rank} was in {stage}" for rank, stage in sorted(doing.items()))
            return f"nothing new for {timeout_s:.0f} s: {where or 'no worker started'}"
    shutil.rmtree(_own_folder(trainer), ignore_errors=True)
    return verdict.cause(errors[0]) if errors else None


def _own_folder(trainer: Any) -> Path:
    """Where Ray Train kept its books on these workers."""
    return Path(trainer.run_config.storage_path) / str(trainer.run_config.name)


if __name__ == "__main__":
    from ray_jobs.cli import main

    raise SystemExit(main(["preflight", *sys.argv[1:]]))
