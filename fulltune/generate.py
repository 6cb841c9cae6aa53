"""Batched greedy generation with a KV cache, on a whole (never a sharded) model.

    prompts (ids) -> batches of similar length -> transformers' generate -> Answer (without the stop token)

What all prompts of a batch begin with (instructions, worked examples) is computed once.
The decoder keeps special tokens: an answer is cut by token id, not by text, so a model that writes its stop token
twice or runs past it is seen as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, DynamicCache, StoppingCriteria, StoppingCriteriaList

from fulltune import device
from fulltune import tokenizer as tok
from fulltune.config import PromptStyle
from tasks.base import Record, Task

FIRST_TOKENS = 32  # of an answer, before rows that have stopped leave the batch
TAIL_TOKENS = 8  # how far back a stop string is looked for after each token


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is given for the record `id`."""

    id: str
    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Answer:
    """What it wrote, without the stop token; "length" means that it was cut off."""

    id: str
    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Stops:
    """What ends an answer: token ids, and strings for models that know no such token."""

    ids: tuple[int, ...]
    strings: tuple[str, ...]


@dataclass(frozen=True)
class Generator:
    """A loaded model with its tokenizer; prompts are natural language or the task's structured format."""

    model: Any
    tokenizer: tok.Tokenizer
    prompt_style: PromptStyle
    task: Task

    def prompt(self, record: Record, shots: Sequence[Record]) -> Prompt:
        """The prompt of a record in this generator's style; shots stand before it in the same style."""
        if self.prompt_style == "natural":
            return Prompt(record.id, tok.encode_text(self.tokenizer, self.task.baseline_prompt(record, shots)))
        if self.prompt_style == "chat":
            return Prompt(record.id, tok.encode_chat(self.tokenizer, self.task.baseline_prompt(record, shots)))
        worked = [segment for shot in shots for segment in self.task.render(shot)]
        before = tok.encode_examples(self.tokenizer, self.task, [worked], loss_on="all")[0][0] if worked else []
        ids = tok.encode_prompt(self.tokenizer, self.task, record)
        return Prompt(record.id, [*before, *ids[len(tok.bos_ids(self.tokenizer)) :]] if before else ids)

    @cached_property  # asked for every row of every batch, and a vocabulary is large
    def stops(self) -> Stops:
        """The task's stop token where the vocabulary has it, and every EOS; strings for natural prompts."""
        own = self.model.generation_config.eos_token_id
        ids = {self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
        if not self.task.stop or self.task.stop in self.tokenizer.get_vocab():
            ids.add(tok.stop_id(self.tokenizer, self.task))
        strings = (
            self.task.baseline_stop if self.prompt_style != "structured" else tuple(filter(None, [self.task.stop]))
        )
        return Stops(tuple(sorted(ids)), strings)

    def log_likelihood(self, record: Record, answer: str) -> float:
        """Mean log-probability per token of `answer` after the natural prompt without shots; -inf for no answer."""
        prompt = self.prompt(record, ()).ids
        answer_ids = self.tokenizer.encode(answer, add_special_tokens=False)
        if not answer_ids:
            return float("-inf")
        ids = torch.tensor([[*prompt, *answer_ids]], device=self.model.device)  # (1, T)
        with torch.inference_mode():
            logits = self.model(input_ids=ids, logits_to_keep=len(answer_ids) + 1).logits[0, :-1]  # (A, vocabulary)
        chosen = logits.float().log_softmax(-1).gather(1, ids[0, len(prompt) :, None])  # (A, 1)
        return float(chosen.mean())

    def answer(self, prompts: Sequence[Prompt], *, max_new_tokens: int) -> list[Answer]:
        """Greedy answers of one batch, in the order of the prompts.

        Most answers are short and a few never end, so the batch writes a third of the limit first, and only the rows
        that have not stopped by then go on.
        """
        first = min(max_new_tokens, max(FIRST_TOKENS, max_new_tokens // 3))
        written = dict(zip((p.id for p in prompts), self._write(prompts, first), strict=True))
        open_rows = [p for p in prompts if first < max_new_tokens and not self._stopped(written[p.id])]
        if open_rows:
            longer = [Prompt(p.id, [*p.ids, *written[p.id]]) for p in open_rows]
            for prompt, more in zip(open_rows, self._write(longer, max_new_tokens - first), strict=True):
                written[prompt.id] = [*written[prompt.id], *more]
        answers = [_cut(self.tokenizer, p, written[p.id], self.stops, max_new_tokens) for p in prompts]
        if self.prompt_style != "structured":
            return answers
        return [replace(answer, text=self.task.decode_text(answer.text)) for answer in answers]

    def _stopped(self, new: Sequence[int]) -> bool:
        text = self.tokenizer.decode(new, skip_special_tokens=False) if self.stops.strings else ""
        return any(token in self.stops.ids for token in new) or any(string in text for string in self.stops.strings)

    def _write(self, prompts: Sequence[Prompt], limit: int) -> list[list[int]]:
        """At most `limit` new tokens per prompt; rows that stop early are filled up with the pad token."""
        width = max(len(prompt.ids) for prompt in prompts)
        pad = _pad_id(self.tokenizer)
        shared = _shared_prefix([prompt.ids for prompt in prompts])
        # padding stands between what all prompts share and the rest, so that the shared part is computed once
        rows = [[*p.ids[:shared], *[pad] * (width - len(p.ids)), *p.ids[shared:]] for p in prompts]
        masks = [[1] * shared + [0] * (width - len(p.ids)) + [1] * (len(p.ids) - shared) for p in prompts]
        stops = self.stops
        strings = StoppingCriteriaList([_StopStrings(self.tokenizer, stops.strings, width)]) if stops.strings else None
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=torch.tensor(rows, device=self.model.device),  # (B, width)
                attention_mask=torch.tensor(masks, device=self.model.device),
                past_key_values=self._computed(prompts[0].ids[:shared], copies=len(prompts)),
                max_new_tokens=limit,
                do_sample=False,
                eos_token_id=list(stops.ids),
                pad_token_id=pad,
                stopping_criteria=strings,
            )  # (B, width + new)
        new: list[list[int]] = output[:, width:].tolist()
        return new

    def _computed(self, ids: Sequence[int], *, copies: int) -> DynamicCache:
        """Keys and values of a prefix, computed once and repeated for every row; empty for an empty prefix."""
        cache = DynamicCache(config=self.model.config)
        if ids:
            row = torch.tensor([list(ids)], device=self.model.device)  # (1, prefix)
            self.model(input_ids=row, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.batch_repeat_interleave(copies)
        return cache


def load(folder: Path, task: Task, *, prompt_style: PromptStyle, use_gpu: bool, dtype: str = "auto") -> Generator:
    """A model from a Hugging Face folder, whole, ready to generate."""
    name = device.dtype_name(dtype, use_gpu=use_gpu)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=device.torch_dtype(name), attn_implementation="sdpa"
    )
    model.to(device.inference_device(use_gpu=use_gpu)).eval()
    # sampling defaults of the model's authors would only draw warnings: decoding here is greedy
    model.generation_config.temperature = model.generation_config.top_p = model.generation_config.top_k = None
    return Generator(model=model, tokenizer=tok.load(str(folder)), prompt_style=prompt_style, task=task)


def batches(prompts: Sequence[Prompt], *, max_new_tokens: int, batch_tokens: int) -> Iterator[list[Prompt]]:
    """Prompts of similar length together; a batch holds at most `batch_tokens`, padding and answers included."""
    batch: list[Prompt] = []
    for prompt in sorted(prompts, key=lambda p: (-len(p.ids), p.id)):
        width = len((batch or [prompt])[0].ids) + max_new_tokens
        if batch and width * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch


def _shared_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all rows share; at least one token of every row stays outside."""
    limit = min(len(row) for row in rows) - 1
    return next((i for i in range(limit) if len({row[i] for row in rows}) > 1), limit)


def _pad_id(tokenizer: tok.Tokenizer) -> int:
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def _cut(tokenizer: tok.Tokenizer, prompt: Prompt, new: list[int], stops: Stops, limit: int) -> Answer:
    """The answer up to the first stop; the tokens counted include the stop token, which was generated too."""
    end = next((i for i, token in enumerate(new) if token in stops.ids), None)
    kept = new if end is None else new[:end]
    text = tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    at = min((found for string in stops.strings if (found := text.find(string)) >= 0), default=-1)
    if at >= 0:
        text = text[:at]
        kept = _shortest_prefix(tokenizer, kept, len(text))
    stopped = end is not None or at >= 0
    return Answer(
        id=prompt.id,
        text=text,
        prompt_tokens=len(prompt.ids),
        completion_tokens=len(kept) + (1 if end is not None and at < 0 else 0),
        finish_reason="stop" if stopped or len(kept) < limit else "length",
    )


def _shortest_prefix(tokenizer: tok.Tokenizer, ids: list[int], length: int) -> list[int]:
    """The tokens that were needed for the first `length` characters."""
    for end in range(len(ids) + 1):
        if len(tokenizer.decode(ids[:end], skip_special_tokens=False)) >= length:
            return ids[:end]
    return ids


class _StopStrings(StoppingCriteria):
    """Ends a row once a stop string stands in what it has written lately (transformers' hook is a class)."""

    def __init__(self, tokenizer: tok.Tokenizer, strings: tuple[str, ...], width: int) -> None:
        self._tokenizer, self._strings, self._width = tokenizer, strings, width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        start = max(self._width, input_ids.shape[1] - TAIL_TOKENS)
        tails = self._tokenizer.batch_decode(input_ids[:, start:], skip_special_tokens=False)
        return torch.tensor([any(s in tail for s in self._strings) for tail in tails], device=input_ids.device)
