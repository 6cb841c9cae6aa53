"""Throughput of prediction: one prompt at a time, static batches of 16, and each engine, on the same rows in one run.

    OMP_NUM_THREADS=1 python -m benchmarks.generation_throughput [--rows 500] [--width 256 --layers 4] [--shots 4]

Without `--model FOLDER` it is a random Llama; by default that of `benchmarks/tiny.py`, where every forward costs its
calls and not its arithmetic. The wider the model and the longer the prompts, the more of the time is arithmetic that
no batch saves, unless prompts share their beginning (`--shots`). Two distributions of answer lengths come from how many
tokens of the vocabulary count as a stop; every row has the same limit. Times are CPU seconds of this process, all its
threads together, because wall clocks of shared machines lie; the ratios are what counts. Every arm must write the
tokens of one-by-one decoding; items that differ are listed with the distance of the two best logits where they part.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import tasks
from fulltune import generate, quiet
from fulltune import tokenizer as tok
from tasks.sources import load

STATIC = 16
NEAR_TIE = 1e-4  # two logits closer than this are told apart by rounding only
CACHE_TOKENS = 32768
SEED = 0


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of answer lengths: one token of so many is a stop."""

    name: str
    one_in: int
    limit: int


DISTRIBUTIONS = (Lengths("short", 12, 160), Lengths("long", 80, 400))
Tokens = Mapping[str, list[int]]


