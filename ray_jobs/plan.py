"""Gathers what a plan needs to know of a recipe: the model's config.json and the token lengths of its data.

Nothing is downloaded unless the user asks for it: a plan must be possible before anything is at hand. What is missing
is assumed, and the plan says so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fulltune import architectures, model
from fulltune import tokenizer as tok
from fulltune.config import ModelConfig, RunConfig
from fulltune.plan import planner, workload
from fulltune.plan.planner import Options, Plan
from fulltune.plan.workload import Lengths
from ray_jobs.prepare import load_split, plain_text, task_of
from tasks.base import Record, Task, UserError

# hub ids whose config.json ships with fulltune
SHIPPED = {
    f"meta-llama/Llama-2-{size}{kind}-hf": f"llama2_{size}" for size in ("7b", "13b", "70b") for kind in ("", "-chat")
}

# training splits of the published data sets in tokens of Llama-2 with the task's own: rows, mean length, standard
# deviation, supervised share; counted once on the full splits
COUNTED = {
    "viggo": (5103, 76.8, 30.0, 0.518),
    "gsm8k": (7097, 200.5, 72.6, 0.652),
    "sql_create_context": (14550, 84.4, 31.7, 0.423),
}
BYTES_PER_TOKEN = 3.0  # Llama-2's tokenizer takes 2.2 (arithmetic) to 3.6 (queries) on the tasks' texts


def plan(config: RunConfig, options: Options, *, fetch: bool, say: Callable[[str], None]) -> Plan:
    """The plan of a recipe.

    Args:
        fetch: config.json, tokenizer and data may come from the network.

    Raises:
        UserError: a model whose architecture is not at hand, an unknown GPU, data that cannot be read.
    """
    return planner.plan(config, *known(config, fetch=fetch, say=say), options)


def known(config: RunConfig, *, fetch: bool, say: Callable[[str], None]) -> tuple[dict[str, Any], Lengths]:
    """config.json of the model as it will be trained, and the lengths of its data; arguments as for `plan`."""
    task = task_of(config)
    tokenizer = _tokenizer(config, task, fetch, say)
    lengths = _lengths(config, task, tokenizer, fetch, say)
    return architecture(config.model, task, tokenizer, fetch=fetch), lengths


def architecture(config: ModelConfig, task: Task, tokenizer: Any | None, *, fetch: bool) -> dict[str, Any]:
    """config.json of the model, its vocabulary grown by the task's tokens as `fulltune.model.prepare` does."""
    if config.init == "random":
        size = len(tokenizer) if tokenizer is not None else 0
        return {"model_type": "llama"} | config.config | {"vocab_size": model.padded(size)}
    found = _pretrained(config, fetch=fetch)
    tokens = len(tokenizer) if tokenizer is not None else found["vocab_size"] + len(task.special_tokens) + 1
    return dict(found) | {"vocab_size": max(found["vocab_size"], model.padded(tokens))}


def _pretrained(config: ModelConfig, *, fetch: bool) -> Mapping[str, Any]:
    name = str(config.name_or_path)
    file = Path(name).expanduser() / "config.json"
    if file.is_file():
        return _json(file)
    if name in SHIPPED:
        return architectures.load(SHIPPED[name])
    if name in architectures.names():
        return architectures.load(name)
    cached = _from_hub(name, config.revision, "config.json", fetch=fetch)
    if cached is None:
        raise UserError(
            got=f"model {name!r}: no config.json at hand",
            wanted="a folder with config.json, a model in the hub's cache, or one of "
            + ", ".join(architectures.names()),
            fix="add --fetch to download config.json and the tokenizer (no weights)",
        )
    return _json(cached)


