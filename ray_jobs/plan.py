"""Gathers what a plan needs to know of a recipe: the model's config.json and the token lengths of its data.

Nothing is downloaded unless the user asks for it: a plan must be possible before anything is at hand. What is missing
is assumed, and the plan says so.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fulltune import architectures, model, stages
from fulltune import tokenizer as tok
from fulltune.config import ModelConfig, RunConfig
from fulltune.plan import hardware, planner
from fulltune.plan.planner import Options, Plan, gb
from fulltune.plan.workload import Lengths
from ray_jobs import lengths
from ray_jobs.prepare import task_of, texts, training_sources
from ray_jobs.settled import settled
from ray_jobs.tokenise import Source
from tasks.base import Task, UserError

USUAL = Options()  # nodes as the table of GPUs has them
_tokenizers: dict[str, Any] = {}  # of this process

# hub ids whose config.json ships with fulltune
SHIPPED = {
    f"meta-llama/Llama-2-{size}{kind}-hf": f"llama2_{size}" for size in ("7b", "13b", "70b") for kind in ("", "-chat")
}


@dataclass(frozen=True, slots=True)
class _Base:
    """What a stage takes from the earlier one that it starts from, whose export does not exist yet."""

    architecture: dict[str, Any]
    tokenizer: Any | None


def plan(config: RunConfig, options: Options, *, fetch: bool, say: Callable[[str], None]) -> Plan:
    """The plan of a recipe.

    Args:
        fetch: config.json, tokenizer and data may come from the network.

    Raises:
        UserError: a model whose architecture is not at hand, an unknown GPU, data that cannot be read.
    """
    return planner.plan(config, *known(config, fetch=fetch, say=say), options)


def plans(
    config: RunConfig,
    options: Options,
    *,
    fetch: bool,
    say: Callable[[str], None],
    settle: Callable[[RunConfig], RunConfig] = lambda stage: stage,
) -> list[Plan]:
    """The plan of each of the recipe's stages, in their order; one where it has none. Other arguments, errors: `plan`.

    Args:
        settle: what each stage goes through first.
    """
    found: list[Plan] = []
    exports: dict[str, _Base] = {}
    for stage in map(settle, stages.expand(config)):
        base = exports.get(str(stage.model.name_or_path))
        model_config, rows, tokenizer = _known(stage, fetch, say, base)
        exports[str(stage.run_dir / "export")] = _Base(model_config, tokenizer)
        found.append(planner.plan(stage, model_config, rows, options))
    return found


def known(config: RunConfig, *, fetch: bool, say: Callable[[str], None]) -> tuple[dict[str, Any], Lengths]:
    """config.json of the model as it will be trained, and the lengths of its data; arguments as for `plan`."""
    return _known(config, fetch, say, None)[:2]


def _known(
    config: RunConfig, fetch: bool, say: Callable[[str], None], base: _Base | None
) -> tuple[dict[str, Any], Lengths, Any | None]:
    task_list = [task_of(config), *(task_of(lengths.alone(config, part)) for part in config.data.mixture)]
    tokenizer = _tokenizer(config, task_list, fetch, base)
    model_config = architecture(
        config.model, task_list, tokenizer, fetch=fetch, base=base.architecture if base else None
    )
    rows = lengths.of(config, tokenizer, fetch=fetch, say=say)
    if config.model.tokenizer is not None and tokenizer is None:
        size = f"model.tokenizer.vocab_size, {config.model.tokenizer.vocab_size:,}"
        rows = replace(rows, source=f"{rows.source}; no tokenizer trained, as its texts are on the hub: it counts as "
                       f"{size}, and the tasks' tokens")  # fmt: skip
    return model_config, rows, tokenizer


def architecture(
    config: ModelConfig,
    task_list: Sequence[Task],
    tokenizer: Any | None,
    *,
    fetch: bool,
    base: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """config.json of the model, its vocabulary grown by the tasks' tokens as `fulltune.model.prepare` does.

    Args:
        base: config.json of the earlier stage that it starts from.
    """
    special = {token for task in task_list for token in task.special_tokens}
    if config.init == "random":
        untrained = config.tokenizer.vocab_size + len(special) if config.tokenizer is not None else 0
        size = len(tokenizer) if tokenizer is not None else untrained
        return {"model_type": "llama"} | config.config | {"vocab_size": model.padded(size)}
    found = base if base is not None else _pretrained(config, fetch=fetch)
    tokens = len(tokenizer) if tokenizer is not None else found["vocab_size"] + len(special) + 1
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


def _tokenizer(config: RunConfig, task_list: Sequence[Task], fetch: bool, base: _Base | None) -> Any | None:
    """The run's tokenizer with the tasks' tokens, or None where it is not at hand."""
    named = config.model
    if named.tokenizer is not None:
        sources = training_sources(config)
        if not fetch and any(source.source == "hub" for source in sources):  # a mirror of the hub is a folder here
            return None
        tokenizer = _trained(sources, named.tokenizer.vocab_size)
    elif base is not None:
        tokenizer = copy.deepcopy(base.tokenizer)
    else:
        folder = Path(str(named.name_or_path)).expanduser()
        if not (folder / "tokenizer.json").is_file():
            cached = _from_hub(str(named.name_or_path), named.revision, "tokenizer.json", fetch=fetch)
            if cached is None:
                return None
            _from_hub(str(named.name_or_path), named.revision, "tokenizer_config.json", fetch=fetch)
            folder = cached.parent
        tokenizer = tok.load(str(folder))
    if tokenizer is not None:
        tok.add_task_tokens(tokenizer, *task_list)
    return tokenizer


def _trained(sources: Sequence[Source], vocab_size: int) -> Any:
    """A tokenizer of these sources' texts, trained once per process."""
    key = repr((vocab_size, [lengths.identity(source) for source in sources]))
    if key not in _tokenizers:
        _tokenizers[key] = tok.train_bpe(texts(sources), vocab_size)
    return copy.deepcopy(_tokenizers[key])  # which is given the tasks' tokens