def random_model(folder: Path, texts: Sequence[str], task: Any, width: int, layers: int) -> Path:
    """A model whose greedy answers wander over the vocabulary, so that rows stop at different times."""
    tokenizer = tok.train_bpe(list(texts), 400)
    tok.add_task_tokens(tokenizer, task)
    torch.manual_seed(SEED)
    shape = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192}
    config = LlamaConfig(vocab_size=len(tokenizer), initializer_range=2 / width**0.5, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def with_stops(generator: generate.Generator, one_in: int) -> generate.Generator:
    """The same model with every so-many-th token as a stop, and no stop strings."""
    task = replace(generator.task, baseline_stop=())
    generator.model.generation_config.eos_token_id = list(range(3, generator.model.config.vocab_size, one_in))
    return replace(generator, task=task)


def plain(generator: generate.Generator, prompts: Sequence[generate.Prompt], limit: int, size: int) -> dict[str, Any]:
    """transformers' generate over left-padded batches of `size` prompts of similar length."""
    ordered = sorted(prompts, key=lambda prompt: -len(prompt.ids))
    pad, written = generator.tokenizer.pad_token_id or 0, {}
    for start in range(0, len(ordered), size):
        batch = ordered[start : start + size]
        width = len(batch[0].ids)
        rows = [[pad] * (width - len(prompt.ids)) + list(prompt.ids) for prompt in batch]
        masks = [[0] * (width - len(prompt.ids)) + [1] * len(prompt.ids) for prompt in batch]
        with torch.inference_mode():
            output = generator.model.generate(
                input_ids=torch.tensor(rows),
                attention_mask=torch.tensor(masks),
                max_new_tokens=limit,
                do_sample=False,
                eos_token_id=list(generator.stops.ids),
                pad_token_id=pad,
            )
        written |= dict(zip((prompt.id for prompt in batch), output[:, width:].tolist(), strict=True))
    return written


def arms(generator: generate.Generator, prompts: Sequence[generate.Prompt], limit: int) -> dict[str, Callable[[], Any]]:
    """What is measured, by name."""

    def engine(batching: generate.Batching) -> Callable[[], Any]:
        own = replace(generator, batching=batching)
        return lambda: dict(chain(*own.tokens(prompts, max_new_tokens=limit, batch_tokens=CACHE_TOKENS)))

    return {
        "one by one": lambda: plain(generator, prompts, limit, 1),
        f"static {STATIC}": lambda: plain(generator, prompts, limit, STATIC),
        "--engine hf-static": engine("static"),
        "--engine hf-paged": engine("paged"),
        "--engine hf (continuous)": engine("continuous"),
    }


def trimmed(new: Sequence[int], stops: Sequence[int]) -> list[int]:
    """Up to the first stop, which is kept."""
    end = next((i for i, token in enumerate(new) if token in stops), len(new) - 1)
    return list(new[: end + 1])


def margin(generator: generate.Generator, prompt: Sequence[int], one: Sequence[int], other: Sequence[int]) -> float:
    """Distance of the two best logits where two continuations part."""
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    with torch.inference_mode():
        logits = generator.model(torch.tensor([[*prompt, *one[:at]]]), use_cache=False).logits[0, -1]
    best = logits.float().topk(2).values
    return float(best[0] - best[1])


def measure(generator: generate.Generator, prompts: Sequence[generate.Prompt], lengths: Lengths) -> bool:
    """Prints the table of one distribution; whether no item differs but for a near tie."""
    generator = with_stops(generator, lengths.one_in)
    seconds: dict[str, tuple[float, float]] = {}
    written: dict[str, Tokens] = {}
    for name, run in arms(generator, prompts, lengths.limit).items():
        cpu, wall = time.process_time(), time.perf_counter()
        found = run()
        seconds[name] = time.process_time() - cpu, time.perf_counter() - wall
        written[name] = {item: trimmed(new, generator.stops.ids) for item, new in found.items()}
    reference = written["one by one"]
    sizes = sorted(len(new) for new in reference.values())
    cuts = statistics.quantiles(sizes, n=10)
    print(
        f"\n{lengths.name} answers: {len(prompts)} rows, median {statistics.median(sizes):.0f} tokens, "
        f"10 % to 90 %: {cuts[0]:.0f} to {cuts[-1]:.0f}, longest {sizes[-1]} of {lengths.limit}; "
        f"prompts of {statistics.mean(len(p.ids) for p in prompts):.0f} tokens"
    )
    print(f"| arm | CPU s | wall s | tokens/CPU s | x one by one | x static {STATIC} | items that differ |")
    print("|---|---|---|---|---|---|---|")
    fine, listed = True, []
    by_id = {prompt.id: prompt.ids for prompt in prompts}
    for name, (cpu, wall) in seconds.items():
        differing = [item for item in reference if written[name][item] != reference[item]]
        ratios = [seconds[other][0] / cpu for other in ("one by one", f"static {STATIC}")]
        print(
            f"| {name} | {cpu:.1f} | {wall:.1f} | {sum(sizes) / cpu:,.0f} | {ratios[0]:.1f} | {ratios[1]:.1f} "
            f"| {len(differing)} |"
        )
        for item in differing:
            apart = margin(generator, by_id[item], reference[item], written[name][item])
            fine = fine and apart < NEAR_TIE
            listed.append(f"  {name}, {item}: the two best logits are {apart:.1e} apart")
    print("\n".join(listed) or "no item differs")
    return fine


def main() -> None:
    """Prints a table for each distribution; exit code 1 when an item differs that is no near tie."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--model", type=Path, help="a Hugging Face folder; default: a random model")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--task", default="viggo")
    parser.add_argument("--prompt", choices=("structured", "natural"), default="structured")
    parser.add_argument("--shots", type=int, default=0)
    parser.add_argument("--only", choices=[lengths.name for lengths in DISTRIBUTIONS])
    args = parser.parse_args()
    quiet.libraries()
    quiet.transformers()
    task = tasks.get(args.task)
    records = load(task, "test", "bundled", limit=args.rows)
    train = load(task, "train", "bundled", limit=200)
    texts = ["".join(segment.text for segment in task.render(record)) for record in train]
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or random_model(Path(folder), texts, task, args.width, args.layers)
        generator = generate.load(model, task, prompt_style=args.prompt, use_gpu=False)
        prompts = [generator.prompt(record, train[: args.shots]) for record in records]
        parameters = sum(parameter.numel() for parameter in generator.model.parameters())
        print(f"{args.model.name if args.model else 'random model'}, {parameters:,} parameters, float32")
        chosen = [lengths for lengths in DISTRIBUTIONS if args.only in (None, lengths.name)]
        if not all([measure(generator, prompts, lengths) for lengths in chosen]):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
