"""Tokenizers: load or train one, give it the task's special tokens, and turn segments into labelled ids.

The same functions serve training, prediction and export, so BOS stands exactly once in all three, every special token
is one id, and the pad token is never the EOS token (a model that learns to ignore padding must not unlearn to stop).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tasks.base import Record, Segment, Task, UserError

PAD = "<|pad|>"
IGNORE = -100
# transformers ships no usable types for fast tokenizers
Tokenizer = Any


def load(folder_or_id: str, revision: str | None = None) -> Tokenizer:
    """A fast tokenizer from a folder or the hub.

    Raises:
        UserError: nothing there that transformers can read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder_or_id, revision=revision, use_fast=True)
    except (OSError, ValueError) as error:
        raise UserError(
            got=f"no tokenizer in {folder_or_id!r}: {str(error).splitlines()[0]}",
            wanted="a folder or hub id with tokenizer.json",
            fix="check model.name_or_path (and HF_TOKEN for gated models)",
        ) from None


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE with <pad>, BOS and EOS of its own; the same texts give the same tokenizer."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    bos = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )


def add_task_tokens(tokenizer: Tokenizer, *tasks: Task) -> list[int]:
    """Adds the tasks' special tokens, then a pad token if the pad token is missing or is the EOS token.

    The tasks' tokens come first: on Llama-2 `<START_Q>` is 32000, as in the study. Returns the ids that are new.
    """
    before = len(tokenizer)
    added = list(dict.fromkeys(token for task in tasks for token in task.special_tokens))
    tokenizer.add_tokens(added, special_tokens=True)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD})
    for token in added:
        ids = tokenizer(token, add_special_tokens=False).input_ids
        assert len(ids) == 1, f"special token {token!r} became {ids}, wanted one id"
    return list(range(before, len(tokenizer)))


def bos_ids(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer itself puts before a text: its BOS, or nothing."""
    plain = tokenizer("a", add_special_tokens=False).input_ids
    full = tokenizer("a").input_ids
    return [tokenizer.bos_token_id] if len(full) > len(plain) and full[0] == tokenizer.bos_token_id else []


def stop_id(tokenizer: Tokenizer, task: Task) -> int:
    """The id that ends an answer in the structured format."""
    if not task.stop:
        return int(tokenizer.eos_token_id)
    return int(tokenizer.convert_tokens_to_ids(task.stop))


def encode_examples(
    tokenizer: Tokenizer, task: Task, examples: Sequence[Sequence[Segment]], *, loss_on: str
) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of each example, both (T,); labels are IGNORE where no loss is taken.

    Each segment is encoded on its own, so the ids of the prompt in training are the ids of the prompt at prediction.
    BOS is context, never a target.
    """
    pieces = iter(_encode(tokenizer, [task.encode_text(s.text) for segments in examples for s in segments]))
    bos = bos_ids(tokenizer)
    ends_with_eos = not task.stop and task.kind == "sft"
    encoded = []
    for segments in examples:
        ids, labels = list(bos), [IGNORE] * len(bos)
        for segment in segments:
            piece = next(pieces)
            ids += piece
            labels += piece if segment.loss or loss_on == "all" else [IGNORE] * len(piece)
        if ends_with_eos:
            ids.append(tokenizer.eos_token_id)
            labels.append(tokenizer.eos_token_id)
        encoded.append((ids, labels))
    return encoded


def _encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Many texts in one call: the tokenizer works on them in parallel.

    The backend is asked directly: what transformers puts around it (masks, offsets, types) takes a third of the time.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def encode_prompt(tokenizer: Tokenizer, task: Task, record: Record) -> list[int]:
    """The structured prompt as the model saw it in training: everything before the first supervised token."""
    segments = task.render(record)
    first = next((i for i, segment in enumerate(segments) if segment.loss), len(segments))
    pieces = _encode(tokenizer, [task.encode_text(segment.text) for segment in segments[:first]])
    return [*bos_ids(tokenizer), *(token for piece in pieces for token in piece)]


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """A plain-text prompt (a baseline's), with BOS where the tokenizer defines one."""
    return bos_ids(tokenizer) + list(tokenizer(text, add_special_tokens=False).input_ids)


def encode_chat(tokenizer: Tokenizer, text: str) -> list[int]:
    """The text as a user's turn in the model's chat template, up to where the answer begins.

    Raises:
        UserError: the model has no chat template.
    """
    if tokenizer.chat_template is None:
        raise UserError(
            got=f"a chat prompt for {tokenizer.name_or_path}, whose tokenizer has no chat template",
            wanted="a chat model, or the natural prompt",
            fix="ask it with prompt: natural",
        )
    turn = [{"role": "user", "content": text}]
    encoded: Any = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)
    return list(encoded["input_ids"])


def fingerprint(tokenizer: Tokenizer) -> str:
    """A hash over vocabulary, merges and special tokens."""
    text = tokenizer.backend_tokenizer.to_str() + repr(sorted(tokenizer.special_tokens_map.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json and its configuration."""
    tokenizer.save_pretrained(str(folder))
