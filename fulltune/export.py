"""Export: from a sharded checkpoint to a Hugging Face folder, one tensor file at a time.

    checkpoints/step-N -> model-0000x-of-0000y.safetensors + index, config, tokenizer, generation config, README

Off the training path: it reads the committed checkpoint, never the live engine, so it needs no GPU and no more memory
than one output file. Hashes are verified before a pickle is opened.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fulltune import checkpoint
from fulltune import tokenizer as tok
from tasks.base import Task, UserError

FILE_BYTES = 4 * 2**30
MARK = "fulltune.json"  # in every export: which checkpoint it came from
HF_FILES = "hf"  # folder inside a checkpoint with config.json and the tokenizer


def keep_model_files(model_dir: Path, folder: Path) -> list[Path]:
    """Puts what an export needs besides tensors into a checkpoint: config and tokenizer. Returns the files."""
    target = folder / HF_FILES
    target.mkdir()
    return [
        Path(shutil.copy(file, target / file.name))
        for file in sorted(model_dir.iterdir())
        if file.is_file() and file.suffix in {".json", ".model", ".txt", ".jinja"} and "index" not in file.name
    ]


def export(source: Path, out: Path, task: Task, *, dtype: str, card: str, file_bytes: int = FILE_BYTES) -> Path:
    """Writes the Hugging Face folder `out`; an older one of that name is replaced only when the new one is whole.

    Args:
        source: a checkpoint folder.
        dtype: of the written floating-point tensors, for example "bfloat16".
        card: the text of README.md.

    Raises:
        UserError: the checkpoint is damaged, or `out` holds something else.
    """
    if out.exists() and any(out.iterdir()) and not (out / MARK).exists():
        raise UserError(
            got=f"{out} exists and was not written by an export",
            wanted="a folder that is new, empty, or an earlier export",
            fix="name another folder; nothing was deleted",
        )
    checkpoint.verify(source)
    stage = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    stage.mkdir(parents=True)
    for file in (source / HF_FILES).iterdir():
        shutil.copy(file, stage / file.name)
    config = json.loads((stage / "config.json").read_text())
    _write_tensors(source, stage, dtype=dtype, tied=bool(config.get("tie_word_embeddings")), file_bytes=file_bytes)
    (stage / "config.json").write_text(json.dumps(config | {"dtype": dtype}, indent=2))
    (stage / "generation_config.json").write_text(json.dumps(_generation_config(stage, task), indent=2))
    (stage / "README.md").write_text(card)
    (stage / MARK).write_text(json.dumps(origin(source)))
    if out.exists():
        shutil.rmtree(out)
    os.replace(stage, out)
    return out


def origin(source: Path) -> dict[str, Any]:
    """What identifies the content of a checkpoint: its name and the hashes of its files."""
    files = json.loads((source / checkpoint.MANIFEST).read_text())["files"]
    return {"checkpoint": source.name, "files": files}


def _generation_config(folder: Path, task: Task) -> dict[str, Any]:
    """Greedy, and stopping at the task's stop token as well as at the model's own EOS."""
    tokenizer = tok.load(str(folder))
    ends = {tok.stop_id(tokenizer, task), tokenizer.eos_token_id} - {None}
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": sorted(ends),
        "pad_token_id": tokenizer.pad_token_id,
        "do_sample": False,
        "max_new_tokens": task.max_new_tokens,
    }


def _write_tensors(source: Path, out: Path, *, dtype: str, tied: bool, file_bytes: int) -> None:
    """Fills files up to `file_bytes`, writes each as soon as it is full, then names them and writes the index."""
    from safetensors.torch import save_file

    from fulltune import device

    sizes: dict[str, list[str]] = {}
    total = 0
    for number, group in enumerate(_groups(source, device.torch_dtype(dtype), tied=tied, file_bytes=file_bytes)):
        part = f".part-{number:05d}"
        save_file(group, str(out / part), metadata={"format": "pt"})
        sizes[part] = list(group)
        total += sum(tensor.nbytes for tensor in group.values())
    names = _final_names(list(sizes))
    for part, final in names.items():
        os.replace(out / part, out / final)
    if len(names) > 1:
        weight_map = {tensor: names[part] for part, tensors in sizes.items() for tensor in tensors}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1, sort_keys=True))


def _groups(source: Path, dtype: Any, *, tied: bool, file_bytes: int) -> Iterator[dict[str, Any]]:
    from fulltune.engine import shards

    group: dict[str, Any] = {}
    held = 0
    for name, tensor in shards.tensors(source):
        if tied and name == "lm_head.weight":
            continue  # the same matrix as the input embedding; transformers ties them again on load
        cast = tensor.to(dtype) if tensor.is_floating_point() else tensor
        if group and held + cast.nbytes > file_bytes:
            yield group
            group, held = {}, 0
        group[name] = cast.contiguous()
        held += cast.nbytes
    yield group


def _final_names(parts: list[str]) -> Mapping[str, str]:
    if len(parts) == 1:
        return {parts[0]: "model.safetensors"}
    return {part: f"model-{i:05d}-of-{len(parts):05d}.safetensors" for i, part in enumerate(parts, start=1)}
