"""Type an input; see the prompt, the raw output and the parsed answer. Reads standard input, one input a line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ray_jobs.commands import recipe
from tasks.base import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL and the task it answers."""
    parser.add_argument("model", help="a Hugging Face folder, a run folder with an export, or a hub id")
    parser.add_argument("--task", help="default: the task of the run the model stands in")
    parser.add_argument("--prompt", choices=("structured", "natural"), default="structured")


def run(arguments: argparse.Namespace) -> int:
    """Answers line by line until the input ends."""
    import tasks
    from fulltune import generate, model, quiet
    from fulltune.config import ModelConfig
    from tasks.base import Completion, Record

    quiet.transformers()
    folder = Path(arguments.model)
    folder = folder / "export" if (folder / "export").is_dir() else folder
    task = tasks.get(arguments.task or _task_of_run(folder))
    source = model.resolve_source(ModelConfig(name_or_path=str(folder)), Path.home() / ".cache" / "fulltune" / "models")
    assert source is not None, "a named model has a folder"
    generator = generate.load(source, task, prompt_style=arguments.prompt, use_gpu=False)
    if sys.stdin.isatty():
        recipe.say(f"{task.description}. Columns: {', '.join(task.columns)}. One input a line; end with Ctrl-D.")
    for number, line in enumerate(sys.stdin):
        text = line.rstrip("\n")
        if not text:
            continue
        # every column holds the input: the reference is not known here, and no score is shown
        record = Record(f"{task.name}-try-{number}", dict.fromkeys(task.columns, text))
        prompt = generator.prompt(record, ())
        answer = generator.answer([prompt], max_new_tokens=task.max_new_tokens)[0]
        parsed = task.score(record, Completion(answer.text, answer.finish_reason)).parsed
        print(f"prompt: {generator.tokenizer.decode(prompt.ids)}")
        print(f"output: {answer.text}  ({answer.completion_tokens} tokens, {answer.finish_reason})")
        print(f"parsed: {parsed}\n", flush=True)
    return 0


def _task_of_run(folder: Path) -> str:
    from evaluation.runs import read_config

    task = read_config(folder.parent).get("task")
    if not isinstance(task, str):
        raise UserError(
            got=f"{folder} without --task", wanted="a model inside a run folder, or --task", fix="pass --task NAME"
        )
    return task