def _json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def _from_hub(name: str, revision: str | None, file: str, *, fetch: bool) -> Path | None:
    """A file of the hub's cache, downloaded if that is wanted; None where it is not there."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        cached = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
        return Path(hf_hub_download(name, file, revision=revision)) if fetch else None
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        if not fetch:
            return None
        raise UserError(
            got=f"model {name!r}: {str(error).splitlines()[0]}",
            wanted="a hub id that can be reached",
            fix="check the name, the network, and HF_TOKEN for gated models such as Llama-2",
        ) from None


def _tokenizer(config: RunConfig, task: Task, fetch: bool, say: Callable[[str], None]) -> Any | None:
    """The run's tokenizer with the task's tokens, or None where it is not at hand."""
    named = config.model
    if named.tokenizer is not None:
        texts = [plain_text(task, record) for record in load_split(config, task, "train", config.data.limit, say)]
        tokenizer = tok.train_bpe(texts, named.tokenizer.vocab_size)
    else:
        folder = Path(str(named.name_or_path)).expanduser()
        if not (folder / "tokenizer.json").is_file():
            cached = _from_hub(str(named.name_or_path), named.revision, "tokenizer.json", fetch=fetch)
            if cached is None:
                return None
            _from_hub(str(named.name_or_path), named.revision, "tokenizer_config.json", fetch=fetch)
            folder = cached.parent
        tokenizer = tok.load(str(folder))
    tok.add_task_tokens(tokenizer, task)
    return tokenizer


def _lengths(config: RunConfig, task: Task, tokenizer: Any | None, fetch: bool, say: Callable[[str], None]) -> Lengths:
    if config.data.source == "hub" and not os.environ.get("FULLTUNE_DATA") and not fetch:
        return _counted(config, task)
    records = load_split(config, task, "train", config.data.limit, say)
    if tokenizer is None:
        return _from_bytes(task, records)
    encoded = tok.encode_examples(
        tokenizer, task, [task.render(record) for record in records], loss_on=config.data.loss_on
    )
    tokens = np.array([len(ids) for ids, _ in encoded])
    supervised = np.array([sum(label != tok.IGNORE for label in labels[1:]) for _, labels in encoded])
    return Lengths(tokens, supervised, f"counted, {len(records):,} rows of {config.data.source}", known=True)


def _counted(config: RunConfig, task: Task) -> Lengths:
    if task.name not in COUNTED:
        raise UserError(
            got=f"data.source hub, and no figures for task {task.name!r}",
            wanted="data at hand, or a task whose published data set was counted: " + ", ".join(COUNTED),
            fix="add --fetch to read the data, set FULLTUNE_DATA, or plan with data.source=bundled",
        )
    rows, mean, spread, share = COUNTED[task.name]
    rows = min(rows, config.data.limit or rows)
    share = 1.0 if config.data.loss_on == "all" else share
    return workload.assumed(
        rows, mean, spread, share, f"assumed, the published {task.name} in Llama-2 tokens ({rows:,} rows of {mean:.0f})"
    )


def _from_bytes(task: Task, records: list[Record]) -> Lengths:
    """Lengths without a tokenizer: the texts' bytes, and one token for each special one."""
    rows = [[(_estimate(task, segment.text), segment.loss) for segment in task.render(record)] for record in records]
    tokens = np.array([1 + sum(count for count, _ in row) for row in rows])
    supervised = np.array([max(1, sum(count for count, loss in row if loss)) for row in rows])
    source = f"estimated, {BYTES_PER_TOKEN:.0f} bytes per token over {len(records):,} rows (no tokenizer at hand)"
    return Lengths(tokens, supervised, source, known=False)


def _estimate(task: Task, text: str) -> int:
    special = sum(text.count(token) for token in task.special_tokens)
    for token in task.special_tokens:
        text = text.replace(token, "")
    return special + round(len(task.encode_text(text).encode()) / BYTES_PER_TOKEN)


def refuse_what_cannot_fit(config: RunConfig, *, say: Callable[[str], None]) -> None:
    """Before a run on GPUs of a known type starts: does it fit? The message carries the configuration that does.

    Runs on CPUs, on types the table does not have, and on models or data whose size is not known yet pass.

    Raises:
        UserError: planned memory exceeds what a GPU has.
    """
    if not config.ray.use_gpu or config.ray.accelerator_type is None:
        return
    try:
        found = plan(config, Options(), fetch=False, say=lambda _: None)
    except UserError as error:
        say(f"not planned: {error.got}")
        return
    if found.fits:
        return
    raise UserError(
        got="planned: " + "; ".join(found.problems),
        wanted=f"a run that fits {config.ray.min_workers} x {config.ray.accelerator_type}",
        fix=f"{advice(found)}; `fulltune plan` shows the figures, --force starts anyway",
    )


def advice(found: Plan) -> str:
    """What to change so that the run fits, as overrides."""
    if found.best is not None:
        choice = found.best
        checkpointing = str(choice.gradient_checkpointing).lower()
        return (f"deepspeed={choice.deepspeed} train.micro_batch_tokens={choice.micro_batch_tokens} "
                f"train.gradient_checkpointing={checkpointing}")  # fmt: skip
    if found.smallest_with_offload is not None:
        return f"at least {found.smallest_with_offload.workers} GPUs of this type (ray.num_workers)"
    return "GPUs with more memory, or a smaller model"
