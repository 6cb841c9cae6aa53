"""What a result came from: code revision, library versions, data hashes, hardware. Written into every run folder."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from fulltune import device

LIBRARIES = ("torch", "transformers", "deepspeed", "ray", "datasets", "sqlglot", "pydantic")


def collect(*, data: dict[str, Any], arguments: list[str]) -> dict[str, Any]:
    """Provenance of a run as a JSON-able mapping.

    Args:
        data: manifests of the prepared splits, by split.
        arguments: the command line that started the run.
    """
    return {
        "command": arguments,
        "git": _git_revision(),
        "python": sys.version.split()[0],
        "versions": {name: metadata.version(name) for name in LIBRARIES},
        "data": data,
        "hardware": device.describe(),
    }


def write(run: Path, content: dict[str, Any]) -> None:
    """Stores `provenance.json`."""
    (run / "provenance.json").write_text(json.dumps(content, indent=1, default=str))


def _git_revision() -> str | None:
    """The revision of this source tree, with "+changes" if it differs; None outside a checkout (an uploaded job)."""
    root = Path(__file__).resolve().parent.parent
    try:
        revision = _git(root, "rev-parse", "HEAD")
        return revision + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
