"""Turn a sharded checkpoint into a Hugging Face folder: safetensors, tokenizer, generation config, model card."""

from __future__ import annotations

import argparse
from pathlib import Path

from tasks.base import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """CHECKPOINT and OUT."""
    parser.add_argument("checkpoint", type=Path, help="a folder runs/<name>/checkpoints/step-...")
    parser.add_argument("out", type=Path, help="the folder to write")


def run(arguments: argparse.Namespace) -> int:
    """Exports, and prints the folder."""
    from fulltune import config, quiet

    quiet.libraries()
    quiet.transformers()
    from ray_jobs.export import export_run

    checkpoint = arguments.checkpoint.absolute()
    recipe_file = checkpoint.parent.parent / "config.yaml"
    if not (checkpoint / "manifest.json").is_file() or not recipe_file.is_file():
        raise UserError(
            got=f"{arguments.checkpoint}",
            wanted="a checkpoint inside its run folder: runs/<name>/checkpoints/step-...",
            fix="list them with ls runs/<name>/checkpoints",
        )
    print(export_run(config.load(recipe_file), checkpoint, arguments.out.absolute()))
    return 0
