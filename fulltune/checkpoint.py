"""Checkpoints that exist whole or are never selected.

    stage folder -> every worker writes and hashes its own shard -> manifest -> atomic rename -> pointer

DeepSpeed publishes its `latest` file before all shards are safe, so we own the commit: nothing is visible under its
final name before every file has been written, flushed and hashed, and the pointer is moved last. Loading verifies
hashes before a byte is unpickled; a torn or changed checkpoint is named and the one before it is used; checkpoints
without a pointer are an error, never a silent restart.

    checkpoints/step-000120/{state/*.pt, rng-0.pt ..., manifest.json}      checkpoints/pointer.json
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
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
    """A verified checkpoint; `meta` is what the trainer stored with it."""

    path: Path
    step: int
    meta: Mapping[str, Any]


def name(step: int) -> str:
    """The folder's name; sorts by step."""
    return f"step-{step:08d}"


def save(
    root: Path,
    step: int,
    write: Callable[[Path], None],
    *,
    meta: Mapping[str, Any],
    peers: Peers,
    keep_last: int,
    protect: Callable[[], Collection[int]] = tuple,
) -> Path:
    """Writes and publishes the checkpoint of `step`; every worker calls it.

    Args:
        write: writes this worker's files below the folder it is given.
        meta: stored in the manifest. `meta["valid_loss"]`, if there, decides which checkpoint is the best.
        keep_last: how many of the newest stay; the best one stays as well if `meta` has a validation loss.
        protect: steps that stay whatever their age, asked after publishing.
    """
    stage, final = root / f".stage-{name(step)}", root / name(step)
    if peers.rank == 0:
        shutil.rmtree(stage, ignore_errors=True)  # left behind by a killed attempt
        stage.mkdir(parents=True)
    peers.barrier()
    write(stage)
    peers.barrier()  # all files are there: each worker now hashes its own
    own = [file for file in _files(stage) if _owner(file.name) == peers.rank]
    hashes = {str(file.relative_to(stage)): _flush_and_hash(file) for file in own}
    parts = peers.gather(hashes)
    if peers.rank == 0:
        files = {path: entry for part in parts for path, entry in part.items()}
        _publish(stage, final, {"step": step, "workers": peers.size, "meta": dict(meta), "files": files})
        _point(root, step, meta.get("valid_loss"))
        prune(root, keep_last, protect())
    peers.barrier()
    return final


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
    newest = int(json.loads((root / POINTER).read_text())["step"])
    candidates = [step for step in reversed(steps) if step <= newest]
    for step in candidates:
        found = _verify(root / name(step), peers, say)
        if found is not None:
            return found
    raise UserError(
        got=f"no usable checkpoint among {[name(step) for step in candidates] or 'none'} in {root}",
        wanted=f"an undamaged checkpoint up to step {newest}",
        fix="see the messages above for what is damaged; restore it, or use another ray.name",
    )


def newest(root: Path) -> Found | None:
    """What the newest published checkpoint says of itself, unverified; None where there is none to read."""
    step = _pointer(root).get("step")
    if step is None or not (root / name(step) / MANIFEST).exists():
        return None
    manifest = json.loads((root / name(step) / MANIFEST).read_text())
    return Found(path=root / name(step), step=step, meta=manifest["meta"])


def best(root: Path) -> Path | None:
    """The checkpoint with the lowest validation loss; None where no loss was taken or the folder is gone."""
    step = _pointer(root).get("best")
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
            got=f"{path}: {'; '.join(problems)}", wanted="an undamaged checkpoint", fix="use an earlier checkpoint"
        )
    manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
    return manifest


def _verify(path: Path, peers: Peers, say: Callable[[str], None]) -> Found | None:
    mine = _problems(path, share=lambda index: index % peers.size == peers.rank)
    problems = [problem for part in peers.gather(mine) for problem in part]
    if problems:
        if peers.rank == 0:
            say(f"checkpoint {path.name} is damaged and is skipped: {'; '.join(sorted(set(problems)))}")
        return None
    manifest = json.loads((path / MANIFEST).read_text())
    return Found(path=path, step=int(manifest["step"]), meta=manifest["meta"])


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
    if not file.exists():
        return f"{relative} is missing"
    if file.stat().st_size != entry["bytes"]:
        return f"{relative} has {file.stat().st_size} bytes, wanted {entry['bytes']}"
    return None if _hash(file) == entry["sha256"] else f"{relative} differs from what was written (SHA-256)"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _owner(file: str) -> int:
    """The worker that wrote a file: DeepSpeed and we put the rank into the names of shards; the rest is worker 0's."""
    for marker in ("zero_pp_rank_", "rng-"):
        _, found, rest = file.partition(marker)
        if found:
            return int(rest.replace("_", ".").partition(".")[0])
    return 0


def _flush_and_hash(file: Path) -> dict[str, Any]:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
    return {"bytes": file.stat().st_size, "sha256": _hash(file)}


def _hash(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _publish(stage: Path, final: Path, manifest: Mapping[str, Any]) -> None:
    _write_durably(stage / MANIFEST, json.dumps(manifest, indent=1))
    for folder in {file.parent for file in _files(stage)}:
        _sync_folder(folder)
    if final.exists():  # a damaged checkpoint of the same step, passed over at resume
        shutil.rmtree(final)
    os.replace(stage, final)
    _sync_folder(final.parent)


def _pointer(root: Path) -> dict[str, Any]:
    try:
        pointer: dict[str, Any] = json.loads((root / POINTER).read_text())
    except FileNotFoundError:
        return {}
    return pointer


def _point(root: Path, step: int, valid_loss: float | None) -> None:
    pointer = _pointer(root) | {"step": step}
    if pointer.get("best", 0) > step:  # that future was undone by resuming from an earlier checkpoint
        pointer.pop("best")
        pointer.pop("best_valid_loss")
    if valid_loss is not None and valid_loss < pointer.get("best_valid_loss", float("inf")):
        pointer |= {"best": step, "best_valid_loss": valid_loss}
    temporary = root / f".{POINTER}"
    _write_durably(temporary, json.dumps(pointer))
    os.replace(temporary, root / POINTER)
    _sync_folder(root)


def prune(root: Path, keep_last: int, protect: Collection[int] = ()) -> None:
    """Removes all but the newest `keep_last`, the best, and the protected ones; and those of a future that was undone.

    One process at a time calls it.
    """
    steps = published(root)
    newest = _pointer(root)["step"]
    stale = [step for step in steps if step > newest]  # of a future that was undone
    kept = [step for step in steps if step <= newest][-keep_last:]
    kept += [*protect, _pointer(root).get("best", newest)]
    for step in steps:
        if step in stale or step not in kept:
            shutil.rmtree(root / name(step), ignore_errors=True)


def _write_durably(file: Path, text: str) -> None:
    with file.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
