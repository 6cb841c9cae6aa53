"""Checkpoints that exist whole or are never selected: finding, verifying and naming them.

    checkpoints/step-00000120/{state/*.pt, rng-0.pt ..., manifest.json}      checkpoints/pointer.json

`fulltune.commit` writes them. Here a checkpoint is taken only if the size and SHA-256 of every file are those of its
manifest, checked before a byte is unpickled; a torn or changed one is named and the one before it is used;
checkpoints without a pointer are an error, never a silent restart.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tasks.base import UserError

FOLDER = "checkpoints"  # in the run folder
POINTER = "pointer.json"
MANIFEST = "manifest.json"


class Peers(Protocol):
    """The workers that save and load together (`fulltune.comm.Workers`)."""

    @property
    def rank(self) -> int:
        """This worker's number, from 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    def gather(self, value: Any) -> list[Any]:
        """Every worker's value."""

    def barrier(self) -> None:
        """Waits for all."""


@dataclass(frozen=True, slots=True)
class Found:
    """A verified checkpoint; `meta` is what the trainer stored with it, `workers` how many wrote it."""

    path: Path
    step: int
    workers: int
    meta: Mapping[str, Any]


def name(step: int) -> str:
    """The folder's name; sorts by step."""
    return f"step-{step:08d}"


def latest(root: Path, *, peers: Peers, say: Callable[[str], None]) -> Found | None:
    """The newest checkpoint whose every byte is as it was written; None where none was ever published.

    Workers share the hashing and agree on the result. Checkpoints that fail are named through `say`.

    Raises:
        UserError: there are checkpoints but no pointer, or every checkpoint is damaged.
    """
    steps = published(root)
    if not (root / POINTER).exists():
        if not steps:
            return None
        raise UserError(
            got=f"{len(steps)} checkpoints in {root} but no {POINTER}",
            wanted="the pointer that says which of them was published last",
            fix=f'restore it from a backup, write {{"step": {steps[-1]}}} into it to resume there, or use another '
            "ray.name",
        )
    newest = pointer(root)["step"]
    if newest == 0:  # the first save was cut off before it was published
        return None
    candidates = [step for step in reversed(steps) if step <= newest]
    for step in candidates:
        found = _verify(root / name(step), peers, say)
        if found is not None:
            return found
    raise UserError(
        got=f"no usable checkpoint among {[name(step) for step in candidates] or 'none'} in {root}",
        wanted=f"an undamaged checkpoint up to step {newest}",
        fix="see the messages above for what is damaged; restore it, or use another ray.name; where "
        "checkpoint.upload_to has copies, remove the damaged ones: a run folder without any gets the newest copy",
    )


def newest(root: Path) -> Found | None:
    """What the newest readable checkpoint says of itself, unverified; None where there is none to read."""
    last = pointer(root).get("step", 0)
    for step in reversed([step for step in published(root) if step <= last]):
        with contextlib.suppress(OSError, ValueError, KeyError):
            return _found(root / name(step))
    return None


def best(root: Path) -> Path | None:
    """The checkpoint with the lowest validation loss; None where no loss was taken or the folder is gone."""
    step = pointer(root).get("best")
    path = root / name(step) if step is not None else None
    return path if path is not None and path.exists() else None


def published(root: Path) -> list[int]:
    """Steps of the published checkpoints, ascending."""
    matches = (re.fullmatch(r"step-(\d{8,})", path.name) for path in root.glob("step-*") if path.is_dir())
    return sorted(int(match.group(1)) for match in matches if match)


def verify(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint all of whose files are as they were written (single process).

    Raises:
        UserError: no manifest, or a file that is missing or changed.
    """
    problems = _problems(path, share=lambda _: True)
    if problems:
        raise UserError(
            got=f"{path}: {'; '.join(problems)}",
            wanted="an undamaged checkpoint",
            fix="use an earlier one; or remove this one, and the command that trained it goes on from the one before",
        )
    manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
    return manifest


def damage(path: Path, peers: Peers) -> list[str]:
    """What differs from the manifest, the same list on every worker; they share the hashing."""
    mine = _problems(path, share=lambda index: index % peers.size == peers.rank)
    return sorted({problem for part in peers.gather(mine) for problem in part})


def _verify(path: Path, peers: Peers, say: Callable[[str], None]) -> Found | None:
    problems = damage(path, peers)
    if problems:
        if peers.rank == 0:
            say(f"checkpoint {path.name} is damaged and is skipped: {'; '.join(problems)}")
        return None
    return _found(path)


def _found(path: Path) -> Found:
    manifest = json.loads((path / MANIFEST).read_text())
    return Found(path=path, step=int(manifest["step"]), workers=int(manifest["workers"]), meta=manifest["meta"])


def _problems(path: Path, *, share: Callable[[int], bool]) -> list[str]:
    """What is wrong with the files that fall to this worker; sizes first, they are cheap."""
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        return [f"{MANIFEST}: {error}"]
    return [
        problem
        for index, (relative, entry) in enumerate(sorted(files.items()))
        if share(index) and (problem := _file_problem(path / relative, relative, entry))
    ]


def _file_problem(file: Path, relative: str, entry: Mapping[str, Any]) -> str | None:
    try:
        size = file.stat().st_size
        if size != entry["bytes"]:
            return f"{relative} has {size} bytes, wanted {entry['bytes']}"
        return None if sha256(file) == entry["sha256"] else f"{relative} differs from what was written (SHA-256)"
    except FileNotFoundError:
        return f"{relative} is missing"
    except OSError as error:  # a bad sector, a server that does not answer for this file: an older one may be whole
        return f"{relative} cannot be read: {error.strerror}"


def sha256(file: Path) -> str:
    """The hash of a file's bytes, hexadecimal."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def pointer(root: Path) -> dict[str, Any]:
    """`step` of the newest checkpoint (0: none yet), and `best` with `best_valid_loss` where one was taken.

    Empty where there is no such file.

    Raises:
        UserError: the file holds something else; it is written by an atomic rename, so somebody edited it.
    """
    try:
        text = (root / POINTER).read_text()
    except FileNotFoundError:
        return {}
    try:
        content = json.loads(text)
        return {**content, "step": int(content["step"])}
    except (ValueError, KeyError, TypeError):
        raise UserError(
            got=f"{root / POINTER} holds {text[:80]!r}",
            wanted='{"step": N}, the step of the newest checkpoint',
            fix=f"write one of the steps {published(root)} into it",
        ) from None
