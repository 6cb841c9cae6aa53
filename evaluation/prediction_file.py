"""A predictions.jsonl that grows while a model answers, with the `.meta.json` beside it that says what made it.

Used by `evaluation.predict_api` and `ray_jobs.predict`. A run that was killed goes on where it was: whole lines count,
a torn last one is cut off. Lines of another model or setting are never continued.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation import jsonl
from evaluation.predictions import Prediction, read_predictions, write_predictions
from tasks.base import UserError

KEEP_TIME_S = 5.0  # between two writes of the time spent: the most of it that a SIGKILL takes away


def meta_path(out: Path) -> Path:
    """Where the facts about `out` stand."""
    return out.with_name(f"{out.stem}.meta.json")


@contextlib.contextmanager
def only_run(out: Path) -> Iterator[None]:
    """Holds `out`, through a file beside it that stays. The kernel lets go when the process dies.

    Raises:
        UserError: another process holds it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_name(f".{out.stem}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                got=f"{out} is in use by another run",
                wanted="one run at a time per predictions file",
                fix="wait for it, end it, or choose another --out",
            ) from None
        yield


def read_meta(out: Path) -> dict[str, Any]:
    """The facts about `out`; empty before its first run."""
    path = meta_path(out)
    return jsonl.read_object(path) if path.is_file() else {}


def write_meta(out: Path, facts: Mapping[str, Any]) -> None:
    """Replace the facts about `out`."""
    jsonl.write_text(meta_path(out), jsonl.dump(facts, indent=1) + "\n")


def timekeeper(out: Path, facts: Callable[[float], Mapping[str, Any]]) -> Callable[[], None]:
    """Call the result often: every few seconds it replaces the facts about `out` by `facts(seconds since now)`."""
    started = written = time.perf_counter()

    def keep() -> None:
        nonlocal written
        now = time.perf_counter()
        if now - written >= KEEP_TIME_S:
            write_meta(out, facts(now - started))
            written = now

    return keep


def differing(facts: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """What of an identity the facts about a file contradict; a name that older files lack counts as None."""
    before = facts.get("identity", {})
    return [name for name in identity if before.get(name) != json.loads(jsonl.dump(identity[name]))]


def answered(out: Path, identity: Mapping[str, Any]) -> dict[str, Prediction]:
    """The predictions that `out` holds already, by id.

    Raises:
        UserError: they were made under another identity, or nobody says under which.
    """
    if not out.exists():
        return {}
    if others := differing(read_meta(out), identity):
        raise UserError(
            got=f"{out} holds predictions made with another {', '.join(others)}",
            wanted="a new file, or one that this command began",
            fix="choose another --out or delete the file",
        )
    with out.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
    return dict(read_predictions(out).by_id)


def finish(out: Path, order: Sequence[str]) -> list[Prediction]:
    """Put the lines into the order of the records, so that equal predictions are equal files; returns them."""
    place = {identity: number for number, identity in enumerate(order)}
    rows = sorted(read_predictions(out).by_id.values(), key=lambda row: place.get(row.id, len(place)))
    write_predictions(out, rows)
    return rows
