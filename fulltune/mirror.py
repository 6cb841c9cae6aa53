"""A second home for checkpoints on an object store. There is no rename: the manifest, written last, is the commit.

    s3://bucket/prefix/<run>/step-00000120/{state/*.pt ..., manifest.json}      .../pointer.json

Every worker uploads its own files beside the training, worker 0 then writes the manifest and after it the pointer. An
object is there whole or not at all, so a checkpoint without a manifest does not exist. A run folder that has lost its
checkpoints gets the newest whole one back: every worker downloads its share, and hashes decide before it is published.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

from fulltune import commit
from fulltune.checkpoint import MANIFEST, POINTER, Peers, damage, name, published
from fulltune.comm import agreed
from tasks.base import UserError

CHUNK = 2**24


@dataclass(frozen=True, slots=True)
class Mirror:
    """One run's folder on a store."""

    store: Any
    base: str

    def clear(self, step: int) -> None:
        """Takes away what an undone future left under this name, its commit first. Worker 0, before anybody uploads."""
        self._delete(f"{self.base}/{name(step)}")

    def put(self, step: int, folder: Path, files: Iterable[Path]) -> None:
        """Uploads one worker's files."""
        for file in files:
            self._upload(file, f"{self.base}/{name(step)}/{file.relative_to(folder)}")

    def publish(self, root: Path, step: int) -> None:
        """Worker 0, when all files are there: the manifest, the pointer, and then what the run folder dropped goes.

        Raises:
            OSError: the store refuses, or lacks a file of some worker: without its manifest the copy does not exist.
        """
        self._refuse_incomplete(root / name(step), f"{self.base}/{name(step)}")
        self._upload(root / name(step) / MANIFEST, f"{self.base}/{name(step)}/{MANIFEST}")
        self._upload(root / POINTER, f"{self.base}/{POINTER}")
        kept = {name(step) for step in published(root)}
        for info in self.store.get_file_info(fs.FileSelector(self.base, allow_not_found=True)):
            if info.base_name.startswith("step-") and info.base_name not in kept:
                self._delete(f"{self.base}/{info.base_name}")

    def restore(self, root: Path, peers: Peers, say: Callable[[str], None]) -> None:
        """Brings the newest whole checkpoint back into a run folder that has none; every worker calls it.

        Raises:
            UserError: checkpoints lie on the store but no pointer, or none of them is whole.
        """
        wanted = agreed(peers, lambda: self._wanted(root) if peers.rank == 0 else [])[0]
        for step in wanted:
            if self._download(root, step, peers, say):
                return
        if wanted:
            raise UserError(
                got=f"no whole checkpoint among {[name(step) for step in wanted]} in {self.base}",
                wanted="an undamaged copy to resume from",
                fix="see the messages above; restore one, or start under another ray.name",
            )

    def _wanted(self, root: Path) -> list[int]:
        """Steps to try, newest first; none where the run folder has its own or nothing was ever uploaded.

        A pointer alone is not its own: a restore that was cut off leaves one, and so does whoever deletes checkpoints.
        """
        if published(root):
            return []
        infos = self.store.get_file_info(fs.FileSelector(self.base, allow_not_found=True, recursive=True))
        ends = [info.path.split("/")[-2] for info in infos if info.base_name == MANIFEST]
        steps = sorted((int(folder.removeprefix("step-")) for folder in ends), reverse=True)
        if not any(info.base_name == POINTER for info in infos):
            if not steps:
                return []
            raise UserError(
                got=f"{len(steps)} checkpoints in {self.base} but no {POINTER}",
                wanted="the pointer that says which of them was published last",
                fix=f'write {{"step": {steps[0]}}} into it to resume there, or use another ray.name',
            )
        last = int(json.loads(self._read(f"{self.base}/{POINTER}"))["step"])
        return [step for step in steps if step <= last]

    def _download(self, root: Path, step: int, peers: Peers, say: Callable[[str], None]) -> bool:
        """One checkpoint into a stage, verified and published; False where it is damaged."""
        stage = root / f"{commit.STAGE}{name(step)}-{peers.gather(uuid.uuid4().hex[:8])[0]}"
        remote = f"{self.base}/{name(step)}"
        if peers.rank == 0:
            commit.open_stage(root, stage.name.removeprefix(commit.STAGE))
            say(f"bringing {name(step)} back from {self.base}")
            (stage / MANIFEST).write_bytes(self._read(f"{remote}/{MANIFEST}"))
        peers.barrier()
        files = sorted(json.loads((stage / MANIFEST).read_text())["files"])
        for relative in files[peers.rank :: peers.size]:
            self._fetch(f"{remote}/{relative}", stage / relative)
        peers.barrier()
        problems = damage(stage, peers)
        if peers.rank == 0 and problems:
            say(f"{remote} is damaged and is skipped: {'; '.join(problems)}")
            shutil.rmtree(stage)
        elif peers.rank == 0:
            commit.publish_copy(root, stage, step, best=self._best(step))
        peers.barrier()
        return not problems

    def _refuse_incomplete(self, folder: Path, remote: str) -> None:
        sizes = {path: entry["bytes"] for path, entry in json.loads((folder / MANIFEST).read_text())["files"].items()}
        infos = self.store.get_file_info([f"{remote}/{path}" for path in sizes])
        lacking = [path for (path, size), info in zip(sizes.items(), infos, strict=True) if info.size != size]
        if lacking:
            raise OSError(f"{len(lacking)} of {len(sizes)} files are not whole in {remote}, first {lacking[0]}")

    def _best(self, step: int) -> dict[str, Any]:
        """The pointer's word on the best checkpoint, where that is the one that comes back."""
        content = json.loads(self._read(f"{self.base}/{POINTER}"))
        return {key: content[key] for key in ("best", "best_valid_loss") if content.get("best") == step}

    def _upload(self, file: Path, path: str) -> None:
        self.store.create_dir(path.rpartition("/")[0], recursive=True)  # a store without folders does nothing
        with file.open("rb") as source, self.store.open_output_stream(path) as target:
            shutil.copyfileobj(source, target, CHUNK)

    def _fetch(self, path: str, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        if self.store.get_file_info(path).type != fs.FileType.File:
            return  # named as missing by the verification
        with self.store.open_input_stream(path) as source, file.open("wb") as target:
            shutil.copyfileobj(source, target, CHUNK)

    def _read(self, path: str) -> bytes:
        with self.store.open_input_stream(path) as source:
            content: bytes = source.read()
        return content

    def _delete(self, folder: str) -> None:
        """The commit first, so that half a checkpoint is none."""
        if self.store.get_file_info(f"{folder}/{MANIFEST}").type == fs.FileType.File:
            self.store.delete_file(f"{folder}/{MANIFEST}")
        if self.store.get_file_info(folder).type == fs.FileType.Directory:
            self.store.delete_dir(folder)


def connect(uri: str, run: str) -> Mirror:
    """The run's folder below `uri`, for example s3://bucket/prefix, gs://bucket/prefix or file:///path.

    Raises:
        UserError: no file system for this URI; credentials are those of the environment.
    """
    try:
        store, base = fs.FileSystem.from_uri(uri)
    except (ValueError, OSError, NotImplementedError) as error:
        raise UserError(
            got=f"checkpoint.upload_to: {uri}: {str(error).splitlines()[0]}",
            wanted="a URI that pyarrow opens: s3://bucket/prefix, gs://bucket/prefix, file:///folder",
            fix="check the scheme and the credentials in the environment of the workers",
        ) from None
    return Mirror(store, f"{base.rstrip('/')}/{run}")
