"""How the embedding rows of new tokens start, compared: validation loss and stopping of short runs, over seeds.

    python -m benchmarks.token_init [--seeds 3] [--steps 40]

A tiny Llama is first trained on bundled ViGGO as plain text, without special tokens: that is the pretrained model. Then
the task's tokens are added under each rule, as `fulltune train` does it, and a short fine-tuning follows. `stop` is how
often the most probable token after a whole answer is the stop token (teacher forced). docs/token_init.md has the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import tasks
from fulltune import attention, data, model, session
from fulltune import tokenizer as tok
from fulltune.batches import MicroBatch, StepPlanner, collate
from fulltune.config import DataConfig, ModelConfig, TokenizerTraining, TrainConfig
from fulltune.loss import summed_loss
from fulltune.train import learning_rate
from tasks.base import Record, Segment, Task
from tasks.sources import load

SHAPE = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4}
TUNED = tasks.get("viggo")
# the rule for new rows, and for the stop token's
ARMS: tuple[dict[str, Any], ...] = (
    {"new_token_init": "mean", "stop_token_init": "new_token_init"},
    {"new_token_init": "mean"},
    {"new_token_init": "mean_noise", "stop_token_init": "new_token_init"},
    {"new_token_init": "mean_noise"},
    {"new_token_init": "covariance", "stop_token_init": "new_token_init"},
    {"new_token_init": "covariance"},
    {"new_token_init": "description", "stop_token_init": "new_token_init"},
    {"new_token_init": "description"},
)
CHECKPOINTS = (0, 10, 20, 40)  # steps after which the validation split is looked at


def plain_render(record: Record) -> tuple[Segment, ...]:
    """The pair as text that a model may have seen before: no special tokens."""
    return Segment(f"{record['ref']}\n", loss=True), Segment(str(record["mr"]), loss=True)


def tables(task: Task, folder: Path, rows: int) -> tuple[data.TokenTable, data.TokenTable]:
    """The training and validation split, tokenised with the model's tokenizer."""
    tokenizer, settings = tok.load(str(folder)), DataConfig()
    train, valid = (
        data.prepare(
            task,
            load(task, split, "bundled", limit=n),
            tokenizer,
            settings,
            split=split,
            cache=folder.parent / "tokens",
        )
        for split, n in (("train", rows), ("valid", 100))
    )
    return train, valid


def training(network: Any, table: data.TokenTable, settings: TrainConfig, steps: int) -> Iterator[int]:
    """Trains with the product's batches, loss and schedule in one process; yields the number of finished steps."""
    planner = StepPlanner(table, settings, packing=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    head = network.get_output_embeddings()
    for number in range(1, steps + 1):
        yield number - 1
        step = planner.step(number)
        for indices in step.micro_batches:
            loss = summed_loss(network, collate(table, indices), head=head, chunk_tokens=settings.loss_chunk_tokens)
            (loss / step.supervised_tokens).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), settings.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, number, steps)
        optimizer.step()
        optimizer.zero_grad()
    yield steps


def pretrained(out: Path, steps: int) -> Path:
    """A folder with a tiny model that knows the sentences and the representations, but no special token."""
    task = dataclasses.replace(TUNED, special_tokens=(), stop="", render=plain_render)
    texts = ["".join(s.text for s in plain_render(r)) for r in load(task, "train", "bundled", limit=2000)]
    start = model.prepare(
        ModelConfig(init="random", config=SHAPE, tokenizer=TokenizerTraining(vocab_size=800)),
        task,
        texts,
        seed=1,
        cache=out,
    )
    network = opened(start)
    settings = TrainConfig(learning_rate=3e-3, warmup_steps=20, lr_scheduler="cosine", global_batch_size=16)
    for _ in training(network, tables(task, start, 2000)[0], settings, steps):
        pass
    network.save_pretrained(out / "pretrained")
    tok.save(tok.load(str(start)), out / "pretrained")
    return out / "pretrained"


def opened(folder: Path) -> Any:
    """The model with the product's attention."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention.SEGMENTS)


@torch.no_grad()
def look(network: Any, batch: MicroBatch, stop: int) -> tuple[float, float]:
    """Mean loss over the supervised tokens, and the share of answers after which `stop` is the most probable token."""
    logits = network(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        cu_seq_lens_q=batch.cu_seq_lens,
        logits_to_keep=batch.keep,
        use_cache=False,
    ).logits[0]  # (K, V)
    ends = batch.targets == stop
    hits = (logits[ends].argmax(-1) == stop).float().mean()
    return float(torch.nn.functional.cross_entropy(logits, batch.targets)), float(hits)


def arm(source: Path, settings: dict[str, Any], seed: int, steps: int, out: Path) -> list[tuple[float, float]]:
    """(validation loss, stop) after each of CHECKPOINTS."""
    session.seed_everything(seed)
    folder = model.prepare(ModelConfig(name_or_path=str(source), **settings), TUNED, [], seed=seed, cache=out)
    train, valid = tables(TUNED, folder, 2000)
    network, stop = opened(folder), tok.stop_id(tok.load(str(folder)), TUNED)
    held = collate(valid, range(len(valid)))
    settings_of_run = TrainConfig(learning_rate=1e-3, global_batch_size=16, seed=seed)
    return [
        look(network, held, stop) for done in training(network, train, settings_of_run, steps) if done in CHECKPOINTS
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--pretraining-steps", type=int, default=400)
    args = parser.parse_args()
    attention.register()
    print("| new tokens | stop token |" + "".join(f" loss at {n} | stop at {n} |" for n in CHECKPOINTS))
    print("|---|---|" + "---|---|" * len(CHECKPOINTS))
    with tempfile.TemporaryDirectory() as out:
        source = pretrained(Path(out), args.pretraining_steps)
        for settings in ARMS:
            runs = [arm(source, settings, seed, args.steps, Path(out)) for seed in range(args.seeds)]
            cells = []
            for at in zip(*runs, strict=True):
                losses, hits = zip(*at, strict=True)
                spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
                cells.append(f" {statistics.mean(losses):.3f} ± {spread:.3f} | {statistics.mean(hits):.0%} |")
            stop = "same" if "stop_token_init" in settings else "eos"
            print(f"| {settings['new_token_init']} | {stop} |" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
