"""The starting point of a run: a folder of safetensors whose vocabulary already has the task's tokens.

Embeddings are resized here, once, on one process, before any sharding: resizing a ZeRO-3 model in place leaves
unpartitioned rows behind (transformers #25977, #41959). Pretrained weights are streamed file by file and only the files
that hold an embedding are rewritten, so a 70B model needs the memory of one file. Every worker then loads a
checkpoint of the final shape, partitioned from the start.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import uuid
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fulltune import gguf
from fulltune import tokenizer as tok
from fulltune.config import ModelConfig
from tasks.base import Task, UserError

MULTIPLE = 64  # rows of an embedding: a multiple of 64 keeps matrix kernels aligned
# how the row of a new token starts: a rule by name, or the old rows whose mean it is
Rule = Literal["mean", "mean_noise", "covariance"] | tuple[int, ...]
NOISE = 0.02  # standard deviation around the mean row for new tokens; also the initialisation of Llama


def resolve_source(config: ModelConfig, cache: Path) -> Path | None:
    """The local folder of pretrained weights; downloads or converts where needed. None for random initialisation.

    Raises:
        UserError: no such folder, or a folder without weights that can be read safely.
    """
    if config.init == "random":
        return None
    assert config.name_or_path is not None, "the configuration checks this"
    folder = Path(config.name_or_path).expanduser()
    if not folder.is_dir():
        folder = _download(config)
    if any(folder.glob("*.safetensors")):
        return folder
    if any(folder.glob("*.gguf")):
        return gguf.convert(folder, cache)
    found = sorted(p.name for p in folder.iterdir())[:8]
    raise UserError(
        got=f"{folder} holds {', '.join(found) or 'nothing'}",
        wanted="*.safetensors (or *.gguf) with config.json; pickled *.bin weights are refused: loading them runs code",
        fix="name another revision, or save the model once with save_pretrained(safe_serialization=True)",
    )


def _download(config: ModelConfig) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "README.md"]  # the card says the licence
    try:
        return Path(snapshot_download(str(config.name_or_path), revision=config.revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            got=f"model {config.name_or_path!r}: {str(error).splitlines()[0]}",
            wanted="a folder on this machine, or a hub id that can be downloaded",
            fix="check the path, the network, and HF_TOKEN for gated models such as Llama-2",
        ) from None


def prepare(
    config: ModelConfig, task: Task, texts: Sequence[str], *, seed: int, cache: Path, others: Sequence[Task] = ()
) -> Path:
    """Builds the run's starting folder (weights, config, tokenizer), or finds it built.

    Args:
        others: further tasks of a mixture, whose tokens are added after those of the run's task.
        texts: training texts, for a tokenizer that is trained.
        seed: of the random initialisation and of the noise in new rows.
    """
    source = resolve_source(config, cache)
    tokenizer = _tokenizer(config, source, texts)
    base_eos = tokenizer.eos_token_id
    new_ids = tok.add_task_tokens(tokenizer, task, *others)
    rows = _starting_rows(config, (task, *others), tokenizer, new_ids, base_eos)
    folder = cache / f"model-{_key(config, source, tokenizer, rows, seed)}"
    if (folder / "config.json").exists():
        return folder
    stage = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    stage.mkdir(parents=True)
    if source is None:
        _initialise(config, tokenizer, stage, seed=seed)
    else:
        _stream(source, stage, num_tokens=len(tokenizer), rows=rows, seed=seed)
    tok.save(tokenizer, stage)
    try:
        os.replace(stage, folder)
    except OSError:  # another process built the same folder first
        shutil.rmtree(stage)
    return folder


def _tokenizer(config: ModelConfig, source: Path | None, texts: Sequence[str]) -> tok.Tokenizer:
    if config.tokenizer is not None:
        return tok.train_bpe(texts, config.tokenizer.vocab_size)
    return tok.load(str(source or config.name_or_path), None if source else config.revision)


def _key(
    config: ModelConfig, source: Path | None, tokenizer: tok.Tokenizer, rows: Mapping[int, Rule], seed: int
) -> str:
    settings = config.model_dump(mode="json", exclude={"name_or_path", "revision"} if source else set())
    digest = hashlib.sha256(json.dumps([settings, sorted(rows.items()), seed]).encode())
    digest.update(tok.fingerprint(tokenizer).encode())
    for file in sorted(source.glob("*.safetensors")) if source else ():
        digest.update(f"{file.name} {file.stat().st_size}".encode() + _sample(file))
    return digest.hexdigest()[:16]


def _sample(file: Path, size: int = 2**20) -> bytes:
    """The first and last bytes of a file: enough to tell weights apart without reading 140 GB."""
    with file.open("rb") as handle:
        head = handle.read(size)
        handle.seek(max(0, file.stat().st_size - size))
        return head + handle.read(size)


def _starting_rows(
    config: ModelConfig, tasks: Sequence[Task], tokenizer: tok.Tokenizer, new_ids: Sequence[int], eos: int | None
) -> dict[int, Rule]:
    """New id -> how its row starts. A stop token means what EOS meant, unless told otherwise."""
    rows = {new: _rule(config, tasks, tokenizer, new) for new in new_ids}
    for stop in (tok.stop_id(tokenizer, task) for task in tasks):
        if config.stop_token_init == "eos" and stop in rows and eos is not None:
            rows[stop] = (eos,)
    return rows


def _rule(config: ModelConfig, tasks: Sequence[Task], tokenizer: tok.Tokenizer, new_id: int) -> Rule:
    """The configured rule; `description` becomes the ids of a task's words, or of the token's letters."""
    if config.new_token_init != "description":
        return config.new_token_init
    token = tokenizer.convert_ids_to_tokens(new_id)
    described = {name: words for task in tasks for name, words in task.token_descriptions.items()}
    text = described.get(token) or " ".join(re.findall("[a-z]+", token.lower()))
    return tuple(tokenizer(text, add_special_tokens=False).input_ids) or "mean"


def _initialise(config: ModelConfig, tokenizer: tok.Tokenizer, out: Path, *, seed: int) -> None:
    """A randomly initialised Llama of the configured shape."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    try:
        shape = LlamaConfig(
            **config.config,
            vocab_size=padded(len(tokenizer)),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        torch.manual_seed(seed)
        model = LlamaForCausalLM(shape)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            got=f"model.config {config.config}: {error}",
            wanted="a shape that transformers' LlamaConfig takes",
            fix="for example hidden_size: 192, num_hidden_layers: 4, num_attention_heads: 4, intermediate_size: 512",
        ) from None
    model.save_pretrained(out, safe_serialization=True)


