"""Let a model answer a split; a killed prediction goes on where it was."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from fulltune import engines
from ray_jobs.commands import endpoints, recipe
from tasks.base import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Task, split, model and how to prompt it."""
    parser.add_argument("--task", required=True, help="a task's name, or path/to/file.py:TASK")
    parser.add_argument("--split", required=True, choices=("train", "valid", "test"))
    parser.add_argument("--model", required=True, help="a folder, a hub id, or openai:NAME for an API")
    parser.add_argument("--base-url", help="of an OpenAI-compatible API, up to /v1; default: OpenAI's own")
    parser.add_argument("--out", required=True, type=Path, help="the predictions file to write (.jsonl)")
    parser.add_argument("--source", default="bundled", help="bundled, hub, or a path")
    parser.add_argument("--shots", type=int, default=0, help="worked examples from the training split")
    parser.add_argument(
        "--prompt", choices=("structured", "natural", "chat"), help="default: structured if the model knows it"
    )
    parser.add_argument("--limit", type=int, help="the first N rows by index")
    parser.add_argument("--max-new-tokens", type=int, help="of an answer; default: the task's own limit")
    parser.add_argument(
        "--engine",
        choices=engines.NAMES,
        default="hf",
        help="what generates: hf (continuous batches), hf-static, hf-paged (transformers' paged attention), vllm",
    )
    parser.add_argument("--label", help="name of the model in reports; default: the file's name")
    parser.add_argument("--workers", type=int, help="copies of the model; default: one per GPU or two CPUs")
    parser.add_argument("--batch-tokens", type=int, default=16384, help="tokens a copy holds at once, with answers")
    endpoints.add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Predicts, and prints the file."""
    if arguments.model.startswith("openai:"):
        return _run_api(arguments)
    import tasks
    from fulltune import device, quiet

    quiet.libraries()
    quiet.transformers()
    from ray_jobs.predict import Request, predict, usual_prompt

    gpus = device.gpu_count()
    task = tasks.get(arguments.task)
    request = Request(
        task=arguments.task,
        split=arguments.split,
        source=arguments.source,
        model=arguments.model,
        out=arguments.out.absolute(),
        label=arguments.label or arguments.out.stem,
        prompt=arguments.prompt or usual_prompt(arguments.model, task.special_tokens),
        shots=arguments.shots,
        limit=arguments.limit,
        max_new_tokens=arguments.max_new_tokens,
        engine=arguments.engine,
        batch_tokens=arguments.batch_tokens,
        workers=arguments.workers or gpus or max(1, (os.cpu_count() or 1) // 2),
        use_gpu=gpus > 0,
    )
    print(predict(request, say=recipe.say))
    return 0


def _run_api(arguments: argparse.Namespace) -> int:
    """The same through an API; 1 when some records have no answer yet."""
    from dataclasses import replace

    import tasks
    from evaluation.predict_api import ApiRequest, predict

    if arguments.prompt not in (None, "natural"):
        raise UserError(
            got=f"--prompt {arguments.prompt} for {arguments.model}",
            wanted="natural: a chat endpoint puts its own template around the prompt",
            fix="leave --prompt out, or predict with the model's folder",
        )
    task = tasks.get(arguments.task)
    out = arguments.out.absolute()
    endpoint = endpoints.endpoint(arguments, arguments.model, arguments.base_url)
    request = ApiRequest(
        task=replace(task, max_new_tokens=arguments.max_new_tokens or task.max_new_tokens),
        split=arguments.split,
        source=arguments.source,
        endpoint=endpoint,
        out=out,
        label=arguments.label or arguments.out.stem,
        shots=arguments.shots,
        limit=arguments.limit,
        budget=endpoints.budget(arguments),
        cache=endpoints.cache_of(arguments, endpoint, out),
        concurrency=arguments.concurrency,
        price_file=arguments.prices,
    )
    outcome = predict(request, say=recipe.say)
    for warning in outcome.warnings:
        recipe.say(f"warning: {warning}")
    print(request.out)
    if outcome.complete:
        return 0
    faults = ", ".join(f"{count} by {fault}" for fault, count in outcome.unanswered.items())
    why = "; ".join(filter(None, [outcome.stopped, f"unanswered: {faults}" if faults else ""]))
    recipe.say(
        f"{outcome.answered} answered, {outcome.missing} missing ({why}); the same command goes on with the rest"
    )
    return 1
