"""The `fulltune` command: reads the command line and hands over to one function per command.

Exit codes: 0 success, 2 a mistake the user can mend (got / wanted / fix), 1 failure; `submit --wait` the job's own.
Nothing heavy is imported before a command is known, so `fulltune --help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from tasks.base import UserError

# command -> (module with `add_arguments` and `run`, one line of help)
COMMANDS = {
    "demo": ("ray_jobs.commands.demo", "the whole story on a CPU in minutes: train, score before and after, report"),
    "train": ("ray_jobs.commands.train", "train a recipe on Ray; the same command resumes; ends in its report"),
    "plan": ("ray_jobs.commands.plan", "what a recipe will need: memory, time and cost, and whether it fits"),
    "preflight": ("ray_jobs.commands.preflight", "try a recipe on the real workers in minutes: go, or what to change"),
    "prepare": ("ray_jobs.commands.prepare", "tokenise a recipe's data and build its starting model, and stop there"),
    "submit": ("ray_jobs.commands.submit", "send a recipe to a Ray cluster as a job"),
    "export": ("ray_jobs.commands.export", "turn a checkpoint into a Hugging Face folder"),
    "predict": ("ray_jobs.commands.predict", "let a model answer a split"),
    "score": ("ray_jobs.commands.score", "score a predictions file against references"),
    "compare": ("ray_jobs.commands.compare", "the report over runs or predictions files"),
    "benchmark": ("ray_jobs.commands.benchmark", "models and endpoints x tasks, from one YAML to a report per task"),
    "probe": ("ray_jobs.commands.probe", "is fine-tuning promising? a base model's few-shot curve and two answers"),
    "try": ("ray_jobs.commands.try_model", "type an input; see the prompt, the raw output and the parsed answer"),
    "tasks": ("ray_jobs.commands.tasks", "list the tasks, or show one: texts, scores, data facts, leaks"),
    "new-task": ("ray_jobs.commands.new_task", "write a task file, its fixture and its test, which pass as they are"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if not arguments or arguments[0] in ("-h", "--help"):
        parser.print_help()
        return 0
    if arguments[0] not in COMMANDS:
        parser.error(_unknown(arguments[0]))
    command = import_module(COMMANDS[arguments[0]][0])
    own = argparse.ArgumentParser(prog=f"fulltune {arguments[0]}", description=command.__doc__, allow_abbrev=False)
    command.add_arguments(own)
    try:
        return int(command.run(own.parse_intermixed_args(arguments[1:])))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items())
    return argparse.ArgumentParser(
        prog="fulltune",
        usage="fulltune COMMAND [RECIPE] [dotted.key=value ...]",
        description="Full-parameter fine-tuning of causal language models on Ray and DeepSpeed, honestly evaluated.",
        epilog=f"commands:\n{lines}\n\n`fulltune COMMAND --help` explains one of them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _unknown(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, COMMANDS, n=1)
    return f"unknown command {name!r}" + (f"; did you mean {near[0]!r}?" if near else "") + " (see fulltune --help)"


if __name__ == "__main__":
    raise SystemExit(main())