def padded(num_tokens: int) -> int:
    """The next multiple of 64."""
    return -(-num_tokens // MULTIPLE) * MULTIPLE


def _stream(source: Path, out: Path, *, num_tokens: int, rows: Mapping[int, Rule], seed: int) -> None:
    """Copies the weights file by file; embedding matrices grow to `num_tokens`, padded, with their new rows filled."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    config = json.loads((source / "config.json").read_text())
    names = embedding_names(config)
    size = max(config["vocab_size"], padded(num_tokens))
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            keys = list(tensors.keys())
            if not names & set(keys):
                _link(file, out / file.name)
                continue
            held = {key: tensors.get_tensor(key) for key in keys}
            metadata = tensors.metadata()
        for name in names & set(keys):
            # the noise depends on the tensor's name, not on how the tensors are spread over files
            held[name] = grow(held[name], size, rows, seed=seed + zlib.crc32(name.encode()))
        save_file(held, str(out / file.name), metadata=metadata)
    for file in source.glob("*.json"):
        if "token" not in file.name and file.name not in ("config.json", "generation_config.json", "vocab.json"):
            shutil.copy(file, out / file.name)
    config["vocab_size"] = size
    (out / "config.json").write_text(json.dumps(config, indent=2))


def embedding_names(config: Mapping[str, Any]) -> set[str]:
    """State-dict names of the input and output embedding, read off the architecture without weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings)
    wanted = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    return {name for name, parameter in model.named_parameters(remove_duplicate=False) if id(parameter) in wanted}


def grow(matrix: Any, size: int, rows: Mapping[int, Rule], *, seed: int) -> Any:
    """An embedding (V, H) with `size` rows: old ones untouched, new tokens by their rule, unused ones the mean."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    old = matrix.float()
    mean = old.mean(dim=0)  # (H,)
    grown = torch.cat([matrix, mean.to(matrix.dtype).expand(size - len(matrix), -1)])  # (size, H)
    for row, rule in sorted(rows.items()):
        grown[row] = _new_row(old, mean, rule, generator).to(matrix.dtype)
    return grown.contiguous()


def _new_row(old: Any, mean: Any, rule: Rule, generator: Any) -> Any:
    """A row (H,) for a new token, from the old rows (V, H) and their mean.

    `covariance` draws from the normal distribution that has the old rows' mean and covariance (Hewitt, "Initializing
    New Word Embeddings for Pretrained Language Models", 2021): a sum of the centred rows with normal weights has just
    that covariance and needs no (H, H) factor. transformers' resizing draws it too, but shrunk by 1e-9, to the mean.
    """
    import torch

    match rule:
        case "mean":
            return mean
        case "mean_noise":
            return mean + torch.randn(mean.shape, generator=generator) * NOISE
        case "covariance":
            weights = torch.randn(len(old), generator=generator)  # (V,)
            return mean + (weights @ old - weights.sum() * mean) / math.sqrt(len(old))
        case _:
            return old[list(rule)].mean(dim=0)


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file.resolve(), target)
    except OSError:  # another file system
        shutil.copy(file, target)
