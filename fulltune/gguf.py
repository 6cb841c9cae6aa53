"""Converts a folder with a GGUF file into safetensors with config and tokenizer, once.

The weights are dequantised: a sound starting point for fine-tuning, not a reference for the original's scores.
Run by hand as `python -m fulltune.gguf SOURCE_FOLDER OUT_FOLDER`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import uuid
from pathlib import Path

from tasks.base import UserError


def convert(folder: Path, cache: Path) -> Path:
    """The converted copy of the folder's only GGUF file, made on first use.

    Raises:
        UserError: more than one GGUF file, or one that transformers cannot read.
    """
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise UserError(
            got=f"{len(files)} GGUF files in {folder}: {', '.join(f.name for f in files)}",
            wanted="exactly one",
            fix="put the one to use into a folder of its own",
        )
    stat = files[0].stat()
    key = hashlib.sha256(f"{files[0].resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
    out = cache / f"gguf-{key}"
    if not (out / "config.json").exists():
        write(files[0], out)
    return out


def write(file: Path, out: Path) -> None:
    """Dequantises one GGUF file to float32 safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        loaded = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    except (ImportError, OSError, ValueError) as error:
        raise UserError(
            got=f"{file}: {str(error).splitlines()[0]}",
            wanted="a GGUF file of an architecture that transformers can convert",
            fix="install the extra `gguf`, or use the safetensors of this model",
        ) from None
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # save_pretrained would refuse dequantised weights otherwise
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    stage = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    plain.save_pretrained(stage, safe_serialization=True)
    tokenizer.save_pretrained(stage)
    if out.exists():
        shutil.rmtree(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    os.replace(stage, out)


def main(arguments: list[str]) -> int:
    """Converts SOURCE_FOLDER's GGUF file into OUT_FOLDER."""
    if len(arguments) != 2:
        print("usage: python -m fulltune.gguf SOURCE_FOLDER OUT_FOLDER", file=sys.stderr)
        return 2
    source, out = Path(arguments[0]), Path(arguments[1])
    if out.exists() and any(out.iterdir()):
        print(f"got:    {out}, which is not empty\nwanted: a new folder", file=sys.stderr)
        return 2
    files = sorted(source.glob("*.gguf"))
    if len(files) != 1:
        print(f"got:    {len(files)} GGUF files in {source}\nwanted: exactly one", file=sys.stderr)
        return 2
    write(files[0], out)
    print(f"converted {files[0].name} -> {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
