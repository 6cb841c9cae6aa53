"""What of a report may be committed: its figures, without a row of the data, an answer, or a path of the machine.

Used by publish_result (a training run) and publish_benchmark (a benchmark).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

EXAMPLES = "## Worst examples"  # the first section of the report that quotes records
LEFT_OUT = ("worst", "examples", "items", "provenance", "loss_curve")
DETAILS_LEFT_OUT = ("identity", "run")
_PATH = re.compile(r"(?:file://|(?<![\w.:/~<]))/(?:[\w.+@~-]+/)*([\w.+@~-]+)/?")  # absolute, not part of a URL


def figures_only(report: str) -> str:
    """The report up to its examples.

    Raises:
        SystemExit: it has no such section, so that records cannot be told from figures.
    """
    head, found, _ = report.partition(EXAMPLES)
    if not found:
        raise SystemExit(f"no section {EXAMPLES!r} in the report: its records cannot be told from its figures")
    return str(without_paths(head.rstrip())) + "\n\n"


def results_only(results: dict[str, Any]) -> dict[str, Any]:
    """results.json without items, examples and leaked records; of those only how many there are."""
    kept = {key: value for key, value in results.items() if key not in LEFT_OUT}
    if "leaks" in kept:
        kept["leaks"] = kept["leaks"] | {"records": len(kept["leaks"]["records"])}
    details = [{k: v for k, v in model["details"].items() if k not in DETAILS_LEFT_OUT} for model in kept["models"]]
    kept["models"] = [model | {"details": d} for model, d in zip(kept["models"], details, strict=True)]
    return dict(without_paths(kept))


def without_paths(value: Any) -> Any:
    """The same tree; absolute paths are cut to their last part, wherever they stand in a text."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    return _PATH.sub(r"\1", value) if isinstance(value, str) else value


def refuse_rows(out: Path, texts: list[str], *, shortest: int = 30) -> None:
    """A last look at every text file of `out` for texts that must not be there.

    Args:
        texts: records and answers; what is shorter than `shortest` characters may stand anywhere by chance.

    Raises:
        SystemExit: one is there. The folder is left for inspection.
    """
    published = {file: file.read_text() for file in out.rglob("*") if file.suffix in (".md", ".json", ".yaml")}
    for text in texts:
        if len(text) >= shortest:
            for file, content in published.items():
                if text in content:
                    raise SystemExit(f"{file} holds the text of a record or an answer: {text[:60]!r} ...")