def refuse_what_cannot_fit(config: RunConfig, options: Options = USUAL, *, say: Callable[[str], None]) -> None:
    """Before a run on GPUs of a known type starts: does it, or each of its stages, fit? Else the message carries the
    configuration that does. A run that has begun is judged as it would go on.

    Runs on CPUs, on types the table does not have, and on models or data whose size is not known yet pass.

    Raises:
        UserError: planned memory exceeds what a GPU has.
    """
    if not config.ray.use_gpu or (options.gpu or config.ray.accelerator_type) is None:
        return
    try:
        found = plans(config, options, fetch=False, say=say, settle=lambda stage: settled(stage, say=_silent))
    except UserError as error:
        say(f"not planned: {error.got}")
        return
    for each in found:
        refuse(each, options, f"{each.config.ray.name} " if config.stages else "")


def _silent(_: str) -> None:
    """Says nothing."""


def refuse(found: Plan, options: Options, name: str = "") -> None:
    """Ends here where a run on GPUs does not fit by plan.

    Args:
        options: those of the plan.
        name: begins the message.

    Raises:
        UserError: what is too large, and the settings that would fit.
    """
    if found.fits or found.gpu is None:
        return
    config = found.config
    raise UserError(
        got=f"planned: {name}" + "; ".join(found.problems),
        wanted=f"a run that fits {config.ray.min_workers} x {found.gpu.name}",
        fix=f"{_larger(found, options)}{advice(found)}; `fulltune plan` shows the figures, --force starts anyway",
    )


def _larger(found: Plan, options: Options) -> str:
    """How to name the larger size of a type that was planned as its smallest, for want of a word on it."""
    named = options.gpu or found.config.ray.accelerator_type
    size = hardware.largest(named) if named is not None else None
    if found.gpu is None or size is None:
        return ""
    helps = found.gpu.memory < found.memory.gpu.total <= hardware.gpu(size).memory
    if not helps or len(found.problems) > 1:
        return ""
    memory = gb(hardware.gpu(size).memory)
    return f"ray.accelerator_type={size} if they have {memory} (a bare {named} is taken for {found.gpu.name}), or "


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
